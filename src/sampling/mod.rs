//! From logits to a token: an ordered table of processors, then a draw that depends on seed, index and logits alone.
//!
//! # Order
//!
//! Two tables. What may or must not be chosen comes first and always: [`MASKS`]. Then the [`SAMPLERS`], which a request
//! may put into another order; the default is vLLM's (V1 `Sampler`) for what vLLM has: the penalties, temperature,
//! `min_p`, `top_k`, `top_p`. Mirostat comes last. With a temperature of 0 only what may change which token is the most
//! likely one is built. llama.cpp's default chain instead truncates first and divides by the temperature last, so that
//! the same `top_p` keeps more tokens there when the temperature is high.
//!
//! Where the output must match a grammar ([`grammar`]), the tokens that may not come are taken out before everything.
//!
//! # Adding a sampler
//!
//! One file that implements [`LogitsProcessor`], one row in a table, one field of
//! [`SamplingParams`](crate::params::SamplingParams); every face inherits it.

mod allowed_tokens;
mod candidates;
mod draw;
mod dry;
mod dynamic_temperature;
pub mod grammar;
mod largest;
#[cfg(test)]
mod llama_cpp;
mod logit_bias;
mod logprobs;
mod min_p;
mod min_tokens;
mod mirostat;
mod penalties;
mod sampler;
mod softmax;
mod temperature;
#[cfg(test)]
mod test_cases;
mod thinking_budget;
mod top_k;
mod top_n_sigma;
mod top_p;
mod typical;
mod xtc;

pub use candidates::{Candidate, Candidates};
pub use logprobs::of_given as logprobs_of_given;
pub use sampler::{Sampler, validate};

use crate::{
    error::Result,
    ids::TokenId,
    kernels::sample::Draw,
    params::{SamplerKind, SamplingParams},
};

/// What a processor may know of the sequence and the model when it is built.
#[derive(Clone, Copy, Debug, Default)]
pub struct SamplingContext<'a> {
    /// The prompt.
    pub prompt: &'a [TokenId],
    /// The tokens that end a sequence by themselves.
    pub eos_token_ids: &'a [TokenId],
    /// Logits a token.
    pub vocab_size: usize,
    /// Tokens in a row that no repetition reaches across: `dry_sequence_breakers`, tokenized.
    pub dry_breakers: &'a [Vec<TokenId>],
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

    /// What a draw becomes behind this, where there is such a draw: `draw` is what the processors before this one make of it.
    fn narrow(&self, _draw: Draw) -> Option<Draw> {
        None
    }

    /// Learns which token was chosen, and from which candidates, as they were after the last processor.
    fn observe(&mut self, _token: TokenId, _left: &Candidates<'_>) {}

    /// Undoes the newest [`observe`](Self::observe), which was of this token: the sequence goes back.
    fn forget(&mut self, _token: TokenId) {}
}

type Build = fn(&SamplingParams, &SamplingContext<'_>) -> Result<Option<Box<dyn LogitsProcessor>>>;

/// What always applies, and first, in this order. A constraint on the whole output belongs at the top.
const MASKS: [Build; 5] = [
    build::<allowed_tokens::AllowedTokens>,
    build::<allowed_tokens::BannedTokens>,
    build::<min_tokens::MinTokens>,
    build::<logit_bias::LogitBias>,
    build::<thinking_budget::ThinkingBudget>,
];

/// What applies in the order that the request chooses.
const SAMPLERS: [(SamplerKind, Build); 10] = [
    (SamplerKind::Penalties, build::<penalties::Penalties>),
    (SamplerKind::Dry, build::<dry::Dry>),
    (SamplerKind::Temperature, build::<temperature::Temperature>),
    (SamplerKind::Temperature, build::<dynamic_temperature::DynamicTemperature>),
    (SamplerKind::TopNSigma, build::<top_n_sigma::TopNSigma>),
    (SamplerKind::MinP, build::<min_p::MinP>),
    (SamplerKind::TopK, build::<top_k::TopK>),
    (SamplerKind::TypicalP, build::<typical::Typical>),
    (SamplerKind::TopP, build::<top_p::TopP>),
    (SamplerKind::Xtc, build::<xtc::Xtc>),
];

/// What always applies, and last.
const LAST: [Build; 1] = [build::<mirostat::Mirostat>];

/// The processors that these parameters ask for, in order.
fn chain(params: &SamplingParams, context: &SamplingContext<'_>) -> Result<Vec<Box<dyn LogitsProcessor>>> {
    let order = if params.samplers.is_empty() { &SamplerKind::ALL[..] } else { &params.samplers };
    let of = |kind: SamplerKind| SAMPLERS.iter().filter(move |row| row.0 == kind).map(|row| &row.1);
    let rows = MASKS.iter().chain(order.iter().copied().flat_map(of)).chain(&LAST);
    let built: Result<Vec<_>> = rows.map(|build| build(params, context)).collect();
    Ok(built?.into_iter().flatten().collect())
}

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
