//! From a generation's events to the responses of the Open Inference Protocol.

use std::collections::HashMap;

use super::tensors::{OUTPUTS, Output};
use crate::{
    engine::{Delta, Finished},
    error::{Error, Result},
    params::{FinishReason, SampledToken, Usage},
    proto::inference::{InferParameter, ModelInferResponse, infer_parameter::ParameterChoice},
    server::events::Whole,
};

/// The reason of what has not finished, in the words of Triton's vLLM backend.
const UNFINISHED: &str = "None";
/// On every response of a stream: whether it is its request's last.
const FINAL: &str = "triton_final_response";

/// How a request wants its answer.
#[derive(Clone, Debug, Default)]
pub(super) struct Answer {
    pub(super) model_name: String,
    pub(super) model_version: String,
    pub(super) id: String,
    /// A response for each delta.
    pub(super) streams: bool,
    /// What comes before the text: the prompt, where it was asked for.
    pub(super) before: String,
    /// The outputs to send.
    pub(super) outputs: Vec<&'static str>,
    /// The last response is one without outputs.
    pub(super) ends_empty: bool,
    /// What the responses so far have said.
    pub(super) told: Told,
}

/// What an answer has said so far.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Told {
    /// The sum of its tokens' log-probabilities.
    logprob: f64,
    tokens: u32,
}

impl Told {
    fn add(&mut self, tokens: &[SampledToken]) {
        let logprobs = tokens.iter().filter_map(|token| Some(f64::from(token.logprobs.as_ref()?.chosen)));
        self.logprob += logprobs.sum::<f64>();
        self.tokens += tokens.len() as u32;
    }
}

/// The outputs that `named` asks for, or all of `offered` where it names none.
///
/// # Errors
/// `InvalidArgument` with the path of an output that there is not.
pub(super) fn outputs(named: Vec<String>, offered: Vec<&'static str>) -> Result<Vec<&'static str>> {
    if named.is_empty() {
        return Ok(offered);
    }
    let known = |(n, named): (usize, String)| {
        OUTPUTS.iter().map(|(name, ..)| *name).find(|name| *name == named).ok_or_else(|| {
            let names: Vec<_> = OUTPUTS.iter().map(|(name, ..)| *name).collect();
            Error::invalid(format!("outputs[{n}].name"), format!("is none of {}", names.join(", ")))
        })
    };
    named.into_iter().enumerate().map(known).collect()
}

impl Answer {
    /// New text.
    pub(super) fn delta(&mut self, delta: Delta) -> ModelInferResponse {
        self.told.add(&delta.tokens);
        let usage = Usage { completion_tokens: delta.tokens.len() as u32, ..delta.usage };
        self.response(delta.text, None, usage, false)
    }

    /// What ends a stream: one response, or two where the last must be empty. It counts what no delta had: the token that
    /// ended the sequence.
    pub(super) fn end(&self, finished: &Finished) -> Vec<ModelInferResponse> {
        let rest = finished.usage.completion_tokens.saturating_sub(self.told.tokens);
        let usage = Usage { completion_tokens: rest, ..finished.usage };
        self.ended(self.response(String::new(), Some(&finished.reason), usage, !self.ends_empty))
    }

    /// The whole answer, as it ends a stream.
    pub(super) fn whole(mut self, whole: Whole) -> Vec<ModelInferResponse> {
        let first = whole.first;
        self.told.add(&first.tokens);
        let text = format!("{}{}", self.before, first.text);
        self.ended(self.response(text, Some(&first.finished.reason), first.finished.usage, !self.ends_empty))
    }

    fn ended(&self, last: ModelInferResponse) -> Vec<ModelInferResponse> {
        let empty = self.ends_empty.then(|| self.head(true));
        std::iter::once(last).chain(empty).collect()
    }

    /// A response without outputs.
    pub(super) fn head(&self, is_final: bool) -> ModelInferResponse {
        let flag = InferParameter { parameter_choice: Some(ParameterChoice::BoolParam(is_final)) };
        ModelInferResponse {
            model_name: self.model_name.clone(),
            model_version: self.model_version.clone(),
            id: self.id.clone(),
            parameters: HashMap::from([(FINAL.to_owned(), flag)]),
            ..ModelInferResponse::default()
        }
    }

    fn response(
        &self,
        text: String,
        reason: Option<&FinishReason>,
        usage: Usage,
        is_final: bool,
    ) -> ModelInferResponse {
        let mut response = self.head(is_final);
        let mut text = Some(text);
        for &name in &self.outputs {
            let value = match name {
                "finish_reason" => Output::Text(reason.map_or(UNFINISHED, finish_reason).to_owned()),
                "cumulative_logprob" => Output::Float(self.told.logprob as f32),
                "num_input_tokens" => Output::Number(usage.prompt_tokens),
                "num_output_tokens" => Output::Number(usage.completion_tokens),
                _ => Output::Text(text.take().unwrap_or_default()),
            };
            let (tensor, raw) = value.tensor(name);
            response.outputs.push(tensor);
            response.raw_output_contents.push(raw);
        }
        response
    }
}

fn finish_reason(reason: &FinishReason) -> &'static str {
    match reason {
        FinishReason::Length => "length",
        FinishReason::EndOfSequence(_)
        | FinishReason::StopToken(_)
        | FinishReason::StopString(_)
        | FinishReason::GrammarComplete => "stop",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{engine::Timings, ids::TokenId, params::TokenLogprobs};

    fn numbers(response: &ModelInferResponse) -> (f32, u32, String) {
        let [logprob, tokens, reason] = response.raw_output_contents.as_slice() else { panic!("three outputs") };
        (
            f32::from_le_bytes(logprob.as_slice().try_into().unwrap()),
            u32::from_le_bytes(tokens.as_slice().try_into().unwrap()),
            String::from_utf8(reason[4..].to_vec()).unwrap(),
        )
    }

    #[test]
    fn log_probabilities_add_up_and_tokens_are_counted_once() {
        let outputs = vec!["cumulative_logprob", "num_output_tokens", "finish_reason"];
        let mut answer = Answer { outputs, ..Answer::default() };
        let token = |chosen| {
            let logprobs = TokenLogprobs { chosen, top: Vec::new() };
            SampledToken { id: TokenId(1), logprobs: Some(Box::new(logprobs)) }
        };
        let usage = |completion_tokens| Usage { completion_tokens, ..Usage::default() };
        let mut delta = |chosen: &[f32], so_far: u32| {
            let tokens = chosen.iter().map(|&chosen| token(chosen)).collect();
            let (text, pieces, usage) = ("a".to_owned(), Vec::new(), usage(so_far));
            numbers(&answer.delta(Delta { index: 0, text, pieces, tokens, usage }))
        };
        assert_eq!(delta(&[-1.0, -0.5], 2), (-1.5, 2, "None".to_owned()));
        assert_eq!(delta(&[-0.25], 3), (-1.75, 1, "None".to_owned()));
        let finished = Finished {
            index: 0,
            reason: FinishReason::EndOfSequence(TokenId(2)),
            tool_calls: false,
            usage: usage(4),
            timings: Timings::default(),
            receipt: None,
        };
        let [last] = &answer.end(&finished)[..] else { panic!("one response") };
        assert_eq!(numbers(last), (-1.75, 1, "stop".to_owned()), "the token that ended it was in no delta");
    }
}
