//! The door: a request is rendered, tokenized and checked, and becomes a sequence and a stream, or is refused.

use std::{
    collections::VecDeque,
    hash::{BuildHasher, Hasher, RandomState},
    sync::{Arc, mpsc::TrySendError},
    time::Duration,
};

use tokio::time::Instant;

use super::{
    Engine, History, ModelInfo, ModelText, Prompt, PromptOptions, Request, SlowReader, StreamOptions,
    adapters::salt_with,
    bad_words::BadWords,
    best_of::BestOf,
    block_manager::Salt,
    channel::{ReaderControl, ReaderSpec, RequestTag},
    chat,
    grammars::Grammars,
    live::LivePlaces,
    request_log,
    sequence::{Guard, Sequence},
    stream::{Event, Generation, Output, Started, TextOut, timer},
    supervisor::Life,
};
use crate::{
    config::EngineConfig,
    error::{Code, Error, Result},
    ids::{SequenceId, TokenId},
    layers::lora::Adapter,
    params::{SamplingParams, Usage},
    sampling::{self, grammar::Grammar},
    text::{Detokenizer, OutputParser, StopMatcher, Tokenizer, token_runs},
};

/// When a refused client should come back.
pub(super) const RETRY_AFTER: Duration = Duration::from_secs(1);
/// Text longer than this is tokenized on a thread of its own, so that it delays no other task.
const INLINE_TEXT_BYTES: usize = 4096;
/// How much further a coalescing reader may fall behind than others.
const COALESCED: usize = 16;
/// A character takes four bytes at the most and no vocabulary has tokens of more characters than this, so text beyond
/// `max_model_len` times as many bytes cannot fit and is refused before it is tokenized.
const MAX_BYTES_A_TOKEN: usize = 1024;

/// A number that nobody can guess, for requests without a seed.
pub(super) fn random_seed() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// A request that passed all checks.
pub(super) struct Admitted {
    request_id: String,
    tenant: Option<Arc<str>>,
    prompt: Arc<[TokenId]>,
    params: Arc<SamplingParams>,
    priority: i32,
    /// Of its blocks in the prefix cache.
    salt: Option<Salt>,
    adapter: Option<Arc<Adapter>>,
    deadline: Option<Instant>,
    stream: StreamOptions,
    /// A chat's prompt as text, where a conversation wants to know.
    rendered: Option<String>,
    /// For each sequence its own.
    text: Vec<Option<TextOut>>,
    dry_breakers: Arc<[Vec<TokenId>]>,
    grammar: Option<Arc<Grammar>>,
}

/// Who shares cached prefixes: those of one tenant that give the same salt. What a client gives can never be what another
/// tenant has, since a tenant's salt begins with the length of its name and others with a colon. Routers are told of blocks
/// that a tenant has, not of those for which a client gave a salt.
pub(super) fn salt(tenant: Option<&str>, given: Option<&str>) -> Option<Salt> {
    let given = given.filter(|given| !given.is_empty());
    match (tenant, given) {
        (None, None) => None,
        (None, Some(given)) => Some(Salt::untold(format!(":{given}"))),
        (Some(tenant), None) => Some(Salt::told(format!("{}:{tenant}", tenant.len()))),
        (Some(tenant), Some(given)) => Some(Salt::untold(format!("{}:{tenant}{given}", tenant.len()))),
    }
}

/// What a request needs of the engine.
#[derive(Clone)]
pub(super) struct Needs {
    pub prompt: Arc<[TokenId]>,
    /// Who may share its cached blocks.
    pub salt: Option<Salt>,
    pub deadline: Option<Instant>,
    pub tenant: Option<Arc<str>>,
    pub priority: i32,
    /// Tokens that must be generated before the answer can be complete.
    pub least_tokens: usize,
    /// Whether what is cached of its prompt need not be computed again.
    pub reuses_prefix: bool,
}

impl Admitted {
    /// What it needs of the engine.
    pub(super) fn needs(&self) -> Needs {
        let params = &self.params;
        let nothing_ends_it = params.ignore_eos && params.stop.is_empty() && params.stop_token_ids.is_empty();
        let least_tokens = if nothing_ends_it { params.max_tokens.unwrap_or(1) } else { params.min_tokens };
        Needs {
            prompt: self.prompt.clone(),
            salt: self.salt.clone(),
            deadline: self.deadline,
            tenant: self.tenant.clone(),
            priority: self.priority,
            least_tokens: least_tokens.max(1) as usize,
            reuses_prefix: params.prompt_logprobs.is_none(),
        }
    }

    /// Tokenizes and checks.
    ///
    /// # Errors
    /// As [`Engine::generate`].
    pub(super) async fn new(
        info: &ModelInfo,
        text: &ModelText,
        grammars: &Grammars,
        config: &EngineConfig,
        request: Request,
    ) -> Result<Self> {
        let Request { request_id, model, prompt, prompt_options, mut params, priority, .. } = request;
        let Request { cache_salt, tenant, deadline, stream, .. } = request;
        let adapter = adapter(info, model.as_deref())?;
        let salt = salt_with(adapter.as_deref(), salt(tenant.as_deref(), cache_salt.as_deref()));
        sampling::validate(&params, &info.eos_token_ids, info.vocab_size)?;
        if let Some(k) = params.stop_token_ids.iter().position(|id| id.index() >= info.vocab_size) {
            let why = format!("is {}, but the vocabulary has {} entries", params.stop_token_ids[k], info.vocab_size);
            return Err(Error::invalid(format!("stop_token_ids[{k}]"), why));
        }
        if text.tokenizer.is_none() && !params.bad_words.is_empty() {
            return Err(Error::invalid("bad_words", "the model has no tokenizer; use banned_token_ids"));
        }
        if text.tokenizer.is_none() && !params.stop.is_empty() {
            return Err(Error::invalid("stop", "the model has no tokenizer; use stop_token_ids"));
        }
        params.seed = params.seed.or_else(|| Some(random_seed()));
        let asked_for_form = params.structured_outputs.is_some();
        let history = stream.history.clone();
        let tokenized = tokenize(text, config, (prompt, prompt_options), &mut params, history).await?;
        let Tokenized { prompt, parsers, markers, rendered, logged } = tokenized;
        let prompt = prompt_options.kept(prompt, config.max_model_len, &params);
        // What a chat has set.
        if params.thinking_budget.is_some() || params.structured_outputs.is_some() {
            sampling::validate(&params, &info.eos_token_ids, info.vocab_size)?;
        }
        if let Some((k, id)) = prompt.iter().enumerate().find(|(_, id)| id.index() >= info.vocab_size) {
            let why = format!("is {id}, but the vocabulary has {} entries", info.vocab_size);
            return Err(Error::invalid(format!("prompt.token_ids[{k}]"), why));
        }
        if let Some(log) = config.log_requests {
            request_log::write(log, &request_id, logged.as_deref(), &prompt, &params);
        }
        let room = room_for_output(config, prompt.len())?;
        if let Some(max_tokens) = params.max_tokens.filter(|&max_tokens| max_tokens as usize > room) {
            let why = format!(
                "is {max_tokens}, but after a prompt of {} tokens the context of {} has room for {room}",
                prompt.len(),
                config.max_model_len
            );
            return Err(Error::invalid("max_tokens", why));
        }
        params.max_tokens = params.max_tokens.or(u32::try_from(room).ok());
        if params.min_tokens as usize > room {
            let why = format!("is {}, but the context has room for {room}", params.min_tokens);
            return Err(Error::invalid("min_tokens", why));
        }
        let grammar = match &params.structured_outputs {
            Some(outputs) => {
                Some(grammars.get(tenant.as_ref(), outputs, deadline).await.map_err(|error| match asked_for_form {
                    true => error,
                    false => of_tool_choice(error),
                })?)
            }
            None => None,
        };
        let params = Arc::new(params);
        let mut parsers = parsers.into_iter();
        let text_out = |tokenizer, parser| TextOut {
            detokenizer: detokenizer(tokenizer, &prompt, params.skip_special_tokens).keeping(markers.clone()),
            matcher: StopMatcher::new(&params.stop, params.include_stop_str_in_output),
            params: params.clone(),
            parser,
            carried: String::new(),
            found: None,
        };
        let dry_breakers = dry_breakers(text, &params).await?;
        let text = (0..params.num_sequences())
            .map(|_| text.tokenizer.as_ref().map(|tokenizer| text_out(tokenizer, parsers.next())))
            .collect();
        let prompt = prompt.into();
        Ok(Self {
            request_id,
            tenant,
            prompt,
            params,
            priority,
            salt,
            adapter,
            deadline,
            stream,
            rendered,
            text,
            dry_breakers,
            grammar,
        })
    }

    /// Queues the sequences, of which `id` is the first one's, and opens their stream. `places` are as many.
    ///
    /// # Errors
    /// `Unavailable` where the engine failed meanwhile.
    pub(super) fn submit(
        self,
        id: SequenceId,
        life: &Arc<Life>,
        engine: Engine,
        mut places: LivePlaces,
    ) -> Result<Generation> {
        let prompt_tokens = u32::try_from(self.prompt.len()).unwrap_or(u32::MAX);
        let eos: Arc<[TokenId]> = engine.info().eos_token_ids.as_slice().into();
        let bad_words: Arc<[String]> = self.params.bad_words.as_slice().into();
        let weight = engine.shares().weight(self.tenant.as_deref());
        let tokens = engine.telemetry().tenant(self.tenant.as_deref());
        tokens.record_prompt(self.prompt.len());
        let adapter = self.adapter.as_ref().map(|adapter| adapter.name().into());
        let tag = RequestTag { id: self.request_id, tenant: self.tenant, tokens: Some(tokens), adapter };
        let request = Arc::new(tag);
        let (mut group, mut outputs) = (Vec::new(), Vec::new());
        for (index, text) in self.text.into_iter().enumerate() {
            let id = SequenceId(id.0 + index as u64);
            let place = places.split().ok_or_else(|| Error::internal("fewer places than sequences"))?;
            let guard = text.as_ref().filter(|_| !bad_words.is_empty());
            let guard = guard.map(|text| BadWords::new(bad_words.clone(), text.detokenizer.clone()));
            // Room for what the guard may hold back, and for as many tokens without text among it.
            let most_held = guard.as_ref().map_or(0, |guard| 2 * guard.most_held());
            let patience = if self.stream.slow_reader == SlowReader::Coalesce { COALESCED } else { 1 };
            let spec = ReaderSpec {
                capacity_tokens: engine.config().stream_capacity_tokens * patience + most_held,
                credits: self.stream.credits,
                prompt_tokens,
                place: (self.priority, id),
                request: request.clone(),
            };
            let (control, deliveries) = ReaderControl::new(spec, life.bell.clone(), place);
            let registration = life.register(id, &control);
            let params = params_of(&self.params, index);
            let sequence = Sequence {
                priority: self.priority,
                tenant: request.tenant.clone(),
                weight,
                eos: eos.clone(),
                salt: self.salt.clone(),
                adapter: self.adapter.clone(),
                dry_breakers: self.dry_breakers.clone(),
                grammar: self.grammar.clone(),
                guard: guard.map(|guard| Box::new(guard) as _),
                lease: self.stream.lease.clone().map(|lease| lease as _),
                is_cut_off: self.stream.slow_reader == SlowReader::Abort,
                ..Sequence::new(id, self.prompt.clone(), params, control.clone())
            };
            group.push((sequence, control.clone()));
            let usage = Usage { prompt_tokens, ..Usage::default() };
            let hash = Default::default();
            outputs.push(Output { deliveries, control, text, usage, hash, done: false, _registration: registration });
        }
        match life.requests.try_send(group) {
            // A life that was given up has ended its streams already, and this one came too late to be among them.
            Ok(()) if !life.stopped() => life.bell.ring(),
            Ok(()) | Err(TrySendError::Disconnected(_)) => {
                return Err(Error::new(Code::Unavailable, "the engine is restarting").retry_after(RETRY_AFTER));
            }
            // Unreachable: the channel has room for all who have a place.
            Err(TrySendError::Full(_)) => return Err(Error::internal("the engine's queue overflowed")),
        }
        let (n, of) = (self.params.n as usize, outputs.len());
        let started = Started { prompt_tokens, params: SamplingParams::clone(&self.params) };
        let best_of = (of > n).then(|| BestOf::new(n, of, self.params.logprobs.is_some()));
        Ok(Generation {
            prompt: self.prompt,
            rendered: self.rendered,
            params: self.params,
            was_edited: false,
            life: life.clone(),
            coalesces: self.stream.slow_reader == SlowReader::Coalesce,
            failed: None,
            origin: None,
            outcome: None,
            error: None,
            ready: VecDeque::from([Event::Started(Box::new(started))]),
            outputs,
            turn: 0,
            best_of,
            deadline: timer(self.deadline),
            done: false,
            engine,
        })
    }
}

/// The adapter that a request names as its model, where that is one.
fn adapter(info: &ModelInfo, model: Option<&str>) -> Result<Option<Arc<Adapter>>> {
    let Some(name) = model.filter(|&name| name != info.name) else { return Ok(None) };
    // It was there when the call was read, or the face has not looked.
    let missing = || {
        Error::new(Code::NotFound, format!("model {:?} is not served here", name.chars().take(80).collect::<String>()))
    };
    info.adapters.get(name).map(Some).ok_or_else(missing)
}

/// The parameters of sequence `index` of a request. As in vLLM, it draws as one with the seed `seed + index` alone
/// would; the prompt's log-probabilities come with the first; who is ranked needs log-probabilities.
fn params_of(params: &Arc<SamplingParams>, index: usize) -> Arc<SamplingParams> {
    let is_ranked = params.num_sequences() > params.n as usize;
    if index == 0 && !is_ranked {
        return params.clone();
    }
    Arc::new(SamplingParams {
        seed: params.seed.map(|seed| seed.wrapping_add(index as u64)),
        prompt_logprobs: params.prompt_logprobs.filter(|_| index == 0),
        logprobs: params.logprobs.or(is_ranked.then_some(0)),
        ..SamplingParams::clone(params)
    })
}

/// The same complaint of a grammar that the request knows nothing of.
fn of_tool_choice(error: Error) -> Error {
    match error.violations.first() {
        Some(violation) => Error::invalid("tool_choice", format!("cannot be enforced: {}", violation.description)),
        None => error,
    }
}

/// The tokens of `dry_sequence_breakers`.
async fn dry_breakers(text: &ModelText, params: &Arc<SamplingParams>) -> Result<Arc<[Vec<TokenId>]>> {
    match &text.tokenizer {
        Some(tokenizer) if params.wants_dry() => {
            let (tokenizer, params) = (tokenizer.clone(), params.clone());
            // Looks at the whole vocabulary.
            tokio::task::spawn_blocking(move || token_runs(&tokenizer, &params.dry_sequence_breakers))
                .await
                .map_err(|panic| Error::internal(format!("tokenization failed: {panic}")))?
                .map(Arc::from)
        }
        _ => Ok(Arc::from([])),
    }
}

/// After a prompt a leading space is part of the text; after special tokens alone, the text begins.
fn detokenizer(tokenizer: &Arc<Tokenizer>, prompt: &[TokenId], skip_special: bool) -> Detokenizer {
    if prompt.iter().all(|&id| tokenizer.is_special(id)) {
        Detokenizer::at_start_of_text(tokenizer.clone(), skip_special)
    } else {
        Detokenizer::new(tokenizer.clone(), skip_special)
    }
}

/// Whether a request's prompt leaves room in the context for all that its answer may have; not where it cannot be made.
pub(super) async fn fits(text: &ModelText, config: &EngineConfig, request: Request) -> bool {
    let Request { prompt, prompt_options, mut params, stream, .. } = request;
    let tokenized = tokenize(text, config, (prompt, prompt_options), &mut params, stream.history).await;
    let answer = params.max_tokens.unwrap_or(1).max(1) as usize;
    tokenized.is_ok_and(|tokenized| tokenized.prompt.len().saturating_add(answer) <= config.max_model_len)
}

/// Tokens that fit behind the prompt.
fn room_for_output(config: &EngineConfig, prompt_tokens: usize) -> Result<usize> {
    match prompt_tokens {
        0 => Err(Error::invalid("prompt", "is empty: there is nothing to continue")),
        n if n >= config.max_model_len => {
            let why = format!("has {n} tokens, but the context of {} must hold one more", config.max_model_len);
            Err(Error::invalid("prompt", why))
        }
        n => Ok(config.max_model_len - n),
    }
}

/// A prompt as ids, and how its answer is read.
struct Tokenized {
    prompt: Vec<TokenId>,
    /// Of a chat, one a sequence.
    parsers: Vec<OutputParser>,
    /// Special tokens that the parser must see.
    markers: Vec<TokenId>,
    /// A chat's prompt as text, where a conversation wants to know.
    rendered: Option<String>,
    /// The prompt as text, where the log is to have it.
    logged: Option<String>,
}

async fn tokenize(
    text: &ModelText,
    config: &EngineConfig,
    (prompt, options): (Prompt, PromptOptions),
    params: &mut SamplingParams,
    history: Option<Arc<History>>,
) -> Result<Tokenized> {
    let tokenizer = || tokenizer_of(text);
    let (mut parsers, mut markers) = (Vec::new(), Vec::new());
    let (text, add_special_tokens) = match prompt {
        Prompt::Tokens(prompt) => return Ok(Tokenized { prompt, parsers, markers, rendered: None, logged: None }),
        Prompt::Text(text) => (text, options.add_special_tokens.unwrap_or(true)),
        // The template writes the special tokens itself.
        Prompt::Chat(chat) => {
            chat::check(&chat)?;
            if text.chat_template.is_none() {
                return Err(chat::no_template());
            }
            // A template can take a while.
            let (text, tokenizer, mut own) = (text.clone(), tokenizer()?, params.clone());
            let seed = random_seed();
            let render = move || chat::render(&text, &tokenizer, &chat, &mut own, seed).map(|rendered| (rendered, own));
            let rendered = tokio::task::spawn_blocking(render)
                .await
                .map_err(|panic| Error::internal(format!("the chat template failed: {panic}")))?;
            let (rendered, own) = rendered?;
            *params = own;
            (parsers, markers) = (rendered.parsers, rendered.markers);
            (rendered.prompt, options.add_special_tokens.unwrap_or(false))
        }
    };
    let tokenizer = tokenizer()?;
    check_bytes(&text, config, "prompt.text")?;
    let logged = config.log_requests.map(|_| text.clone());
    if let Some(history) = history.filter(|_| !add_special_tokens) {
        let rendered = text.clone();
        let prompt = tokio::task::spawn_blocking(move || history.encode(&tokenizer, &text))
            .await
            .map_err(|panic| Error::internal(format!("tokenization failed: {panic}")))??;
        return Ok(Tokenized { prompt, parsers, markers, rendered: Some(rendered), logged });
    }
    let prompt = encode(tokenizer, text, add_special_tokens).await?;
    Ok(Tokenized { prompt, parsers, markers, rendered: None, logged })
}

fn tokenizer_of(text: &ModelText) -> Result<Arc<Tokenizer>> {
    text.tokenizer.clone().ok_or_else(|| {
        Error::new(Code::FailedPrecondition, "the model came without a tokenizer: send the prompt as token ids")
    })
}

/// Whether a text can fit.
fn check_bytes(text: &str, config: &EngineConfig, field: &str) -> Result<()> {
    if text.len() > config.max_model_len.saturating_mul(MAX_BYTES_A_TOKEN) {
        let why = format!("has {} bytes, which cannot fit in a context of {} tokens", text.len(), config.max_model_len);
        return Err(Error::invalid(field, why));
    }
    Ok(())
}

/// The tokens of a text that stands in `field`, with the tokenizer's special tokens. Takes as long as the text is long.
///
/// # Errors
/// `FailedPrecondition` without a tokenizer, `InvalidArgument` where the text can never fit.
pub(super) fn tokenize_text(text: &ModelText, config: &EngineConfig, input: &str, field: &str) -> Result<Vec<TokenId>> {
    let tokenizer = tokenizer_of(text)?;
    check_bytes(input, config, field)?;
    tokenizer.encode(input, true)
}

async fn encode(tokenizer: Arc<Tokenizer>, text: String, add_special_tokens: bool) -> Result<Vec<TokenId>> {
    if text.len() <= INLINE_TEXT_BYTES {
        return tokenizer.encode(&text, add_special_tokens);
    }
    tokio::task::spawn_blocking(move || tokenizer.encode(&text, add_special_tokens))
        .await
        .map_err(|panic| Error::internal(format!("tokenization failed: {panic}")))?
}
