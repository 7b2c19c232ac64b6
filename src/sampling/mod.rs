//! From logits to a token: an ordered table of processors, then a draw that depends on seed, index and logits alone.
//!
//! # Order
//!
//! vLLM's (V1 `Sampler`): first what may change which token is the most likely one, on the raw logits — `min_tokens`,
//! `logit_bias`, the penalties; then what may not — temperature, `min_p`, `top_k`, `top_p`. With a temperature of 0 the
//! second group has no effect and is left out. llama.cpp's default chain instead truncates first and divides by the
//! temperature last, so that the same `top_p` keeps more tokens there when the temperature is high.
//!
//! Where the output must match a grammar ([`grammar`]), the tokens that may not come are taken out before everything.
//!
//! # Adding a sampler
//!
//! One file that implements [`LogitsProcessor`], one row in [`PROCESSORS`], one field of
//! [`SamplingParams`](crate::params::SamplingParams); every face inherits it.

mod candidates;
mod draw;
pub mod grammar;
mod largest;
mod logit_bias;
mod logprobs;
mod min_p;
mod min_tokens;
mod penalties;
mod sampler;
mod softmax;
mod temperature;
#[cfg(test)]
mod test_cases;
mod top_k;
mod top_p;

pub use candidates::{Candidate, Candidates};
pub use sampler::{Sampler, validate};

use crate::{error::Result, ids::TokenId, params::SamplingParams};

/// What a processor may know of the sequence and the model when it is built.
#[derive(Clone, Copy, Debug)]
pub struct SamplingContext<'a> {
    /// The prompt.
    pub prompt: &'a [TokenId],
    /// The tokens that end a sequence by themselves.
    pub eos_token_ids: &'a [TokenId],
    /// Logits a token.
    pub vocab_size: usize,
}

/// One knob: parses it, applies it, keeps what state it needs.
pub trait LogitsProcessor: Send {
    /// The processor these parameters ask for, or `None` where they leave it off.
    ///
    /// # Errors
    /// `InvalidArgument` where the parameters do not fit the model. Ranges were checked by
    /// [`SamplingParams::validate`].
    fn from_params(params: &SamplingParams, context: &SamplingContext<'_>) -> Result<Option<Self>>
    where
        Self: Sized;

    /// Changes the candidates for output token `index`, counted from 0.
    fn apply(&self, candidates: &mut Candidates<'_>, index: u32);

    /// Learns which token was chosen.
    fn observe(&mut self, _token: TokenId) {}
}

type Build = fn(&SamplingParams, &SamplingContext<'_>) -> Result<Option<Box<dyn LogitsProcessor>>>;

/// Every processor, in the order in which they apply.
const PROCESSORS: [Build; 7] = [
    build::<min_tokens::MinTokens>,
    build::<logit_bias::LogitBias>,
    build::<penalties::Penalties>,
    build::<temperature::Temperature>,
    build::<min_p::MinP>,
    build::<top_k::TopK>,
    build::<top_p::TopP>,
];

fn build<P: LogitsProcessor + 'static>(
    params: &SamplingParams,
    context: &SamplingContext<'_>,
) -> Result<Option<Box<dyn LogitsProcessor>>> {
    Ok(P::from_params(params, context)?.map(|processor| Box::new(processor) as _))
}

/// Temperatures below this take the most likely token (vLLM's `_SAMPLING_EPS`).
const GREEDY_BELOW: f32 = 1e-5;

/// Whether these parameters take the most likely token rather than draw one.
fn is_greedy(params: &SamplingParams) -> bool {
    params.temperature < GREEDY_BELOW
}
