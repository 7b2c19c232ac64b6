//! THE API: an [`Engine`] takes [`Request`]s and gives [`Generation`]s, streams of [`Event`]s.
//!
//! Admission (render, tokenize, check, refuse) happens here, on the caller's task; policy and arithmetic happen on one
//! engine thread behind it ([`step`](self)), which a supervisor keeps alive.

mod adapters;
mod admission;
mod bad_words;
mod best_of;
pub mod block_manager;
mod channel;
mod chat;
pub mod drill;
mod embed;
pub mod executor;
pub mod fake;
mod faults;
mod grammars;
mod history;
mod kv_log;
mod lease;
mod live;
pub mod load;
mod operator;
mod outbox;
mod portions;
#[cfg(test)]
mod properties;
mod quote;
pub mod rates;
mod request_log;
pub mod runner;
pub mod scheduler;
pub mod sequence;
mod session;
mod session_memory;
mod shares;
mod step;
mod stream;
mod supervisor;

use std::{
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{Semaphore, watch},
    time::Instant,
};

pub use self::{
    adapters::Adapters,
    block_manager::BlockEvent,
    embed::{EmbedBatch, EmbedInput, EmbedOptions, EmbedRequest, Embedding, Embeddings},
    grammars::vocabulary,
    history::History,
    kv_log::{KvBatch, KvRead, KvSubscription},
    lease::{LeaseControl, LeaseState},
    operator::{Flushed, Loads, TenantLoad, Which},
    quote::Quote,
    session::{Beginning, Session, SessionSettings, Turn, TurnStart, WhenFull},
    session_memory::SessionMemory,
    shares::Shares,
    stream::{Delta, Event, Finished, Generation, Progress, Receipt, Started, StreamEdit, Timings},
    supervisor::ExecutorFactory,
};
use self::{
    admission::Admitted,
    grammars::Grammars,
    live::Holder,
    rates::Rates,
    supervisor::{Life, Supervised},
};
pub(crate) use self::{
    chat::prompt_text,
    portions::{Full, Portions},
};
use crate::{
    config::EngineConfig,
    error::{Code, Error, Result},
    ids::{SequenceId, TokenId},
    params::{Pooling, SamplingParams, limits},
    telemetry::{ModelBytes, Telemetry, spans::Origin},
    text::{ChatPrompt, ChatTemplate, Tokenizer},
};

/// What a client asks for.
#[derive(Clone, Debug)]
pub struct Request {
    /// Names the request in logs.
    pub request_id: String,
    /// The model's name or an adapter's; without one, the model itself.
    pub model: Option<String>,
    /// What to continue.
    pub prompt: Prompt,
    /// How it becomes token ids, and how many of them are kept.
    pub prompt_options: PromptOptions,
    /// How.
    pub params: SamplingParams,
    /// Smaller runs earlier, among those of the same tenant; equal ones in order of arrival.
    pub priority: i32,
    /// Only requests with the same salt share cached prefixes.
    pub cache_salt: Option<String>,
    /// Whose request it is: tenants take turns by what they were served, and only requests of one share cached prefixes.
    /// None is a tenant like any other.
    pub tenant: Option<Arc<str>>,
    /// Where it comes from, by its network's first address: whose share of the queue its places are of if it has no tenant.
    /// None is everybody's.
    pub network: Option<IpAddr>,
    /// When the answer is no longer wanted.
    pub deadline: Option<Instant>,
    /// How its reader is treated, and what it goes on from.
    pub stream: StreamOptions,
}

/// How the reader of a stream is treated, and what the stream goes on from.
#[derive(Clone, Debug, Default)]
pub struct StreamOptions {
    /// What becomes of a reader that does not keep up.
    pub slow_reader: SlowReader,
    /// Tokens that the reader allows at first; the sequence has no row while none are left. Without, it does not count.
    pub credits: Option<u64>,
    /// Keeps the blocks after the end, and may have those of the conversation so far.
    pub lease: Option<Arc<LeaseControl>>,
    /// The conversation so far: a chat's prompt keeps its ids where its text begins the same.
    pub history: Option<Arc<History>>,
}

/// What becomes of a reader that does not keep up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SlowReader {
    /// The sequence leaves the batch until half of what waits is taken.
    #[default]
    Pause,
    /// It may fall further behind, and gets what waits in one piece.
    Coalesce,
    /// The stream ends with `ABORTED`.
    Abort,
}

impl Request {
    /// A request with default parameters.
    #[must_use]
    pub fn new(prompt: Prompt) -> Self {
        let request_id = format!("{:016x}", admission::random_seed());
        Self {
            request_id,
            model: None,
            prompt,
            prompt_options: PromptOptions::default(),
            params: SamplingParams::default(),
            priority: 0,
            cache_salt: None,
            tenant: None,
            network: None,
            deadline: None,
            stream: StreamOptions::default(),
        }
    }
}

/// How a prompt becomes token ids, and how many of them are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PromptOptions {
    /// Whether the tokenizer adds its special tokens. Where that is left open it does to a text, and not to a chat, whose
    /// template writes them itself.
    pub add_special_tokens: Option<bool>,
    /// Keeps the end of a prompt that is longer.
    pub truncate: Option<Truncate>,
}

/// How much of a prompt's end is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Truncate {
    /// So many tokens.
    To(usize),
    /// What leaves room in the context for the tokens that the answer may have, or for one where that is left open.
    ToFit,
}

impl PromptOptions {
    /// The end of a prompt that is kept of it, in a context of so many tokens.
    pub(crate) fn kept(self, mut prompt: Vec<TokenId>, max_model_len: usize, params: &SamplingParams) -> Vec<TokenId> {
        let most = match self.truncate {
            None => return prompt,
            Some(Truncate::To(tokens)) => tokens,
            Some(Truncate::ToFit) => {
                let answer = params.max_tokens.unwrap_or(1).max(params.min_tokens).max(1);
                max_model_len.saturating_sub(answer as usize)
            }
        };
        prompt.drain(..prompt.len().saturating_sub(most));
        prompt
    }
}

/// What to continue.
#[derive(Clone, Debug, PartialEq)]
pub enum Prompt {
    /// Tokenized with the tokenizer's special tokens.
    Text(String),
    /// Taken as they are.
    Tokens(Vec<TokenId>),
    /// Rendered with the model's chat template; the answer comes in pieces: text, reasoning, tool calls.
    Chat(ChatPrompt),
}

/// Whether the engine takes requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// It does.
    Serving,
    /// It failed and is coming back.
    Restarting,
    /// It finishes what it has and takes nothing new.
    Draining,
}

/// What is served.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelInfo {
    /// The name that requests use.
    pub name: String,
    /// Where it was loaded from.
    pub path: String,
    /// `LlamaForCausalLM`, …
    pub architecture: String,
    /// `llama`, …
    pub model_type: String,
    /// Entries of the vocabulary: every token id is below.
    pub vocab_size: usize,
    /// Numbers of a hidden state, and so of an embedding.
    pub embedding_size: usize,
    /// How embeddings are pooled where a request does not say; none where the model's files ask for what is not offered.
    pub pooling: Option<Pooling>,
    /// Tokens that end a sequence.
    pub eos_token_ids: Vec<TokenId>,
    /// The token that begins one, if any.
    pub bos_token_id: Option<TokenId>,
    /// What computes it.
    pub model_impl: ModelImpl,
    /// Number of weights.
    pub num_parameters: u64,
    /// Those that every token is multiplied by: all but the embedding and the head.
    pub block_parameters: u64,
    /// Bytes of the weights as they are kept.
    pub weight_bytes: u64,
    /// Bytes of the keys and values of one token.
    pub kv_bytes_per_token: u64,
    /// Format of the weights.
    pub dtype: String,
    /// Tells these weights from others; what it is made of depends on where they came from.
    pub weights_hash: String,
    /// What requests may name besides the model.
    pub adapters: Adapters,
    /// What requests get where they leave a parameter open.
    pub default_params: SamplingParams,
}

/// What computes a model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ModelImpl {
    /// Code of ours: one batch over a paged KV cache.
    #[default]
    Candlewick,
    /// A module of candle-transformers: sequences one after another, each with a copy of the model, so slower.
    CandleTransformers,
}

/// What turns text into tokens and back, as far as the model brings it.
#[derive(Clone, Default)]
pub struct ModelText {
    /// Absent where the model comes without: then token ids go in and out.
    pub tokenizer: Option<Arc<Tokenizer>>,
    /// Absent where the model is no chat model.
    pub chat_template: Option<Arc<ChatTemplate>>,
}

/// A running engine. Cheap to clone; it stops when the last clone and the last [`Generation`] are gone.
#[derive(Clone)]
pub struct Engine {
    inner: Arc<Inner>,
}

struct Inner {
    info: ModelInfo,
    text: ModelText,
    grammars: Grammars,
    supervised: Arc<Supervised>,
    next_sequence: AtomicU64,
    next_lease: AtomicU64,
    /// One permit a quote that is worked on.
    quotes: Arc<Semaphore>,
    /// One permit a KiB of embeddings.
    vectors: Arc<Semaphore>,
    /// Of the model's chat templates; empty where there are none.
    template_hash: String,
    /// Of the tenants.
    shares: Shares,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.supervised.give_up();
    }
}

impl Engine {
    /// Starts an engine over executors that `factory` makes, one for each time that the engine starts. Needs a tokio
    /// runtime.
    ///
    /// # Errors
    /// The factory's.
    pub async fn start(
        info: ModelInfo,
        text: ModelText,
        config: EngineConfig,
        telemetry: Arc<Telemetry>,
        factory: ExecutorFactory,
    ) -> Result<Self> {
        telemetry.set_cache_config(config.block_size, config.num_blocks);
        let (weights, kv_per_token) = (info.weight_bytes, info.kv_bytes_per_token);
        telemetry.set_model_bytes(ModelBytes { weights, kv_per_token });
        let supervised = Supervised::new(config, telemetry, info.adapters.clone());
        supervised.start(factory).await?;
        let grammars = Grammars::new(&info, &text);
        let template_hash = text.chat_template.as_ref().map(|template| template.hash()).unwrap_or_default();
        let (next_sequence, next_lease) = (AtomicU64::new(0), AtomicU64::new(0));
        let quotes = Arc::new(Semaphore::new(quote::QUOTES_AT_ONCE));
        let (shares, vectors) = (Shares::default(), embed::vectors());
        let inner = Inner {
            info,
            text,
            grammars,
            supervised,
            next_sequence,
            next_lease,
            quotes,
            vectors,
            template_hash,
            shares,
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// What is served.
    #[must_use]
    pub fn info(&self) -> &ModelInfo {
        &self.inner.info
    }

    /// The limits in force.
    #[must_use]
    pub fn config(&self) -> &EngineConfig {
        &self.inner.supervised.config
    }

    /// The tokenizer and chat template, as far as there are any.
    #[must_use]
    pub fn text(&self) -> &ModelText {
        &self.inner.text
    }

    /// The engine's metrics.
    #[must_use]
    pub fn telemetry(&self) -> &Arc<Telemetry> {
        &self.inner.supervised.telemetry
    }

    /// How fast it works, as measured.
    #[must_use]
    pub fn rates(&self) -> &Arc<Rates> {
        &self.inner.supervised.rates
    }

    /// The shares of the tenants.
    #[must_use]
    pub fn shares(&self) -> &Shares {
        &self.inner.shares
    }

    /// SHA-256 of the model's chat templates, in hexadecimal; empty where there are none.
    #[must_use]
    pub fn template_hash(&self) -> &str {
        &self.inner.template_hash
    }

    /// Whether requests are taken, as it changes.
    #[must_use]
    pub fn health(&self) -> watch::Receiver<Health> {
        self.inner.supervised.health.subscribe()
    }

    /// Turns health to [`Health::Draining`], so that who watches it sends nothing new; what comes is still taken.
    pub fn announce_drain(&self) {
        self.inner.supervised.announce_drain();
    }

    /// A reader of what the prefix cache holds, from behind batch `after` of its log.
    ///
    /// # Errors
    /// `Unimplemented` where the cache or its log is turned off, `ResourceExhausted` where there are too many readers.
    pub fn subscribe_kv_events(&self, after: Option<u64>) -> Result<KvSubscription> {
        if !self.config().enable_prefix_caching || !self.config().enable_kv_cache_events {
            return Err(Error::new(
                Code::Unimplemented,
                "this server was started without prefix caching or its events",
            ));
        }
        self.inner.supervised.kv_log.subscribe(after)
    }

    /// From now on every new request is refused with `UNAVAILABLE`; those under way go on.
    pub fn begin_drain(&self) {
        self.inner.supervised.begin_drain();
    }

    /// Requests that the engine or a reader holds now.
    #[must_use]
    pub fn num_live(&self) -> usize {
        self.inner.supervised.life().map_or(0, |life| life.live.num_held())
    }

    /// Whether the queue is full, and somebody has found it so in that time.
    #[must_use]
    pub fn is_crowded(&self, within: Duration) -> bool {
        self.inner.supervised.life().is_some_and(|life| life.live.is_wanted(within))
    }

    /// Returns when no request is under way.
    pub async fn drained(&self) {
        let mut health = self.health();
        // Between two lives there are no requests; in each, all places are free when all requests are gone.
        while let Some(life) = self.inner.supervised.life() {
            tokio::select! {
                () = life.live.all_free() => return,
                // An error means that nobody is left who could make requests.
                _changed = health.changed() => {}
            }
        }
    }

    /// Admits a request.
    ///
    /// # Errors
    /// - `Unavailable` while draining or restarting, `ResourceExhausted` while the queue is full, or what is left of it is for
    ///   other tenants: all before the text is tokenized, with a hint when to come back.
    /// - `InvalidArgument` naming the field where the request can never work.
    /// - `FailedPrecondition` where it needs a tokenizer or chat template that the model does not have.
    /// - `DeadlineExceeded` where the deadline has passed, or cannot be met at the rates that are measured.
    pub async fn generate(&self, request: Request) -> Result<Generation> {
        let origin = self.telemetry().spans().map(|_| Origin::here(request.request_id.clone()));
        let mut admitted = self.admit(request).await;
        match &mut admitted {
            Ok(generation) => generation.origin = origin.map(Box::new),
            Err(error) => self.telemetry().record_refused(error.code),
        }
        admitted
    }

    async fn admit(&self, request: Request) -> Result<Generation> {
        if self.inner.supervised.draining() {
            return Err(unavailable("the server is draining: it finishes what it has and takes nothing new"));
        }
        let life = self.inner.supervised.life().ok_or_else(|| unavailable("the engine is restarting"))?;
        // Every sequence of a request counts; how many there may be is checked with the other parameters.
        let sequences = request.params.num_sequences().clamp(1, limits::SEQUENCES);
        if sequences > self.config().max_live() {
            let field = if request.params.best_of.is_some() { "best_of" } else { "n" };
            let why = format!("asks for {sequences} sequences, this server takes {}", self.config().max_live());
            return Err(Error::invalid(field, why));
        }
        let holder = Holder::of(request.tenant.as_ref(), request.network);
        let places = life.live.take(holder.as_ref(), sequences).map_err(|full| self.full(&life, full))?;
        if request.deadline.is_some_and(|deadline| deadline <= Instant::now()) {
            return Err(Error::new(Code::DeadlineExceeded, "the deadline passed before the request was admitted"));
        }
        let Inner { info, text, grammars, .. } = &*self.inner;
        let id = SequenceId(self.inner.next_sequence.fetch_add(sequences as u64, Ordering::Relaxed));
        self.check_queue(&life, &request, id)?;
        let admitted = Admitted::new(info, text, grammars, self.config(), request).await?;
        self.check_deadline(&life, admitted.needs(), id).await?;
        let generation = admitted.submit(id, &life, self.clone(), places)?;
        let max_tokens = generation.params.max_tokens.unwrap_or_default();
        self.telemetry().record_admitted(generation.prompt().len(), generation.params.n, max_tokens);
        Ok(generation)
    }

    /// What a request hears that finds too few places free.
    fn full(&self, life: &Life, full: Full) -> Error {
        let why = match full {
            Full::Everybody => {
                life.live.want();
                format!("the queue is full ({} requests wait)", self.config().max_waiting)
            }
            Full::Tenant(held) => {
                format!(
                    "{held} requests of this tenant or network are here, and what is left of the queue is for others"
                )
            }
        };
        self.exhausted(&format!("{why}: try again later"))
    }

    /// Something of which there is none left, and when there should be.
    fn exhausted(&self, why: &str) -> Error {
        let after = self.rates().retry_after().unwrap_or(admission::RETRY_AFTER);
        Error::new(Code::ResourceExhausted, why).retry_after(after)
    }
}

fn unavailable(message: &str) -> Error {
    Error::new(Code::Unavailable, message).retry_after(admission::RETRY_AFTER)
}
