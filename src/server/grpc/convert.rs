//! Between the messages of `candlewick.v1` and the engine's types, one function a message.

use std::{
    hash::{BuildHasher, RandomState},
    sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering},
    },
};

use super::{status::cut, structured_outputs};
use crate::{
    engine::{self, ModelInfo, Prompt, Request},
    error::{Code, Error, Result},
    ids::TokenId,
    params::{FinishReason, SampledToken, SamplingParams, Usage},
    proto::candlewick::v1 as wire,
};

/// Bytes a name that a client gives: request id, model, cache salt.
const NAME_BYTES: usize = 256;

/// A request id of the server's own drawing: unique in this process, and hardly ever drawn by another.
pub(crate) fn draw_request_id() -> String {
    static PROCESS: LazyLock<u64> = LazyLock::new(|| RandomState::new().hash_one("request ids"));
    static DRAWN: AtomicU64 = AtomicU64::new(1);
    format!("{:016x}-{}", *PROCESS, DRAWN.fetch_add(1, Ordering::Relaxed))
}

/// The client's request id, or one drawn for it.
///
/// # Errors
/// `InvalidArgument` where it is too long.
pub(crate) fn request_id(field: &str, given: Option<String>) -> Result<String> {
    match given.filter(|id| !id.is_empty()) {
        Some(id) => name(field, id),
        None => Ok(draw_request_id()),
    }
}

fn name(field: &str, value: String) -> Result<String> {
    if value.len() > NAME_BYTES {
        return Err(Error::invalid(field, format!("has {} bytes, at most {NAME_BYTES} are allowed", value.len())));
    }
    Ok(value)
}

/// Whether the server serves `model`; none means the one it serves.
///
/// # Errors
/// `NotFound`, which names the model served.
pub(crate) fn check_model(model: Option<&str>, info: &ModelInfo) -> Result<()> {
    match model {
        Some(model) if model != info.name => Err(Error::new(
            Code::NotFound,
            format!("model {:?} is not served here; {:?} is", cut(model, NAME_BYTES), info.name),
        )),
        _ => Ok(()),
    }
}

/// A request of `candlewick.v1`. The deadline is left open.
///
/// # Errors
/// `InvalidArgument` with the field's path, `NotFound` for another model.
pub(crate) fn request(prompt: Prompt, options: Option<wire::RequestOptions>, info: &ModelInfo) -> Result<Request> {
    let options = options.unwrap_or_default();
    check_model(options.model.as_deref(), info)?;
    let mut set = options.sampling.unwrap_or_default();
    let structured_outputs = structured_outputs::from_wire(set.structured_outputs.take())?;
    let mut params = sampling(set, &info.default_params);
    params.structured_outputs = structured_outputs.or(params.structured_outputs);
    let cache_salt = options.cache_salt.filter(|salt| !salt.is_empty());
    Ok(Request {
        request_id: request_id("options.request_id", options.request_id)?,
        prompt,
        params,
        priority: options.priority.unwrap_or(0),
        cache_salt: cache_salt.map(|salt| name("options.cache_salt", salt)).transpose()?,
        deadline: None,
    })
}

/// The prompt of a generation.
///
/// # Errors
/// `InvalidArgument` where there is none.
pub(crate) fn prompt(prompt: Option<wire::Prompt>) -> Result<Prompt> {
    match prompt.and_then(|prompt| prompt.prompt) {
        Some(wire::prompt::Prompt::Text(text)) => Ok(Prompt::Text(text)),
        Some(wire::prompt::Prompt::TokenIds(ids)) => Ok(Prompt::Tokens(ids.ids.into_iter().map(TokenId).collect())),
        None => Err(Error::invalid("prompt", "must be set: text or token_ids")),
    }
}

/// Sampling parameters: what is set over the server's defaults. Ranges are the engine's to check.
fn sampling(set: wire::SamplingParams, defaults: &SamplingParams) -> SamplingParams {
    let mut logit_bias: Vec<_> = set.logit_bias.into_iter().map(|(id, bias)| (TokenId(id), bias)).collect();
    // A map of the wire has no order; what depends on one here must not differ from run to run.
    logit_bias.sort_unstable_by_key(|&(id, _)| id);
    let list_or = |list: Vec<u32>, default: &[TokenId]| match list.is_empty() {
        true => default.to_vec(),
        false => list.into_iter().map(TokenId).collect(),
    };
    SamplingParams {
        temperature: set.temperature.unwrap_or(defaults.temperature),
        top_k: set.top_k.unwrap_or(defaults.top_k),
        top_p: set.top_p.unwrap_or(defaults.top_p),
        min_p: set.min_p.unwrap_or(defaults.min_p),
        repetition_penalty: set.repetition_penalty.unwrap_or(defaults.repetition_penalty),
        frequency_penalty: set.frequency_penalty.unwrap_or(defaults.frequency_penalty),
        presence_penalty: set.presence_penalty.unwrap_or(defaults.presence_penalty),
        logit_bias: if logit_bias.is_empty() { defaults.logit_bias.clone() } else { logit_bias },
        seed: set.seed.or(defaults.seed),
        max_tokens: set.max_tokens.or(defaults.max_tokens),
        min_tokens: set.min_tokens.unwrap_or(defaults.min_tokens),
        stop: if set.stop.is_empty() { defaults.stop.clone() } else { set.stop },
        stop_token_ids: list_or(set.stop_token_ids, &defaults.stop_token_ids),
        include_stop_str_in_output: set.include_stop_str_in_output.unwrap_or(defaults.include_stop_str_in_output),
        ignore_eos: set.ignore_eos.unwrap_or(defaults.ignore_eos),
        skip_special_tokens: set.skip_special_tokens.unwrap_or(defaults.skip_special_tokens),
        logprobs: set.logprobs.or(defaults.logprobs),
        structured_outputs: defaults.structured_outputs.clone(),
    }
}

/// The first event, with every parameter in force.
pub(crate) fn started(request_id: &str, model: &str, started: engine::Started) -> wire::Started {
    wire::Started {
        request_id: request_id.to_owned(),
        model: model.to_owned(),
        effective: Some(effective(started.params)),
        prompt_tokens: started.prompt_tokens,
    }
}

fn effective(params: SamplingParams) -> wire::SamplingParams {
    wire::SamplingParams {
        temperature: Some(params.temperature),
        top_k: Some(params.top_k),
        top_p: Some(params.top_p),
        min_p: Some(params.min_p),
        repetition_penalty: Some(params.repetition_penalty),
        frequency_penalty: Some(params.frequency_penalty),
        presence_penalty: Some(params.presence_penalty),
        logit_bias: params.logit_bias.into_iter().map(|(id, bias)| (id.0, bias)).collect(),
        seed: params.seed,
        max_tokens: params.max_tokens,
        min_tokens: Some(params.min_tokens),
        stop: params.stop,
        stop_token_ids: params.stop_token_ids.into_iter().map(|id| id.0).collect(),
        include_stop_str_in_output: Some(params.include_stop_str_in_output),
        ignore_eos: Some(params.ignore_eos),
        skip_special_tokens: Some(params.skip_special_tokens),
        logprobs: params.logprobs,
        structured_outputs: params.structured_outputs.map(structured_outputs::to_wire),
    }
}

/// New tokens.
pub(crate) fn delta(text: String, tokens: Vec<SampledToken>) -> wire::Delta {
    wire::Delta {
        text,
        token_ids: tokens.iter().map(|token| token.id.0).collect(),
        logprobs: tokens.into_iter().filter_map(position_logprobs).collect(),
    }
}

fn position_logprobs(token: SampledToken) -> Option<wire::PositionLogprobs> {
    let entry = |token_id: TokenId, logprob| wire::TokenLogprob { token_id: token_id.0, logprob };
    token.logprobs.map(|logprobs| wire::PositionLogprobs {
        chosen: Some(entry(token.id, logprobs.chosen)),
        top: logprobs.top.into_iter().map(|(id, logprob)| entry(id, logprob)).collect(),
    })
}

/// The last event.
pub(crate) fn finished(finished: engine::Finished) -> wire::Finished {
    use wire::{FinishReason as Reason, finish::Matched};
    let (reason, matched) = match finished.reason {
        FinishReason::EndOfSequence(id) | FinishReason::StopToken(id) => (Reason::Stop, Some(Matched::TokenId(id.0))),
        FinishReason::StopString(stop) => (Reason::Stop, Some(Matched::Stop(stop))),
        FinishReason::GrammarComplete => (Reason::Stop, None),
        FinishReason::Length => (Reason::Length, None),
    };
    wire::Finished { finish: Some(wire::Finish { reason: reason.into(), matched }), usage: Some(usage(finished.usage)) }
}

fn usage(usage: Usage) -> wire::Usage {
    wire::Usage {
        prompt_tokens: usage.prompt_tokens,
        cached_tokens: usage.cached_tokens,
        completion_tokens: usage.completion_tokens,
    }
}

/// Where in a wire's request stand the fields that the engine complains of.
pub(crate) struct FieldPaths {
    /// What stands before the name of a sampling parameter.
    pub(crate) sampling: &'static str,
    /// What the engine calls parts of a request, and what this wire does; the first that fits counts.
    pub(crate) renamed: &'static [(&'static str, &'static str)],
}

impl FieldPaths {
    /// The same error, with the wire's paths.
    pub(crate) fn locate(&self, mut error: Error) -> Error {
        for violation in &mut error.violations {
            violation.field = self.path(&violation.field);
        }
        if let ([violation], Code::InvalidArgument) = (error.violations.as_slice(), error.code) {
            error.message = format!("{}: {}", violation.field, violation.description);
        }
        error
    }

    fn path(&self, field: &str) -> String {
        let renamed = self.renamed.iter().find_map(|(from, to)| Some(format!("{to}{}", field.strip_prefix(from)?)));
        if let Some(renamed) = renamed {
            return renamed;
        }
        let name = field.split(['.', '[']).next().unwrap_or(field);
        if SAMPLING_FIELDS.contains(&name) { format!("{}.{field}", self.sampling) } else { field.to_owned() }
    }
}

/// The fields of [`SamplingParams`] as errors name them.
const SAMPLING_FIELDS: [&str; 18] = [
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "frequency_penalty",
    "presence_penalty",
    "logit_bias",
    "seed",
    "max_tokens",
    "min_tokens",
    "stop",
    "stop_token_ids",
    "include_stop_str_in_output",
    "ignore_eos",
    "skip_special_tokens",
    "logprobs",
    "structured_outputs",
];
