//! From the scheduler's events to the readers' channels: one message a step to one task, which fills the channels, and
//! notes in the log what changed in the prefix cache.
//!
//! Many small wake-ups slow a memory-bound step more than anything else, so the engine thread wakes a single task.

use std::{collections::HashMap, sync::Arc};

use tokio::sync::mpsc;

use super::{
    block_manager::BlockEvent,
    channel::{Delivery, ReaderControl, Rest},
    kv_log::KvLog,
    scheduler::{End, Event, Scheduler},
};
use crate::{error::Error, ids::SequenceId, params::FinishReason, telemetry::Telemetry};

/// What one step brought.
#[derive(Default)]
pub(super) struct Batch {
    /// Reader by reader.
    deliveries: Vec<(Arc<ReaderControl>, Delivery)>,
    /// What changed in the prefix cache.
    blocks: Vec<BlockEvent>,
}

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
        Self { readers: HashMap::new(), batch: Batch::default(), fan_out }
    }

    /// From now on the events of sequence `id` go to `reader`.
    pub(super) fn add_reader(&mut self, id: SequenceId, reader: Arc<ReaderControl>) {
        self.readers.insert(id, Addressee { reader, cached_tokens: 0 });
    }

    /// Ends the stream of a sequence that the scheduler did not take.
    pub(super) fn refuse(&mut self, reader: Arc<ReaderControl>, error: Error) {
        self.batch.deliveries.push((reader, Delivery::failed(error)));
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
                    let started = Delivery::of(Rest { waited, ..Rest::default() });
                    self.batch.deliveries.push((to.reader.clone(), started));
                }
                Event::Prompt { id, prompt } => {
                    let Some(to) = self.readers.get(&id) else { continue };
                    to.reader.sent(1);
                    let stretch = Delivery::of(Rest { prompt: Some(prompt), ..Rest::default() });
                    self.batch.deliveries.push((to.reader.clone(), stretch));
                }
                Event::Tokens { id, tokens } => {
                    let Some(to) = self.readers.get(&id) else { continue };
                    to.reader.sent(tokens.len());
                    let delivery = Delivery { tokens, cached_tokens: to.cached_tokens, rest: None };
                    self.batch.deliveries.push((to.reader.clone(), delivery));
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
        let mut pooled = None;
        let end = match end {
            End::Finished(reason) => Ok(reason),
            End::Pooled(vector) => {
                pooled = Some(vector);
                Ok(FinishReason::Length)
            }
            End::Failed(error) => Err(error),
            End::Cancelled => return,
        };
        match self.batch.deliveries.last_mut() {
            Some((reader, delivery)) if pooled.is_none() && Arc::ptr_eq(reader, &to.reader) => {
                delivery.rest.get_or_insert_default().end = Some(end);
            }
            _ => {
                let rest = Rest { pooled, end: Some(end), ..Rest::default() };
                let delivery = Delivery { cached_tokens: to.cached_tokens, ..Delivery::of(rest) };
                self.batch.deliveries.push((to.reader, delivery));
            }
        }
    }

    /// Hands over without waiting, with what has changed in the prefix cache; false where the fan-out has
    /// no room yet, so that all stays for the next time.
    pub(super) fn send(&mut self, scheduler: &mut Scheduler) -> bool {
        if !self.batch.deliveries.is_empty() || scheduler.has_block_events() {
            match self.fan_out.try_reserve() {
                Ok(permit) => {
                    self.batch.blocks = scheduler.take_block_events();
                    permit.send(std::mem::take(&mut self.batch));
                }
                Err(mpsc::error::TrySendError::Full(())) => return false,
                // The supervisor has given this life up and ended its streams.
                Err(mpsc::error::TrySendError::Closed(())) => self.batch.deliveries.clear(),
            }
        }
        true
    }
}

/// Fills the readers' channels from the engine's batches, and the log.
pub(super) async fn fan_out(mut batches: mpsc::Receiver<Batch>, telemetry: Arc<Telemetry>, log: Arc<KvLog>) {
    while let Some(Batch { deliveries, blocks }) = batches.recv().await {
        for (reader, delivery) in deliveries {
            reader.deliver(delivery, &telemetry);
        }
        log.append(blocks);
    }
}
