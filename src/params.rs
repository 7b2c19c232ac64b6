//! What a request may ask of generation: the one `SamplingParams` that every face fills in.

mod structured_outputs;

pub use structured_outputs::{Constraint, StructuredOutputs};

use crate::{
    error::{Error, Result},
    ids::TokenId,
};

/// Bounds on what one request may carry, so that no client can make the server hold much for it.
pub mod limits {
    /// Stop strings a request.
    pub const STOP_STRINGS: usize = 16;
    /// Bytes a stop string.
    pub const STOP_STRING_BYTES: usize = 1024;
    /// Stop token ids a request.
    pub const STOP_TOKEN_IDS: usize = 128;
    /// Alternatives reported a token.
    pub const LOGPROBS: usize = 20;
    /// Entries of a logit bias.
    pub const LOGIT_BIAS: usize = 1024;
    /// Bytes of a schema, a regular expression, a grammar, or all choices together.
    pub const CONSTRAINT_BYTES: usize = 256 << 10;
    /// Bytes of a pattern for white space.
    pub const WHITESPACE_PATTERN_BYTES: usize = 256;
    /// Strings to choose from.
    pub const CHOICES: usize = 1024;
}

/// How tokens are chosen and when to stop. Names, defaults and ranges are vLLM's.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// Divides the logits; 0 takes the most likely token. `>= 0`.
    pub temperature: f32,
    /// Keeps the `k` most likely tokens; 0 keeps all.
    pub top_k: u32,
    /// Keeps the smallest set of tokens whose probability reaches this. `(0, 1]`.
    pub top_p: f32,
    /// Keeps tokens at least this share as likely as the most likely one. `[0, 1]`.
    pub min_p: f32,
    /// Divides (positive) or multiplies (negative) the logits of tokens seen in prompt or output. `> 0`, 1 is off.
    pub repetition_penalty: f32,
    /// Taken from a logit for each time the token was generated. `[-2, 2]`.
    pub frequency_penalty: f32,
    /// Taken from a logit once if the token was generated. `[-2, 2]`.
    pub presence_penalty: f32,
    /// Added to the logits of these tokens. `[-100, 100]` each.
    pub logit_bias: Vec<(TokenId, f32)>,
    /// Makes the choice repeatable, whatever else is in the batch. Without one the engine draws a seed.
    pub seed: Option<u64>,
    /// Most tokens to generate; without it, to the end of the context.
    pub max_tokens: Option<u32>,
    /// No end-of-sequence or stop token before this many.
    pub min_tokens: u32,
    /// End when the text contains one of these; it is left out of the text.
    pub stop: Vec<String>,
    /// End at one of these tokens.
    pub stop_token_ids: Vec<TokenId>,
    /// Keep the stop string in the text.
    pub include_stop_str_in_output: bool,
    /// Go on past the model's end-of-sequence tokens.
    pub ignore_eos: bool,
    /// Leave special tokens out of the text.
    pub skip_special_tokens: bool,
    /// Report the chosen token's log-probability and this many alternatives; `Some(0)` the chosen one only.
    pub logprobs: Option<u32>,
    /// What the text must look like.
    pub structured_outputs: Option<StructuredOutputs>,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: None,
            max_tokens: None,
            min_tokens: 0,
            stop: Vec::new(),
            stop_token_ids: Vec::new(),
            include_stop_str_in_output: false,
            ignore_eos: false,
            skip_special_tokens: true,
            logprobs: None,
            structured_outputs: None,
        }
    }
}

impl SamplingParams {
    /// Checks every knob that can be checked without the model's vocabulary.
    ///
    /// # Errors
    /// `InvalidArgument` that names the field, its value and its range.
    pub fn validate(&self) -> Result<()> {
        let range = |field: &str, value: f32, holds: bool, range: &str| {
            if holds { Ok(()) } else { Err(Error::invalid(field, format!("is {value}, must be {range}"))) }
        };
        range(
            "temperature",
            self.temperature,
            self.temperature >= 0.0 && self.temperature.is_finite(),
            "finite and at least 0",
        )?;
        range("top_p", self.top_p, self.top_p > 0.0 && self.top_p <= 1.0, "in (0, 1]")?;
        range("min_p", self.min_p, (0.0..=1.0).contains(&self.min_p), "in [0, 1]")?;
        range(
            "repetition_penalty",
            self.repetition_penalty,
            self.repetition_penalty > 0.0 && self.repetition_penalty.is_finite(),
            "finite and above 0",
        )?;
        range(
            "frequency_penalty",
            self.frequency_penalty,
            (-2.0..=2.0).contains(&self.frequency_penalty),
            "in [-2, 2]",
        )?;
        range("presence_penalty", self.presence_penalty, (-2.0..=2.0).contains(&self.presence_penalty), "in [-2, 2]")?;
        for (token, bias) in &self.logit_bias {
            range(&format!("logit_bias[{token}]"), *bias, (-100.0..=100.0).contains(bias), "in [-100, 100]")?;
        }
        let at_most = |field: &str, length: usize, limit: usize| {
            if length <= limit {
                Ok(())
            } else {
                Err(Error::invalid(field, format!("has {length} entries, at most {limit} are allowed")))
            }
        };
        at_most("logit_bias", self.logit_bias.len(), limits::LOGIT_BIAS)?;
        at_most("stop", self.stop.len(), limits::STOP_STRINGS)?;
        at_most("stop_token_ids", self.stop_token_ids.len(), limits::STOP_TOKEN_IDS)?;
        for (k, stop) in self.stop.iter().enumerate() {
            if stop.is_empty() || stop.len() > limits::STOP_STRING_BYTES {
                return Err(Error::invalid(
                    format!("stop[{k}]"),
                    format!("has {} bytes, must have 1 to {}", stop.len(), limits::STOP_STRING_BYTES),
                ));
            }
        }
        if let Some(max_tokens) = self.max_tokens {
            if max_tokens == 0 {
                return Err(Error::invalid("max_tokens", "is 0, must be at least 1"));
            }
            if self.min_tokens > max_tokens {
                return Err(Error::invalid(
                    "min_tokens",
                    format!("is {}, more than max_tokens {max_tokens}", self.min_tokens),
                ));
            }
        }
        if let Some(n) = self.logprobs.filter(|&n| n as usize > limits::LOGPROBS) {
            return Err(Error::invalid("logprobs", format!("is {n}, at most {} are allowed", limits::LOGPROBS)));
        }
        self.structured_outputs.as_ref().map_or(Ok(()), StructuredOutputs::validate)
    }
}

/// Why a sequence ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// The model's own end-of-sequence token.
    EndOfSequence(TokenId),
    /// A token of `stop_token_ids`.
    StopToken(TokenId),
    /// A string of `stop`.
    StopString(String),
    /// The text is all that `structured_outputs` asks for, and nothing may follow.
    GrammarComplete,
    /// `max_tokens`, or the end of the context.
    Length,
}

/// What a request cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// … of which the prefix cache held this many when the sequence first ran.
    pub cached_tokens: u32,
    /// Tokens generated, a stop token included.
    pub completion_tokens: u32,
}

/// A token and how likely it was.
#[derive(Clone, Debug, PartialEq)]
pub struct SampledToken {
    /// The token.
    pub id: TokenId,
    /// Set where the request asked for log-probabilities.
    pub logprobs: Option<Box<TokenLogprobs>>,
}

/// Log-probabilities (natural, of the distribution before temperature and truncation) at one position.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprobs {
    /// Of the chosen token.
    pub chosen: f32,
    /// The most likely tokens, most likely first; ties by token id.
    pub top: Vec<(TokenId, f32)>,
}
