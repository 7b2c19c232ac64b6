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
    pub(super) fn delta(&self, delta: Delta) -> ModelInferResponse {
        let of_delta = |tokens: &[SampledToken]| Usage { completion_tokens: tokens.len() as u32, ..delta.usage };
        self.response(delta.text, None, &delta.tokens, of_delta(&delta.tokens), false)
    }

    /// What ends a stream: one response, or two where the last must be empty.
    pub(super) fn end(&self, finished: &Finished) -> Vec<ModelInferResponse> {
        let usage = Usage { completion_tokens: 0, ..finished.usage };
        self.ended(self.response(String::new(), Some(&finished.reason), &[], usage, !self.ends_empty))
    }

    /// The whole answer, as it ends a stream.
    pub(super) fn whole(&self, whole: Whole) -> Vec<ModelInferResponse> {
        let first = whole.first;
        let text = format!("{}{}", self.before, first.text);
        let reason = Some(&first.finished.reason);
        self.ended(self.response(text, reason, &first.tokens, first.finished.usage, !self.ends_empty))
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
        tokens: &[SampledToken],
        usage: Usage,
        is_final: bool,
    ) -> ModelInferResponse {
        let mut response = self.head(is_final);
        let mut text = Some(text);
        for &name in &self.outputs {
            let value = match name {
                "finish_reason" => Output::Text(reason.map_or("", finish_reason).to_owned()),
                "cumulative_logprob" => {
                    Output::Float(tokens.iter().filter_map(|token| Some(token.logprobs.as_ref()?.chosen)).sum())
                }
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
