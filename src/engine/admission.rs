//! The door: a request is rendered, tokenized and checked, and becomes a sequence and a stream, or is refused.

use std::{
    collections::VecDeque,
    hash::{BuildHasher, Hasher, RandomState},
    sync::{Arc, mpsc::TrySendError},
    time::Duration,
};

use tokio::{sync::OwnedSemaphorePermit, time::Instant};

use super::{
    Engine, ModelInfo, ModelText, Prompt, Request,
    channel::ReaderControl,
    grammars::Grammars,
    sequence::Sequence,
    stream::{Event, Generation, Started, TextOut, timer},
    supervisor::Life,
};
use crate::{
    config::EngineConfig,
    error::{Code, Error, Result},
    ids::{SequenceId, TokenId},
    params::{SamplingParams, Usage},
    sampling::{self, grammar::Grammar},
    text::{Detokenizer, RenderOptions, StopMatcher, Tokenizer},
};

/// When a refused client should come back.
pub(super) const RETRY_AFTER: Duration = Duration::from_secs(1);
/// Text longer than this is tokenized on a thread of its own, so that it delays no other task.
const INLINE_TEXT_BYTES: usize = 4096;
/// A character takes four bytes at the most and no vocabulary has tokens of more characters than this, so text beyond
/// `max_model_len` times as many bytes cannot fit and is refused before it is tokenized.
const MAX_BYTES_A_TOKEN: usize = 1024;

/// A number that nobody can guess, for requests without a seed.
pub(super) fn random_seed() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// A request that passed all checks.
pub(super) struct Admitted {
    prompt: Arc<[TokenId]>,
    params: Arc<SamplingParams>,
    priority: i32,
    cache_salt: Option<String>,
    deadline: Option<Instant>,
    text: Option<TextOut>,
    grammar: Option<Arc<Grammar>>,
}

impl Admitted {
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
        let Request { prompt, mut params, priority, cache_salt, deadline, .. } = request;
        sampling::validate(&params, &info.eos_token_ids, info.vocab_size)?;
        if let Some(k) = params.stop_token_ids.iter().position(|id| id.index() >= info.vocab_size) {
            let why = format!("is {}, but the vocabulary has {} entries", params.stop_token_ids[k], info.vocab_size);
            return Err(Error::invalid(format!("stop_token_ids[{k}]"), why));
        }
        if text.tokenizer.is_none() && !params.stop.is_empty() {
            return Err(Error::invalid("stop", "the model has no tokenizer; use stop_token_ids"));
        }
        let prompt = tokenize(text, config, prompt).await?;
        if let Some((k, id)) = prompt.iter().enumerate().find(|(_, id)| id.index() >= info.vocab_size) {
            let why = format!("is {id}, but the vocabulary has {} entries", info.vocab_size);
            return Err(Error::invalid(format!("prompt.token_ids[{k}]"), why));
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
            Some(outputs) => Some(grammars.get(outputs, deadline).await?),
            None => None,
        };
        params.seed = params.seed.or_else(|| Some(random_seed()));
        let params = Arc::new(params);
        let text = text.tokenizer.as_ref().map(|tokenizer| TextOut {
            detokenizer: detokenizer(tokenizer, &prompt, params.skip_special_tokens),
            matcher: StopMatcher::new(&params.stop, params.include_stop_str_in_output),
            params: params.clone(),
        });
        Ok(Self { prompt: prompt.into(), params, priority, cache_salt, deadline, text, grammar })
    }

    /// Queues the sequence and opens its stream.
    ///
    /// # Errors
    /// `Unavailable` where the engine failed meanwhile.
    pub(super) fn submit(
        self,
        id: SequenceId,
        life: &Life,
        engine: Engine,
        permit: OwnedSemaphorePermit,
    ) -> Result<Generation> {
        let (control, deliveries) =
            ReaderControl::new(engine.config().stream_capacity_tokens, life.bell.clone(), permit);
        let prompt_tokens = u32::try_from(self.prompt.len()).unwrap_or(u32::MAX);
        let registration = life.register(id, &control);
        let sequence = Sequence {
            priority: self.priority,
            eos: engine.info().eos_token_ids.as_slice().into(),
            salt: self.cache_salt.map(Arc::from),
            grammar: self.grammar,
            ..Sequence::new(id, self.prompt, self.params.clone(), control.clone())
        };
        match life.requests.try_send((sequence, control.clone())) {
            // A life that was given up has ended its streams already, and this one came too late to be among them.
            Ok(()) if !life.stopped() => life.bell.ring(),
            Ok(()) | Err(TrySendError::Disconnected(_)) => {
                return Err(Error::new(Code::Unavailable, "the engine is restarting").retry_after(RETRY_AFTER));
            }
            // Unreachable: the channel has a place for every permit.
            Err(TrySendError::Full(_)) => return Err(Error::internal("the engine's queue overflowed")),
        }
        Ok(Generation {
            ready: VecDeque::from([Event::Started(Started {
                prompt_tokens,
                params: SamplingParams::clone(&self.params),
            })]),
            deliveries,
            control,
            text: self.text,
            deadline: timer(self.deadline),
            usage: Usage { prompt_tokens, ..Usage::default() },
            done: false,
            engine,
            _registration: registration,
        })
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

async fn tokenize(text: &ModelText, config: &EngineConfig, prompt: Prompt) -> Result<Vec<TokenId>> {
    let tokenizer = || {
        text.tokenizer.clone().ok_or_else(|| {
            Error::new(Code::FailedPrecondition, "the model came without a tokenizer: send the prompt as token ids")
        })
    };
    let (text, add_special_tokens) = match prompt {
        Prompt::Tokens(ids) => return Ok(ids),
        Prompt::Text(text) => (text, true),
        // The template writes the special tokens itself.
        Prompt::Chat(messages) => {
            let template = text.chat_template.as_ref().ok_or_else(|| {
                Error::new(Code::FailedPrecondition, "the model came without a chat template: use Generation instead")
            })?;
            (template.render(&messages, &RenderOptions::default())?, false)
        }
    };
    let tokenizer = tokenizer()?;
    if text.len() > config.max_model_len.saturating_mul(MAX_BYTES_A_TOKEN) {
        let why = format!("has {} bytes, which cannot fit in a context of {} tokens", text.len(), config.max_model_len);
        return Err(Error::invalid("prompt.text", why));
    }
    encode(tokenizer, text, add_special_tokens).await
}

async fn encode(tokenizer: Arc<Tokenizer>, text: String, add_special_tokens: bool) -> Result<Vec<TokenId>> {
    if text.len() <= INLINE_TEXT_BYTES {
        return tokenizer.encode(&text, add_special_tokens);
    }
    tokio::task::spawn_blocking(move || tokenizer.encode(&text, add_special_tokens))
        .await
        .map_err(|panic| Error::internal(format!("tokenization failed: {panic}")))?
}
