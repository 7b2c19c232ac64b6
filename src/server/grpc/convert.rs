//! Between the messages of `candlewick.v1` and the engine's types, one function a message.

use super::structured_outputs;
use crate::{
    engine::{self, ModelInfo, Prompt, PromptOptions, Request, SlowReader},
    error::{Code, Error, Result},
    ids::TokenId,
    params::{FinishReason, PromptLogprobs, SampledToken, SamplerKind, SamplingParams, Usage},
    proto::candlewick::v1 as wire,
    server::{
        backend::{name, request_id},
        events::WholeOutput,
    },
    text::Piece,
};

/// A request of `candlewick.v1` to this model or one of its adapters. The deadline is left open.
///
/// # Errors
/// `InvalidArgument` with the field's path.
pub(crate) fn request(prompt: Prompt, options: Option<wire::RequestOptions>, info: &ModelInfo) -> Result<Request> {
    let options = options.unwrap_or_default();
    let mut set = options.sampling.unwrap_or_default();
    let structured_outputs = structured_outputs::from_wire(set.structured_outputs.take())?;
    let mut params = sampling(set, &info.default_params)?;
    params.structured_outputs = structured_outputs.or(params.structured_outputs);
    let slow_reader = slow_reader(options.slow_reader)?;
    let cache_salt = options.cache_salt.filter(|salt| !salt.is_empty());
    Ok(Request {
        request_id: request_id("options.request_id", options.request_id)?,
        model: options.model,
        prompt,
        prompt_options: PromptOptions::default(),
        params,
        priority: options.priority.unwrap_or(0),
        cache_salt: cache_salt.map(|salt| name("options.cache_salt", salt)).transpose()?,
        tenant: None,
        network: None,
        deadline: None,
        stream: engine::StreamOptions { slow_reader, ..engine::StreamOptions::default() },
    })
}

/// The model that the options of a request name.
pub(super) fn model(options: Option<&wire::RequestOptions>) -> Option<&str> {
    options?.model.as_deref()
}

/// What becomes of a reader that does not keep up.
///
/// # Errors
/// `InvalidArgument` for a policy that this server does not know.
fn slow_reader(asked: Option<i32>) -> Result<SlowReader> {
    let Some(asked) = asked else { return Ok(SlowReader::default()) };
    match wire::SlowReader::try_from(asked) {
        Ok(wire::SlowReader::Unspecified | wire::SlowReader::Pause) => Ok(SlowReader::Pause),
        Ok(wire::SlowReader::Coalesce) => Ok(SlowReader::Coalesce),
        Ok(wire::SlowReader::Abort) => Ok(SlowReader::Abort),
        Err(_) => Err(Error::invalid("options.slow_reader", format!("is {asked}, which is no SlowReader"))),
    }
}

/// The same back.
pub(super) fn slow_reader_to_wire(policy: SlowReader) -> wire::SlowReader {
    match policy {
        SlowReader::Pause => wire::SlowReader::Pause,
        SlowReader::Coalesce => wire::SlowReader::Coalesce,
        SlowReader::Abort => wire::SlowReader::Abort,
    }
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
///
/// # Errors
/// `InvalidArgument` where a sampler's name is unknown.
fn sampling(set: wire::SamplingParams, defaults: &SamplingParams) -> Result<SamplingParams> {
    let mut logit_bias: Vec<_> = set.logit_bias.into_iter().map(|(id, bias)| (TokenId(id), bias)).collect();
    // A map of the wire has no order; what depends on one here must not differ from run to run.
    logit_bias.sort_unstable_by_key(|&(id, _)| id);
    let list_or = |list: Vec<u32>, default: &[TokenId]| match list.is_empty() {
        true => default.to_vec(),
        false => list.into_iter().map(TokenId).collect(),
    };
    let strings_or = |list: Vec<String>, default: &[String]| if list.is_empty() { default.to_vec() } else { list };
    let samplers = SamplerKind::parse_list(&set.samplers).map_err(|error| SAMPLING_PATH.locate(error))?;
    Ok(SamplingParams {
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
        stop: strings_or(set.stop, &defaults.stop),
        stop_token_ids: list_or(set.stop_token_ids, &defaults.stop_token_ids),
        include_stop_str_in_output: set.include_stop_str_in_output.unwrap_or(defaults.include_stop_str_in_output),
        ignore_eos: set.ignore_eos.unwrap_or(defaults.ignore_eos),
        skip_special_tokens: set.skip_special_tokens.unwrap_or(defaults.skip_special_tokens),
        logprobs: set.logprobs.or(defaults.logprobs),
        dynatemp_range: set.dynatemp_range.unwrap_or(defaults.dynatemp_range),
        dynatemp_exponent: set.dynatemp_exponent.unwrap_or(defaults.dynatemp_exponent),
        typical_p: set.typical_p.unwrap_or(defaults.typical_p),
        top_n_sigma: set.top_n_sigma.unwrap_or(defaults.top_n_sigma),
        xtc_probability: set.xtc_probability.unwrap_or(defaults.xtc_probability),
        xtc_threshold: set.xtc_threshold.unwrap_or(defaults.xtc_threshold),
        mirostat: set.mirostat.unwrap_or(defaults.mirostat),
        mirostat_tau: set.mirostat_tau.unwrap_or(defaults.mirostat_tau),
        mirostat_eta: set.mirostat_eta.unwrap_or(defaults.mirostat_eta),
        dry_multiplier: set.dry_multiplier.unwrap_or(defaults.dry_multiplier),
        dry_base: set.dry_base.unwrap_or(defaults.dry_base),
        dry_allowed_length: set.dry_allowed_length.unwrap_or(defaults.dry_allowed_length),
        dry_penalty_last_n: set.dry_penalty_last_n.unwrap_or(defaults.dry_penalty_last_n),
        dry_sequence_breakers: strings_or(set.dry_sequence_breakers, &defaults.dry_sequence_breakers),
        allowed_token_ids: list_or(set.allowed_token_ids, &defaults.allowed_token_ids),
        banned_token_ids: list_or(set.banned_token_ids, &defaults.banned_token_ids),
        bad_words: strings_or(set.bad_words, &defaults.bad_words),
        samplers: if samplers.is_empty() { defaults.samplers.clone() } else { samplers },
        prompt_logprobs: set.prompt_logprobs.or(defaults.prompt_logprobs),
        n: set.n.unwrap_or(defaults.n),
        best_of: set.best_of.or(defaults.best_of),
        thinking_budget: defaults.thinking_budget.clone(),
        structured_outputs: defaults.structured_outputs.clone(),
    })
}

/// The first event, with every parameter in force.
pub(crate) fn started(request_id: &str, model: &str, started: engine::Started) -> wire::Started {
    wire::Started {
        request_id: request_id.to_owned(),
        model: model.to_owned(),
        effective: Some(effective(started.params)),
        prompt_tokens: started.prompt_tokens,
        ..wire::Started::default()
    }
}

pub(super) fn effective(params: SamplingParams) -> wire::SamplingParams {
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
        dynatemp_range: Some(params.dynatemp_range),
        dynatemp_exponent: Some(params.dynatemp_exponent),
        typical_p: Some(params.typical_p),
        top_n_sigma: Some(params.top_n_sigma),
        xtc_probability: Some(params.xtc_probability),
        xtc_threshold: Some(params.xtc_threshold),
        mirostat: Some(params.mirostat),
        mirostat_tau: Some(params.mirostat_tau),
        mirostat_eta: Some(params.mirostat_eta),
        dry_multiplier: Some(params.dry_multiplier),
        dry_base: Some(params.dry_base),
        dry_allowed_length: Some(params.dry_allowed_length),
        dry_penalty_last_n: Some(params.dry_penalty_last_n),
        dry_sequence_breakers: params.dry_sequence_breakers,
        allowed_token_ids: params.allowed_token_ids.into_iter().map(|id| id.0).collect(),
        banned_token_ids: params.banned_token_ids.into_iter().map(|id| id.0).collect(),
        bad_words: params.bad_words,
        samplers: params.samplers.into_iter().map(|kind| kind.name().to_owned()).collect(),
        prompt_logprobs: params.prompt_logprobs,
        n: Some(params.n),
        best_of: params.best_of,
        structured_outputs: params.structured_outputs.map(structured_outputs::to_wire),
    }
}

/// New tokens.
pub(crate) fn delta(index: u32, text: String, tokens: impl IntoIterator<Item = SampledToken>) -> wire::Delta {
    let mut logprobs = Vec::new();
    let token_ids = tokens.into_iter().map(|token| {
        let id = token.id.0;
        logprobs.extend(position_logprobs(token));
        id
    });
    let token_ids = token_ids.collect();
    wire::Delta { index, text, token_ids, logprobs, reasoning: String::new(), tool_calls: Vec::new() }
}

/// New tokens of a chat, with what they say by kind.
pub(crate) fn chat_delta(delta: engine::Delta) -> wire::Delta {
    sorted_delta(delta.index, delta.text, delta.pieces, delta.tokens)
}

fn sorted_delta(
    index: u32,
    text: String,
    pieces: Vec<Piece>,
    tokens: impl IntoIterator<Item = SampledToken>,
) -> wire::Delta {
    let mut out = delta(index, text, tokens);
    let number = |index: usize| u32::try_from(index).unwrap_or(u32::MAX);
    for piece in pieces {
        match piece {
            // The delta's text is all of these.
            Piece::Text(_) => {}
            Piece::Reasoning(text) => out.reasoning.push_str(&text),
            Piece::ToolCall { index, id, name } => out.tool_calls.push(wire::ToolCallDelta {
                index: number(index),
                id: Some(id),
                name: Some(name),
                arguments: String::new(),
            }),
            Piece::Arguments { index, delta } => match out.tool_calls.last_mut() {
                Some(call) if call.index == number(index) => call.arguments.push_str(&delta),
                _ => out.tool_calls.push(wire::ToolCallDelta {
                    index: number(index),
                    id: None,
                    name: None,
                    arguments: delta,
                }),
            },
        }
    }
    out
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
    let reason = if finished.tool_calls { Reason::ToolCalls } else { reason };
    wire::Finished {
        finish: Some(wire::Finish { reason: reason.into(), matched }),
        usage: Some(usage(finished.usage)),
        index: finished.index,
        ..wire::Finished::default()
    }
}

/// A stretch of the prompt.
pub(crate) fn prompt_logprobs(prompt: PromptLogprobs) -> wire::PromptLogprobs {
    wire::PromptLogprobs {
        start: prompt.start,
        logprobs: prompt.tokens.into_iter().filter_map(position_logprobs).collect(),
    }
}

/// The sequences after the first; `finished` tells of their ends.
pub(super) fn alternatives(
    others: Vec<WholeOutput>,
    finished: impl Fn(engine::Finished) -> wire::Finished,
) -> Vec<wire::Alternative> {
    let alternative = |WholeOutput { text, pieces, tokens, finished: end }| wire::Alternative {
        output: Some(sorted_delta(end.index, text, pieces, tokens)),
        finished: Some(finished(end)),
    };
    others.into_iter().map(alternative).collect()
}

pub(super) fn usage(usage: Usage) -> wire::Usage {
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
        // A whole name, not the beginning of a longer one.
        let ends = |from: &str, rest: &str| from.ends_with('.') || rest.is_empty() || rest.starts_with(['.', '[']);
        let rename = |(from, to): &(&str, &str)| {
            let rest = field.strip_prefix(from).filter(|rest| ends(from, rest))?;
            Some(format!("{to}{rest}"))
        };
        let renamed = self.renamed.iter().find_map(rename);
        if let Some(renamed) = renamed {
            return renamed;
        }
        let name = field.split(['.', '[']).next().unwrap_or(field);
        if SAMPLING_FIELDS.contains(&name) { format!("{}.{field}", self.sampling) } else { field.to_owned() }
    }
}

/// For complaints of what is converted here.
const SAMPLING_PATH: FieldPaths = FieldPaths { sampling: "options.sampling", renamed: &[] };

/// The fields of [`SamplingParams`] as errors name them.
const SAMPLING_FIELDS: [&str; 39] = [
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
    "dynatemp_range",
    "dynatemp_exponent",
    "typical_p",
    "top_n_sigma",
    "xtc_probability",
    "xtc_threshold",
    "mirostat",
    "mirostat_tau",
    "mirostat_eta",
    "dry_multiplier",
    "dry_base",
    "dry_allowed_length",
    "dry_penalty_last_n",
    "dry_sequence_breakers",
    "allowed_token_ids",
    "banned_token_ids",
    "bad_words",
    "samplers",
    "prompt_logprobs",
    "n",
    "best_of",
    "structured_outputs",
];
