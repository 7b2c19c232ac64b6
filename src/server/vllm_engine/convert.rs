//! Between the messages of `vllm.grpc.engine` and the engine's types.

use crate::{
    engine::{Delta, Finished, Prompt, PromptOptions, Request, StreamOptions},
    error::{Error, Result},
    ids::TokenId,
    params::{Constraint, FinishReason, PromptLogprobs, SampledToken, SamplingParams, StructuredOutputs},
    proto::vllm::grpc::engine as wire,
    server::backend::request_id,
};

/// A generation request. The deadline is left open.
///
/// # Errors
/// `InvalidArgument` with the path of a field that cannot be served.
pub(super) fn request(message: wire::GenerateRequest) -> Result<Request> {
    refuse(&[
        ("kv_transfer_params", message.kv_transfer_params.is_some()),
        ("kv_transfer_params_json", message.kv_transfer_params_json.is_some()),
        ("mm_inputs", message.mm_inputs.is_some()),
        ("extra_mm_inputs", !message.extra_mm_inputs.is_empty()),
        ("media_refs", message.media_refs.is_some()),
        ("data_parallel_rank", message.data_parallel_rank.is_some_and(|rank| rank != 0)),
    ])?;
    let prompt = match message.input {
        Some(wire::generate_request::Input::Tokenized(tokenized)) => {
            Prompt::Tokens(tokenized.input_ids.into_iter().map(TokenId).collect())
        }
        Some(wire::generate_request::Input::Text(text)) => Prompt::Text(text),
        None => return Err(Error::invalid("input", "must be set: tokenized or text")),
    };
    Ok(Request {
        request_id: request_id("request_id", Some(message.request_id))?,
        model: None,
        prompt,
        prompt_options: PromptOptions::default(),
        params: sampling(message.sampling_params.unwrap_or_default())?,
        priority: 0,
        cache_salt: None,
        tenant: None,
        network: None,
        deadline: None,
        stream: StreamOptions::default(),
    })
}

/// Fields that ask for what this server does not do, each with whether it was set.
fn refuse(fields: &[(&str, bool)]) -> Result<()> {
    match fields.iter().find(|(_, set)| *set) {
        Some((field, _)) => Err(Error::invalid(*field, "is not offered by this server: leave it unset")),
        None => Ok(()),
    }
}

/// Sampling parameters. Unset means vLLM's own defaults, not the model's: routers apply those themselves.
fn sampling(set: wire::SamplingParams) -> Result<SamplingParams> {
    refuse(&[("sampling_params.truncate_prompt_tokens", set.truncate_prompt_tokens.is_some())])?;
    let or_one = |value: f32| if value == 0.0 { 1.0 } else { value };
    let natural = |field: &str, value: i32| {
        u32::try_from(value).map_err(|_| Error::invalid(field, format!("is {value}, must be at least 0")))
    };
    let mut logit_bias = Vec::with_capacity(set.logit_bias.len());
    for (id, bias) in set.logit_bias {
        logit_bias.push((TokenId(natural("sampling_params.logit_bias", id)?), bias));
    }
    logit_bias.sort_unstable_by_key(|&(id, _)| id);
    Ok(SamplingParams {
        temperature: set.temperature.unwrap_or(1.0),
        top_k: set.top_k,
        top_p: or_one(set.top_p),
        min_p: set.min_p,
        repetition_penalty: or_one(set.repetition_penalty),
        frequency_penalty: set.frequency_penalty,
        presence_penalty: set.presence_penalty,
        logit_bias,
        // A negative seed is a seed like any other.
        seed: set.seed.map(|seed| i64::from(seed) as u64),
        max_tokens: set.max_tokens,
        min_tokens: set.min_tokens,
        stop: set.stop,
        stop_token_ids: set.stop_token_ids.into_iter().map(TokenId).collect(),
        include_stop_str_in_output: set.include_stop_str_in_output,
        ignore_eos: set.ignore_eos,
        skip_special_tokens: set.skip_special_tokens,
        logprobs: set.logprobs.map(|n| natural("sampling_params.logprobs", n)).transpose()?,
        prompt_logprobs: set.prompt_logprobs.map(|n| natural("sampling_params.prompt_logprobs", n)).transpose()?,
        n: set.n.max(1),
        structured_outputs: set.constraint.and_then(structured_outputs),
        ..SamplingParams::default()
    })
}

/// What the output must match; `json_object: false` says nothing.
fn structured_outputs(set: wire::sampling_params::Constraint) -> Option<StructuredOutputs> {
    use wire::sampling_params::Constraint as Wire;
    let constraint = match set {
        Wire::JsonSchema(schema) => Constraint::Json(schema),
        Wire::Regex(regex) => Constraint::Regex(regex),
        Wire::Grammar(grammar) => Constraint::Grammar(grammar),
        Wire::StructuralTag(tag) => Constraint::StructuralTag(tag),
        Wire::JsonObject(true) => Constraint::JsonObject,
        Wire::JsonObject(false) => return None,
        Wire::Choice(choice) => Constraint::Choice(choice.choices),
    };
    Some(constraint.into())
}

/// The first token of a prompt of ids.
pub(super) fn first_token(message: &wire::GenerateRequest) -> Option<SampledToken> {
    match &message.input {
        Some(wire::generate_request::Input::Tokenized(prompt)) => {
            prompt.input_ids.first().map(|&id| SampledToken { id: TokenId(id), logprobs: None })
        }
        _ => None,
    }
}

/// New tokens. The count is of these tokens alone: routers add up.
pub(super) fn chunk(delta: Delta, prompt: Option<PromptLogprobs>) -> wire::GenerateResponse {
    let Delta { index, tokens, usage, .. } = delta;
    let token_ids: Vec<_> = tokens.iter().map(|token| token.id.0).collect();
    let chunk = wire::GenerateStreamChunk {
        prompt_tokens: usage.prompt_tokens,
        completion_tokens: u32::try_from(token_ids.len()).unwrap_or(u32::MAX),
        cached_tokens: usage.cached_tokens,
        token_ids,
        output_logprobs: output_logprobs(tokens),
        input_logprobs: prompt.map(input_logprobs),
        index,
    };
    wire::GenerateResponse { response: Some(wire::generate_response::Response::Chunk(chunk)) }
}

/// The end: all ids, and the log-probabilities of `tokens`, which chunks have carried where there were chunks.
pub(super) fn complete(
    output_ids: Vec<u32>,
    tokens: Vec<SampledToken>,
    finished: Finished,
    prompt: Option<PromptLogprobs>,
) -> wire::GenerateResponse {
    let Finished { index, reason, usage, .. } = finished;
    use wire::generate_complete::MatchedStop;
    let (finish_reason, matched_stop) = match reason {
        // As vLLM has it, the model's own end matches nothing that the request named.
        FinishReason::EndOfSequence(_) | FinishReason::GrammarComplete => ("stop", None),
        FinishReason::StopToken(id) => ("stop", Some(MatchedStop::MatchedTokenId(id.0))),
        FinishReason::StopString(stop) => ("stop", Some(MatchedStop::MatchedStopStr(stop))),
        FinishReason::Length => ("length", None),
    };
    let complete = wire::GenerateComplete {
        output_ids,
        finish_reason: finish_reason.to_owned(),
        prompt_tokens: usage.prompt_tokens,
        completion_tokens: usage.completion_tokens,
        cached_tokens: usage.cached_tokens,
        output_logprobs: output_logprobs(tokens),
        input_logprobs: prompt.map(input_logprobs),
        index,
        matched_stop,
        ..wire::GenerateComplete::default()
    };
    wire::GenerateResponse { response: Some(wire::generate_response::Response::Complete(Box::new(complete))) }
}

fn output_logprobs(tokens: impl IntoIterator<Item = SampledToken>) -> Option<wire::OutputLogProbs> {
    let mut all = wire::OutputLogProbs::default();
    for token in tokens {
        let Some(logprobs) = token.logprobs else { continue };
        all.token_ids.push(token.id.0);
        all.token_logprobs.push(logprobs.chosen);
        let (token_ids, values) = logprobs.top.into_iter().map(|(id, logprob)| (id.0, logprob)).unzip();
        all.top_logprobs.push(wire::TopLogProbs { values, token_ids });
    }
    (!all.token_ids.is_empty()).then_some(all)
}

/// The prompt's first token, which nothing predicts, has no value.
fn input_logprobs(prompt: PromptLogprobs) -> wire::InputLogProbs {
    let mut all = wire::InputLogProbs::default();
    for token in prompt.tokens {
        all.token_ids.push(token.id.0);
        let value = token.logprobs.as_ref().map(|logprobs| logprobs.chosen);
        all.token_logprobs.push(wire::InputTokenLogProb { value });
        let top = token.logprobs.into_iter().flat_map(|logprobs| logprobs.top);
        let (token_ids, values) = top.map(|(id, logprob)| (id.0, logprob)).unzip();
        all.top_logprobs.push(wire::TopLogProbs { values, token_ids });
    }
    all
}

/// The recommended parameters that differ from vLLM's own, as a JSON object; empty where none does.
pub(super) fn default_sampling_params_json(defaults: &SamplingParams) -> String {
    let neutral = SamplingParams::default();
    let mut fields = serde_json::Map::new();
    let rows = [
        ("temperature", defaults.temperature, neutral.temperature),
        ("top_p", defaults.top_p, neutral.top_p),
        ("min_p", defaults.min_p, neutral.min_p),
        ("repetition_penalty", defaults.repetition_penalty, neutral.repetition_penalty),
    ];
    for (name, value, _) in rows.into_iter().filter(|(_, value, neutral)| value != neutral) {
        fields.insert(name.to_owned(), shortest(value).into());
    }
    if defaults.top_k != neutral.top_k {
        fields.insert("top_k".to_owned(), defaults.top_k.into());
    }
    if let Some(max_tokens) = defaults.max_tokens {
        fields.insert("max_tokens".to_owned(), max_tokens.into());
    }
    if fields.is_empty() { String::new() } else { serde_json::Value::Object(fields).to_string() }
}

/// The double that is written as `value` is: 0.6, not 0.60000002384.
fn shortest(value: f32) -> f64 {
    value.to_string().parse().unwrap_or(f64::from(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_without_presence_mean_off() {
        let params = sampling(wire::SamplingParams::default()).unwrap();
        let off = SamplingParams { skip_special_tokens: false, ..SamplingParams::default() };
        assert_eq!(params, off);
    }

    #[test]
    fn what_the_server_does_not_do_is_refused_by_name() {
        let sampling_params = |change: fn(&mut wire::SamplingParams)| {
            let mut params = wire::SamplingParams::default();
            change(&mut params);
            sampling(params).unwrap_err().violations.remove(0).field
        };
        assert_eq!(sampling_params(|p| p.prompt_logprobs = Some(-1)), "sampling_params.prompt_logprobs");
        assert_eq!(sampling_params(|p| p.logprobs = Some(-1)), "sampling_params.logprobs");
        assert_eq!(sampling_params(|p| p.truncate_prompt_tokens = Some(3)), "sampling_params.truncate_prompt_tokens");
        assert_eq!(sampling_params(|p| p.logit_bias = [(-1, 1.0)].into()), "sampling_params.logit_bias");
    }

    #[test]
    fn each_constraint_is_taken_for_what_it_is() {
        use wire::sampling_params::Constraint as Wire;
        let cases = [
            (Wire::JsonSchema("{}".into()), Some(Constraint::Json("{}".into()))),
            (Wire::Regex("a+".into()), Some(Constraint::Regex("a+".into()))),
            (Wire::Grammar("g".into()), Some(Constraint::Grammar("g".into()))),
            (Wire::StructuralTag("t".into()), Some(Constraint::StructuralTag("t".into()))),
            (Wire::JsonObject(true), Some(Constraint::JsonObject)),
            (Wire::JsonObject(false), None),
            (
                Wire::Choice(wire::ChoiceConstraint { choices: vec!["a".into()] }),
                Some(Constraint::Choice(vec!["a".into()])),
            ),
        ];
        for (sent, expected) in cases {
            let params = wire::SamplingParams { constraint: Some(sent), ..wire::SamplingParams::default() };
            assert_eq!(sampling(params).unwrap().structured_outputs, expected.map(StructuredOutputs::from));
        }
    }

    #[test]
    fn recommended_parameters_are_told_as_they_were_written() {
        let defaults = SamplingParams { temperature: 0.6, top_k: 20, ..SamplingParams::default() };
        assert_eq!(default_sampling_params_json(&defaults), r#"{"temperature":0.6,"top_k":20}"#);
        assert_eq!(default_sampling_params_json(&SamplingParams::default()), "");
    }
}
