//! What is counted of a request as it ends.

use std::time::Duration;

use crate::params::FinishReason;

/// Why a request that was admitted came to its end, as `finished_reason` of `vllm:request_success`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// An end-of-sequence token, a stop token or a stop string.
    Stop,
    /// `max_tokens`, or the end of the context.
    Length,
    /// The client went away, or its deadline passed.
    Abort,
    /// The engine failed it.
    Error,
}

impl From<&FinishReason> for Outcome {
    fn from(reason: &FinishReason) -> Self {
        match reason {
            FinishReason::EndOfSequence(_)
            | FinishReason::StopToken(_)
            | FinishReason::StopString(_)
            | FinishReason::GrammarComplete => Self::Stop,
            FinishReason::Length => Self::Length,
        }
    }
}

impl Outcome {
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::Abort => "abort",
            Self::Error => "error",
        }
    }
}

/// What a request that came to its end had cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RequestFacts {
    /// Since it arrived.
    pub total: Duration,
    /// Since it first ran; none where it never did.
    pub since_scheduled: Option<Duration>,
    /// Since its first token; none where it had none.
    pub since_first_token: Option<Duration>,
    /// Tokens of its prompt.
    pub prompt_tokens: u32,
    /// … that the prefix cache had.
    pub cached_tokens: u32,
    /// Tokens that it got.
    pub generated_tokens: u64,
}
