//! From a request to its events, and from events to a gRPC response stream.

use std::{
    ops::RangeInclusive,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use futures::{Stream, StreamExt, future::ready};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};
use tonic::{Response, codegen::BoxStream};

use super::{Backend, FieldPaths, convert, status::status, told::Told};
use crate::{
    engine::{self, Event, Generation, Progress, Prompt, Receipt, Request, SlowReader, Timings},
    error::{Error, Result},
    proto::candlewick::v1 as wire,
    server::{access::Caller, events::Events, held::HoldsNoPlace},
};

/// Shortest and longest interval between two heartbeats that a request may ask for. Each looks at all live requests, to
/// say what stands before this one.
const HEARTBEAT_MS: RangeInclusive<u32> = 100..=3_600_000;

/// Has the engine admit a request; what it complains of is named by the wire's paths.
///
/// # Errors
/// As [`Events::open`].
pub(crate) async fn open(backend: &Backend, caller: &Caller, request: Request, paths: &FieldPaths) -> Result<Events> {
    Events::open(backend, caller, request).await.map_err(|error| paths.locate(error))
}

/// The response stream: `message` makes an event, with its number from 1, into what goes out for it.
pub(crate) fn respond<M: Send + 'static>(
    events: Events,
    mut message: impl FnMut(u64, Event) -> Option<M> + Send + 'static,
) -> BoxStream<M> {
    let mut seq = 0;
    Box::pin(events.filter_map(move |event| {
        seq += 1;
        ready(event.map(|event| message(seq, event)).map_err(status).transpose())
    }))
}

/// What goes out for numbered events.
pub(super) fn numbered<M: From<(u64, Told)> + Send + 'static>(
    events: impl Stream<Item = Result<(u64, Told)>> + Send + 'static,
) -> BoxStream<M> {
    Box::pin(events.map(|event| event.map(M::from).map_err(status)))
}

/// A stream for whose reader nothing is held that others wait for.
pub(crate) fn onlooking<T>(stream: T) -> Response<T> {
    let mut response = Response::new(stream);
    response.extensions_mut().insert(HoldsNoPlace);
    response
}

/// What of a request the events of its stream repeat, and how often it says that it is alive.
#[derive(Clone, Debug)]
pub(super) struct Teller {
    pub(super) request_id: String,
    pub(super) priority: i32,
    pub(super) slow_reader: SlowReader,
    /// Zero: never.
    pub(super) heartbeat: Duration,
    /// Where the stream can be resumed.
    pub(super) stream_id: Option<String>,
    /// Whether the answer is a chat's.
    pub(super) is_chat: bool,
}

impl Teller {
    /// Of a request, with so much time between two heartbeats.
    pub(super) fn new(request: &Request, heartbeat: Duration) -> Self {
        Self {
            request_id: request.request_id.clone(),
            priority: request.priority,
            slow_reader: request.stream.slow_reader,
            heartbeat,
            stream_id: None,
            is_chat: matches!(request.prompt, Prompt::Chat(_)),
        }
    }

    /// The first event: what is in force.
    pub(super) fn started(&self, backend: &Backend, event: engine::Started) -> wire::Started {
        let mut started = convert::started(&self.request_id, &backend.engine.info().name, event);
        started.stream_id.clone_from(&self.stream_id);
        started.slow_reader = Some(convert::slow_reader_to_wire(self.slow_reader).into());
        started.priority = Some(self.priority);
        started.heartbeat_interval_ms = Some(u32::try_from(self.heartbeat.as_millis()).unwrap_or(u32::MAX));
        started
    }

    /// How often a stream says that it is alive, of a request's options, before they are taken apart.
    ///
    /// # Errors
    /// `InvalidArgument` with the field's path.
    pub(super) fn heartbeat(backend: &Backend, options: Option<&wire::RequestOptions>) -> Result<Duration> {
        let asked = options.and_then(|options| options.heartbeat_interval_ms);
        if let Some(ms) = asked.filter(|ms| *ms != 0 && !HEARTBEAT_MS.contains(ms)) {
            let (least, most) = HEARTBEAT_MS.into_inner();
            let why = format!("is {ms}, must be 0 for none, or from {least} to {most}");
            return Err(Error::invalid("options.heartbeat_interval_ms", why));
        }
        let ms = asked.map_or(backend.streams.heartbeat_interval_ms as u64, u64::from);
        Ok(Duration::from_millis(ms))
    }

    /// Ticks when a heartbeat is due, where there are any.
    pub(super) fn heart(&self) -> Option<Interval> {
        (!self.heartbeat.is_zero()).then(|| {
            let mut heart = interval_at(Instant::now() + self.heartbeat, self.heartbeat);
            heart.set_missed_tick_behavior(MissedTickBehavior::Delay);
            heart
        })
    }
}

/// The events of one stream as they are told: effective parameters first, heartbeats until the first token, receipts last.
pub(super) struct Telling {
    events: Events,
    teller: Teller,
    backend: Backend,
    heart: Option<Interval>,
    /// Kept for the receipts.
    effective: Option<wire::SamplingParams>,
}

impl Telling {
    pub(super) fn new(backend: &Backend, events: Events, teller: Teller) -> Self {
        let heart = teller.heart();
        Self { events, teller, backend: backend.clone(), heart, effective: None }
    }

    /// The stream itself, while it lasts.
    pub(super) fn generation(&mut self) -> Option<&mut Generation> {
        self.events.generation()
    }

    /// The same events, numbered from 1.
    pub(super) fn numbered(self) -> impl Stream<Item = Result<(u64, Told)>> + Send + 'static {
        let mut seq = 0;
        self.map(move |event| {
            seq += 1;
            event.map(|event| (seq, event))
        })
    }

    fn tell(&mut self, event: Event) -> Told {
        match event {
            Event::Started(event) => {
                let started = self.teller.started(&self.backend, *event);
                self.effective.clone_from(&started.effective);
                Told::Started(Box::new(started))
            }
            Event::Prompt(prompt) => Told::PromptLogprobs(convert::prompt_logprobs(prompt)),
            Event::Delta(delta) => {
                self.heart = None;
                Told::Delta(match self.teller.is_chat {
                    true => convert::chat_delta(delta),
                    false => convert::delta(delta.index, delta.text, delta.tokens),
                })
            }
            Event::Finished(event) => Told::Finished(Box::new(finished(&self.backend, self.effective.as_ref(), event))),
        }
    }

    /// A heartbeat, if one is due and there is anything to wait for.
    fn beat(&mut self, cx: &mut Context<'_>) -> Option<Told> {
        let heart = self.heart.as_mut()?;
        if heart.poll_tick(cx).is_pending() {
            return None;
        }
        let told = progress_to_wire(self.events.generation()?.progress());
        match told {
            Some(progress) => {
                // So that the next tick wakes this task.
                if let Some(heart) = &mut self.heart {
                    heart.reset();
                }
                Some(Told::Progress(progress))
            }
            None => {
                self.heart = None;
                None
            }
        }
    }
}

impl Stream for Telling {
    type Item = Result<Told>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        match self.events.poll_next_unpin(cx) {
            Poll::Ready(Some(Ok(event))) => Poll::Ready(Some(Ok(self.tell(event)))),
            Poll::Ready(Some(Err(error))) => Poll::Ready(Some(Err(error))),
            Poll::Ready(None) => Poll::Ready(None),
            Poll::Pending => match self.beat(cx) {
                Some(told) => Poll::Ready(Some(Ok(told))),
                None => Poll::Pending,
            },
        }
    }
}

/// The end of a sequence, with its timings and its receipt. `effective` is what [`Teller::started`] told.
pub(super) fn finished(
    backend: &Backend,
    effective: Option<&wire::SamplingParams>,
    mut event: engine::Finished,
) -> wire::Finished {
    let (timings, proof) = (timings_to_wire(event.timings), event.receipt.take());
    let receipt = proof.map(|proof| receipt(backend, effective, *proof));
    wire::Finished { timings: Some(timings), receipt, ..convert::finished(event) }
}

fn receipt(backend: &Backend, effective: Option<&wire::SamplingParams>, proof: Receipt) -> wire::Receipt {
    let hex = |bytes: [u8; 32]| bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let engine = &backend.engine;
    wire::Receipt {
        model: engine.info().name.clone(),
        weights_hash: engine.info().weights_hash.clone(),
        template_hash: engine.template_hash().to_owned(),
        seed: proof.seed,
        parameters: effective.filter(|_| !proof.was_edited).cloned(),
        prompt_hash: hex(proof.prompt_hash),
        output_hash: hex(proof.output_hash),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    }
}

pub(super) fn timings_to_wire(timings: Timings) -> wire::Timings {
    let ms = |duration: Duration| duration.as_secs_f64() * 1e3;
    wire::Timings {
        queue_ms: ms(timings.queue),
        prefill_ms: ms(timings.prefill),
        decode_ms: ms(timings.decode),
        total_ms: ms(timings.total),
    }
}

pub(super) fn progress_to_wire(progress: Progress) -> Option<wire::Progress> {
    use wire::progress::Stage;
    let stage = match progress {
        Progress::Queued { position, eta } => Stage::Queued(wire::Queued {
            position: u32::try_from(position).unwrap_or(u32::MAX),
            eta_ms: eta.map(|eta| u64::try_from(eta.as_millis()).unwrap_or(u64::MAX)),
        }),
        Progress::Prefill { done, total, cached } => {
            Stage::Prefill(wire::Prefill { done_tokens: done, total_tokens: total, cached_tokens: cached })
        }
        Progress::Decode => return None,
    };
    Some(wire::Progress { stage: Some(stage) })
}
