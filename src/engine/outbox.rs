//! From the scheduler's events to the readers' channels: one message a step to one task, which fills the channels.
//!
//! Many small wake-ups slow a memory-bound step more than anything else, so the engine thread wakes a single task.

use std::{collections::HashMap, sync::Arc};

use tokio::sync::mpsc;

use super::{
    channel::{Delivery, ReaderControl},
    scheduler::{End, Event},
};
use crate::{error::Error, ids::SequenceId, telemetry::Telemetry};

/// What one step brought, reader by reader.
pub(super) type Batch = Vec<(Arc<ReaderControl>, Delivery)>;

struct Addressee {
    reader: Arc<ReaderControl>,
    cached_tokens: u32,
}

/// The engine thread's end. Bounded: the scheduler counts tokens as under way from the moment they are made, and every
/// reader has one end.
pub(super) struct Outbox {
    readers: HashMap<SequenceId, Addressee>,
    batch: Batch,
    fan_out: mpsc::Sender<Batch>,
}

impl Outbox {
    pub(super) fn new(fan_out: mpsc::Sender<Batch>) -> Self {
        Self { readers: HashMap::new(), batch: Batch::new(), fan_out }
    }

    /// From now on the events of sequence `id` go to `reader`.
    pub(super) fn add_reader(&mut self, id: SequenceId, reader: Arc<ReaderControl>) {
        self.readers.insert(id, Addressee { reader, cached_tokens: 0 });
    }

    /// Ends the stream of a sequence that the scheduler did not take.
    pub(super) fn refuse(&mut self, reader: Arc<ReaderControl>, error: Error) {
        self.batch.push((reader, Delivery::failed(error)));
    }

    /// Takes a step's events in. Tokens count as under way from here on.
    pub(super) fn take_in(&mut self, events: &mut Vec<Event>) {
        for event in events.drain(..) {
            match event {
                Event::Started { id, cached_tokens } => {
                    let Some(to) = self.readers.get_mut(&id) else { continue };
                    to.cached_tokens = cached_tokens;
                    to.reader.started(cached_tokens);
                    let waited = Some(to.reader.age());
                    self.batch.push((to.reader.clone(), Delivery { waited, ..Delivery::default() }));
                }
                Event::Prompt { id, prompt } => {
                    let Some(to) = self.readers.get(&id) else { continue };
                    to.reader.sent(1);
                    self.batch.push((to.reader.clone(), Delivery { prompt: Some(prompt), ..Delivery::default() }));
                }
                Event::Tokens { id, tokens } => {
                    let Some(to) = self.readers.get(&id) else { continue };
                    to.reader.sent(tokens.len());
                    let delivery = Delivery { cached_tokens: to.cached_tokens, tokens, ..Delivery::default() };
                    self.batch.push((to.reader.clone(), delivery));
                }
                Event::Ended { id, end, .. } => {
                    let Some(to) = self.readers.remove(&id) else { continue };
                    self.end(to, end);
                }
            }
        }
    }

    /// An end travels with the tokens before it, so that the reader sees the last token as what it is.
    fn end(&mut self, to: Addressee, end: End) {
        let end = match end {
            End::Finished(reason) => Ok(reason),
            End::Failed(error) => Err(error),
            End::Cancelled => return,
        };
        match self.batch.last_mut() {
            Some((reader, delivery)) if Arc::ptr_eq(reader, &to.reader) => delivery.end = Some(end),
            _ => {
                let delivery = Delivery { cached_tokens: to.cached_tokens, end: Some(end), ..Delivery::default() };
                self.batch.push((to.reader, delivery));
            }
        }
    }

    /// Hands over without waiting; false where the fan-out has no room yet, so that all stays for the next time.
    pub(super) fn send(&mut self) -> bool {
        if !self.batch.is_empty() {
            match self.fan_out.try_reserve() {
                Ok(permit) => permit.send(std::mem::take(&mut self.batch)),
                Err(mpsc::error::TrySendError::Full(())) => return false,
                // The supervisor has given this life up and ended its streams.
                Err(mpsc::error::TrySendError::Closed(())) => self.batch.clear(),
            }
        }
        true
    }
}

/// Fills the readers' channels from the engine's batches.
pub(super) async fn fan_out(mut batches: mpsc::Receiver<Batch>, telemetry: Arc<Telemetry>) {
    while let Some(batch) = batches.recv().await {
        for (reader, delivery) in batch {
            reader.deliver(delivery, &telemetry);
        }
    }
}
