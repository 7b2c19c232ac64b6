//! Embeddings: inputs become sequences that end with their prompts, in the same line and batch as those that generate.
//!
//! A call takes places among the live requests as it is admitted, one an input and
//! [`EMBED_AT_ONCE`](limits::EMBED_AT_ONCE) at the most, or it is refused; each place takes the next input when its own is
//! done. Everything is tokenized and checked before anything runs, so a call with a wrong input costs nothing. Dropping the
//! call ends its sequences within a step.

mod vector;

use std::{
    net::IpAddr,
    sync::{Arc, atomic::Ordering, mpsc::TrySendError},
};

use futures::{StreamExt, stream::FuturesUnordered};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::{Instant, timeout_at},
};

use super::{
    Engine, ModelImpl, admission,
    block_manager::Salt,
    channel::{Delivery, ReaderControl, ReaderSpec, RequestTag, Rest},
    live::{Holder, LivePlaces},
    portions::Full,
    sequence::Sequence,
    supervisor::{Life, Registration},
    unavailable,
};
use crate::{
    error::{Code, Error, Result},
    ids::{SequenceId, TokenId},
    params::{Pooling, SamplingParams, Usage, limits},
    telemetry::Outcome,
};

/// KiB of vectors of all calls together, those included that are being sent.
pub(super) const VECTORS_KIB: usize = 256 << 10;

/// What a client wants vectors of.
#[derive(Clone, Debug)]
pub struct EmbedRequest {
    /// What it is aborted by; empty where it is not to be found.
    pub request_id: String,
    /// Whose request it is, as of one that generates.
    pub tenant: Option<Arc<str>>,
    /// Where it comes from, likewise.
    pub network: Option<IpAddr>,
    /// At least one.
    pub inputs: Vec<EmbedInput>,
    /// What the vectors are like.
    pub options: EmbedOptions,
    /// Smaller runs earlier; equal ones in order of arrival.
    pub priority: i32,
    /// Only requests with the same salt share cached prefixes.
    pub cache_salt: Option<String>,
    /// When the answer is no longer wanted.
    pub deadline: Option<Instant>,
    /// Inputs that may run at once.
    pub most_at_once: usize,
}

/// One input.
#[derive(Clone, Debug, PartialEq)]
pub enum EmbedInput {
    /// Tokenized with the tokenizer's special tokens.
    Text(String),
    /// Taken as they are.
    Tokens(Vec<TokenId>),
}

/// What the vectors are like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EmbedOptions {
    /// How hidden states become one vector; as the model's files say unless set.
    pub pooling: Option<Pooling>,
    /// Vectors have the length 1.
    pub normalize: bool,
    /// Only the first so many numbers, before they are normalized.
    pub dimensions: Option<u32>,
    /// An input that is too long loses its end; it is refused otherwise.
    pub truncate: bool,
}

impl Default for EmbedOptions {
    fn default() -> Self {
        Self { pooling: None, normalize: true, dimensions: None, truncate: false }
    }
}

impl EmbedRequest {
    /// A request with the usual options.
    #[must_use]
    pub fn new(inputs: Vec<EmbedInput>) -> Self {
        Self {
            request_id: String::new(),
            tenant: None,
            network: None,
            inputs,
            options: EmbedOptions::default(),
            priority: 0,
            cache_salt: None,
            deadline: None,
            most_at_once: limits::EMBED_AT_ONCE,
        }
    }
}

/// The vector of one input.
#[derive(Clone, Debug, PartialEq)]
pub struct Embedding {
    /// As many as the model is wide, or as were asked for.
    pub values: Vec<f32>,
    /// Tokens of the input, and those of them that the prefix cache had.
    pub usage: Usage,
}

/// The vectors of one call, in the order of its inputs.
#[derive(Debug)]
pub struct Embeddings {
    /// One an input.
    pub embeddings: Vec<Embedding>,
    /// How they were pooled.
    pub pooling: Pooling,
    /// What they take of the room that the vectors of all calls have; whoever sends them holds it until they are sent.
    pub room: Arc<OwnedSemaphorePermit>,
}

impl Embeddings {
    /// What all inputs cost together.
    #[must_use]
    pub fn usage(&self) -> Usage {
        let mut total = Usage::default();
        for Embedding { usage, .. } in &self.embeddings {
            total.prompt_tokens = total.prompt_tokens.saturating_add(usage.prompt_tokens);
            total.cached_tokens = total.cached_tokens.saturating_add(usage.cached_tokens);
        }
        total
    }
}

impl Engine {
    /// The vectors of some inputs.
    ///
    /// # Errors
    /// As [`admit_embed`](Self::admit_embed) and [`EmbedBatch::run`].
    pub async fn embed(&self, request: EmbedRequest) -> Result<Embeddings> {
        self.admit_embed(request).await?.run().await
    }

    /// Admits some inputs, which are then ready to run.
    ///
    /// # Errors
    /// - `Unavailable` while draining or restarting, `ResourceExhausted` while the queue is full or too many vectors are
    ///   under way: both before any text is tokenized.
    /// - `InvalidArgument` naming the field: `inputs[3].text`, `inputs[3].token_ids[7]`, `dimensions`.
    /// - `Unimplemented` where the model runs through candle-transformers.
    /// - `FailedPrecondition` where the model lacks the tokenizer, or its files ask for a pooling that is not offered.
    /// - `DeadlineExceeded` where the deadline has passed, or cannot be met at the rates that are measured.
    pub async fn admit_embed(&self, request: EmbedRequest) -> Result<EmbedBatch> {
        let deadline = request.deadline;
        let admission = async {
            let admitted = self.try_admit_embed(request).await;
            admitted.inspect_err(|error| self.telemetry().record_refused(error.code))
        };
        before(deadline, admission).await
    }

    async fn try_admit_embed(&self, request: EmbedRequest) -> Result<EmbedBatch> {
        if self.inner.supervised.draining() {
            return Err(unavailable("the server is draining: it finishes what it has and takes nothing new"));
        }
        let life = self.inner.supervised.life().ok_or_else(|| unavailable("the engine is restarting"))?;
        let EmbedRequest { request_id, tenant, network, inputs, options, priority, cache_salt, .. } = request;
        let EmbedRequest { deadline, most_at_once, .. } = request;
        let (pooling, dimensions) = self.check_options(&options)?;
        check_number(inputs.len(), dimensions)?;
        let wanted = inputs.len().min(most_at_once).clamp(1, self.config().max_live());
        let places =
            places(&life, Holder::of(tenant.as_ref(), network), wanted).map_err(|full| self.full(&life, full))?;
        let kib = u32::try_from((inputs.len() * dimensions * size_of::<f32>()).div_ceil(1024)).unwrap_or(u32::MAX);
        let room = self.inner.vectors.clone().try_acquire_many_owned(kib);
        let room = room.map_err(|_| self.exhausted("too many vectors are being computed and sent: try again later"))?;
        if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
            return Err(Error::new(Code::DeadlineExceeded, "the deadline passed before the request was admitted"));
        }
        let (engine, truncate) = (self.clone(), options.truncate);
        // On a thread of its own: thousands of inputs, however short, would delay other tasks. The places go along with
        // the work, which goes on where the caller goes away.
        let tokenize = move || engine.prompts(inputs, truncate).map(|prompts| (prompts, places));
        let (prompts, places) = tokio::task::spawn_blocking(tokenize)
            .await
            .map_err(|panic| Error::internal(format!("tokenization failed: {panic}")))??;
        let least = match pooling {
            Pooling::Mean => prompts.iter().map(|prompt| prompt.len()).sum(),
            // All but the last token may be cached.
            Pooling::Last => prompts.len(),
        };
        self.check_prefill(&life, deadline, (tenant.as_deref(), priority), least)?;
        let salt = admission::salt(tenant.as_deref(), cache_salt.as_deref());
        let weight = self.shares().weight(tenant.as_deref());
        let tokens = self.telemetry().tenant(tenant.as_deref());
        let tag = Arc::new(RequestTag { id: request_id, tenant, tokens: Some(tokens), adapter: None });
        let engine = self.clone();
        let batch = Batch { engine, life, places, prompts, pooling, options, priority, salt, tag, weight };
        Ok(EmbedBatch { batch, room, deadline })
    }

    /// The pooling in force, and the numbers a vector has.
    fn check_options(&self, options: &EmbedOptions) -> Result<(Pooling, usize)> {
        let info = self.info();
        if info.model_impl == ModelImpl::CandleTransformers {
            let why = "this model runs through candle-transformers, which gives logits and no hidden states";
            return Err(Error::new(Code::Unimplemented, why));
        }
        let own = || {
            let why = "the model's files ask for a pooling that is not offered here: say mean or last in the request";
            info.pooling.ok_or_else(|| Error::new(Code::FailedPrecondition, why))
        };
        let pooling = options.pooling.map_or_else(own, Ok)?;
        let dimensions = match options.dimensions {
            None => info.embedding_size,
            Some(dimensions) if (1..=info.embedding_size).contains(&(dimensions as usize)) => dimensions as usize,
            Some(dimensions) => {
                let why = format!("is {dimensions}, must be from 1 to the {} that the model has", info.embedding_size);
                return Err(Error::invalid("dimensions", why));
            }
        };
        Ok((pooling, dimensions))
    }

    /// The tokens of all inputs, each of at least one and at most as many as fit.
    fn prompts(&self, inputs: Vec<EmbedInput>, truncate: bool) -> Result<Vec<Arc<[TokenId]>>> {
        let (config, info) = (self.config(), self.info());
        // The cache must hold an input whole.
        let most = config.max_model_len.min(config.longest_cached());
        let mut prompts = Vec::with_capacity(inputs.len());
        for (k, input) in inputs.into_iter().enumerate() {
            let mut ids = match input {
                EmbedInput::Tokens(ids) => ids,
                EmbedInput::Text(text) => {
                    let field = format!("inputs[{k}].text");
                    admission::tokenize_text(&self.inner.text, config, &text, &field)?
                }
            };
            if let Some((j, id)) = ids.iter().enumerate().find(|(_, id)| id.index() >= info.vocab_size) {
                let why = format!("is {id}, but the vocabulary has {} entries", info.vocab_size);
                return Err(Error::invalid(format!("inputs[{k}].token_ids[{j}]"), why));
            }
            if truncate {
                ids.truncate(most);
            }
            if ids.is_empty() {
                return Err(Error::invalid(format!("inputs[{k}]"), "is empty: it has no token"));
            }
            if ids.len() > most {
                let why = format!("has {} tokens, at most {most} fit here", ids.len());
                return Err(Error::invalid(format!("inputs[{k}]"), why));
            }
            prompts.push(ids.into());
        }
        Ok(prompts)
    }
}

/// Whether a call may ask for so many vectors of so many numbers.
fn check_number(inputs: usize, dimensions: usize) -> Result<()> {
    if inputs == 0 {
        return Err(Error::invalid("inputs", "is empty: there is nothing to embed"));
    }
    let most = limits::EMBED_INPUTS.min(limits::EMBED_NUMBERS / dimensions.max(1)).max(1);
    if inputs > most {
        let why = format!("has {inputs} entries, at most {most} of {dimensions} numbers each are allowed in one call");
        return Err(Error::invalid("inputs", why));
    }
    Ok(())
}

/// Up to `wanted` places among the live requests, as many as their holder gets.
///
/// # Errors
/// Why it gets none.
fn places(life: &Life, holder: Option<Holder>, wanted: usize) -> Result<Vec<Place>, Full> {
    let take = || life.live.take(holder.as_ref(), 1).map(Arc::new);
    let first = take()?;
    Ok(std::iter::once(first).chain((1..wanted).map_while(|_| take().ok())).collect())
}

/// What `work` comes to, if it does before the deadline.
async fn before<T>(deadline: Option<Instant>, work: impl Future<Output = Result<T>>) -> Result<T> {
    match deadline {
        Some(deadline) => timeout_at(deadline, work).await.unwrap_or_else(|_| {
            Err(Error::new(Code::DeadlineExceeded, "the deadline passed before the last vector was computed"))
        }),
        None => work.await,
    }
}

/// A call for vectors that was admitted; nothing of it runs yet. Dropping it gives up its places.
pub struct EmbedBatch {
    batch: Batch,
    room: OwnedSemaphorePermit,
    deadline: Option<Instant>,
}

impl EmbedBatch {
    /// Tokens of all its inputs.
    #[must_use]
    pub fn prompt_tokens(&self) -> usize {
        self.batch.prompts.iter().map(|prompt| prompt.len()).sum()
    }

    /// Computes the vectors.
    ///
    /// # Errors
    /// `DeadlineExceeded`; `Cancelled` where it is aborted; `Internal` where the engine failed, `Unavailable` where it
    /// restarts meanwhile.
    pub async fn run(self) -> Result<Embeddings> {
        let Self { batch, room, deadline } = self;
        let pooling = batch.pooling;
        let embeddings = before(deadline, batch.run()).await?;
        Ok(Embeddings { embeddings, pooling, room: room.into() })
    }
}

/// A place among the live requests, which the inputs of a call take one after another.
type Place = Arc<LivePlaces>;

/// The inputs of a call.
struct Batch {
    engine: Engine,
    life: Arc<Life>,
    /// At least one.
    places: Vec<Place>,
    prompts: Vec<Arc<[TokenId]>>,
    pooling: Pooling,
    options: EmbedOptions,
    priority: i32,
    salt: Option<Salt>,
    tag: Arc<RequestTag>,
    /// Of the tenant.
    weight: u32,
}

impl Batch {
    /// Runs all inputs, as many at once as there are places.
    async fn run(mut self) -> Result<Vec<Embedding>> {
        let places = std::mem::take(&mut self.places);
        let mut left = self.prompts.iter().enumerate();
        let mut running = FuturesUnordered::new();
        // Zipped the other way round, an input too many would be taken.
        for (place, (k, prompt)) in places.into_iter().zip(left.by_ref()) {
            running.push(self.one(k, prompt, place));
        }
        let mut done: Vec<Option<Embedding>> = self.prompts.iter().map(|_| None).collect();
        while let Some((k, place, outcome)) = running.next().await {
            done[k] = Some(outcome?);
            if let Some((k, prompt)) = left.next() {
                running.push(self.one(k, prompt, place));
            }
        }
        done.into_iter().map(|one| one.ok_or_else(|| Error::internal("an input was left out"))).collect()
    }

    async fn one(&self, k: usize, prompt: &Arc<[TokenId]>, place: Place) -> (usize, Place, Result<Embedding>) {
        let outcome = match self.submit(prompt, place.clone()) {
            Ok(pending) => pending.vector().await,
            Err(error) => Err(error),
        };
        let finish = |(values, cached_tokens)| {
            let prompt_tokens = u32::try_from(prompt.len()).unwrap_or(u32::MAX);
            let dimensions = self.options.dimensions.map(|dimensions| dimensions as usize);
            let values = vector::finish(values, dimensions, self.options.normalize)?;
            Ok(Embedding { values, usage: Usage { prompt_tokens, cached_tokens, completion_tokens: 0 } })
        };
        (k, place, outcome.and_then(finish))
    }

    /// Puts an input in line.
    fn submit(&self, prompt: &Arc<[TokenId]>, place: Place) -> Result<Pending> {
        let Self { engine, life, .. } = self;
        let id = SequenceId(engine.inner.next_sequence.fetch_add(1, Ordering::Relaxed));
        let spec = ReaderSpec {
            capacity_tokens: engine.config().stream_capacity_tokens,
            credits: None,
            prompt_tokens: u32::try_from(prompt.len()).unwrap_or(u32::MAX),
            place: (self.priority, id),
            request: self.tag.clone(),
        };
        let (control, deliveries) = ReaderControl::new(spec, life.bell.clone(), place);
        let registration = life.register(id, &control);
        let params = Arc::new(SamplingParams { max_tokens: Some(0), ..SamplingParams::default() });
        let sequence = Sequence {
            priority: self.priority,
            tenant: self.tag.tenant.clone(),
            weight: self.weight,
            salt: self.salt.clone(),
            pooling: Some(self.pooling),
            ..Sequence::new(id, prompt.clone(), params, control.clone())
        };
        match life.requests.try_send(vec![(sequence, control.clone())]) {
            // A life that was given up has ended its streams already, and this one came too late to be among them.
            Ok(()) if !life.stopped() => life.bell.ring(),
            Ok(()) | Err(TrySendError::Disconnected(_)) => return Err(unavailable("the engine is restarting")),
            // Unreachable: the channel has room for all who have a place.
            Err(TrySendError::Full(_)) => return Err(Error::internal("the engine's queue overflowed")),
        }
        if let Some(tokens) = &self.tag.tokens {
            tokens.record_prompt(prompt.len());
        }
        Ok(Pending { deliveries, control, engine: engine.clone(), _registration: registration })
    }
}

/// An input in line, or being computed. Dropping it ends it within a step.
struct Pending {
    deliveries: mpsc::Receiver<Delivery>,
    control: Arc<ReaderControl>,
    engine: Engine,
    /// A place in the list of streams to end if the engine dies.
    _registration: Registration,
}

impl Pending {
    /// The pooled hidden state, and how many tokens were cached.
    async fn vector(mut self) -> Result<(Vec<f32>, u32)> {
        while let Some(delivery) = self.deliveries.recv().await {
            match delivery.rest.map(|rest| *rest) {
                Some(Rest { pooled: Some(values), .. }) => return Ok((values, delivery.cached_tokens)),
                Some(Rest { end: Some(Err(error)), .. }) => return Err(error),
                _ => {}
            }
        }
        Err(Error::internal("the engine ended without finishing this input"))
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if self.control.cancel() {
            self.control.record_end(Outcome::Abort, self.engine.telemetry());
        }
    }
}

/// Room for the vectors of all calls together.
pub(super) fn vectors() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(VECTORS_KIB))
}
