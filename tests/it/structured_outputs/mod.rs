//! Structured output: through the engine with the model inside the program, and token by token on real vocabularies.

mod engine;
mod random_schemas;
mod tool_choice;
mod validity;
mod vocabularies;

use std::sync::Arc;

use candlewick::{
    config::ModelArgs,
    engine::load::{LoadedModel, load},
    ids::TokenId,
    params::{Constraint, SamplingParams, StructuredOutputs},
    sampling::{
        Sampler, SamplingContext,
        grammar::{Grammar, Matcher, Next},
    },
    text::Tokenizer,
};
use rand::{RngExt, SeedableRng, rngs::SmallRng};

/// The model inside the program.
pub(crate) fn demo() -> LoadedModel {
    load(&ModelArgs::default(), None, &mut |_| ()).expect("it is inside")
}

/// What a model without knowledge writes under a grammar: random logits through the real masks and the real sampler.
/// Half of them favour tokens that begin with what ends something, so that texts end. `None` where the text is not
/// complete after `max_tokens`.
fn random_text(
    tokenizer: &Tokenizer,
    grammar: &Grammar,
    vocab_size: usize,
    seed: u64,
    max_tokens: usize,
) -> Option<String> {
    let params = SamplingParams { seed: Some(seed), ..SamplingParams::default() };
    let eos = [tokenizer.eos().expect("an end")];
    let mut matcher = Matcher::new(grammar, &params, &eos).expect("a start");
    let context = SamplingContext { eos_token_ids: &eos, vocab_size, ..SamplingContext::default() };
    let mut sampler = Sampler::new(&params, &context).expect("a sampler");
    let mut random = SmallRng::seed_from_u64(seed);
    let mut tokens: Vec<TokenId> = Vec::new();
    while tokens.len() < max_tokens {
        match matcher.what_next().expect("a mask") {
            Next::Complete => return Some(tokenizer.decode(&tokens, true)),
            Next::Forced => tokens.extend(matcher.take_forced(usize::MAX)),
            Next::Mask(mask) => {
                let hurry = if tokens.len() > max_tokens / 4 { 12.0 } else { 2.0 };
                let mut logits: Vec<f32> = (0..vocab_size as u32)
                    .map(|id| {
                        let ends = matches!(tokenizer.token_bytes(TokenId(id)), [b'"' | b'}' | b']', ..]);
                        random.random_range(-4.0..4.0) + if ends || eos[0].0 == id { hurry } else { 0.0 }
                    })
                    .collect();
                let index = tokens.len() as u32;
                let token = sampler.sample_masked(&mut logits, index, Some(&mask)).expect("a token").id;
                if token == eos[0] {
                    return Some(tokenizer.decode(&tokens, true));
                }
                matcher.accept(token).expect("an allowed token");
                tokens.push(token);
            }
        }
    }
    None
}

fn params(constraint: Constraint) -> SamplingParams {
    SamplingParams { structured_outputs: Some(StructuredOutputs::from(constraint)), ..SamplingParams::default() }
}

/// A vocabulary with which grammars are followed.
struct Vocabulary {
    tokenizer: Arc<Tokenizer>,
    size: usize,
}
