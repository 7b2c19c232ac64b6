//! One sequence's sampler: its processors, its seed, and the scratch they share.

use std::cell::RefCell;

use super::{
    Candidate, Candidates, LogitsProcessor, SamplingContext, chain,
    draw::{self, Purpose},
    grammar::TokenMask,
    is_greedy,
    largest::{all_sound, largest},
    logprobs,
};
use crate::{
    error::{Code, Error, Result},
    ids::TokenId,
    kernels::sample::Draw,
    params::{SampledToken, SamplingParams},
};

/// Chooses the tokens of one sequence.
///
/// A token depends on the seed, its index, its logits and, where a processor remembers, the tokens before it: on
/// nothing else in the batch, and not on when it is computed.
pub struct Sampler {
    processors: Vec<Box<dyn LogitsProcessor>>,
    /// `None` takes the most likely token.
    seed: Option<u64>,
    logprobs: Option<usize>,
    vocab_size: usize,
    /// What may not be chosen at an index after the sequence went back there.
    bans: Vec<(u32, TokenId)>,
}

/// Buffers that grow to the vocabulary once a thread, not once a sequence.
#[derive(Default)]
struct Scratch {
    kept: Vec<Candidate>,
    sums: Vec<f64>,
    raw: Vec<f32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Checks what needs the model's vocabulary, so that a request can be refused at the door.
///
/// # Errors
/// `InvalidArgument` that names the field: those of [`SamplingParams::validate`], a token that does not exist, a
/// `min_tokens` that would mask every token, lists of allowed and banned tokens that leave none.
pub fn validate(params: &SamplingParams, eos_token_ids: &[TokenId], vocab_size: usize) -> Result<()> {
    params.validate()?;
    let sampler = Sampler::new(params, &SamplingContext { eos_token_ids, vocab_size, ..SamplingContext::default() })?;
    let lists = [("allowed_token_ids", &params.allowed_token_ids), ("banned_token_ids", &params.banned_token_ids)];
    if let Some((field, _)) = lists.into_iter().find(|(_, list)| !list.is_empty()) {
        let (mut logits, mut kept) = (vec![0.0; vocab_size], Vec::new());
        let mut candidates = Candidates::new(&mut logits, &mut kept);
        sampler.processors.iter().for_each(|processor| processor.apply(&mut candidates, 0));
        if candidates.max_logit() == f32::NEG_INFINITY {
            let why = "leaves no token to choose, with what banned_token_ids and min_tokens exclude";
            return Err(Error::invalid(field, why));
        }
    }
    Ok(())
}

impl Sampler {
    /// A sampler for a sequence.
    ///
    /// A request without a seed draws as with seed 0; the engine sets one before it gets here.
    ///
    /// # Errors
    /// As [`validate`], less the ranges.
    pub fn new(params: &SamplingParams, context: &SamplingContext<'_>) -> Result<Self> {
        Ok(Self {
            processors: chain(params, context)?,
            seed: (!is_greedy(params)).then(|| params.seed.unwrap_or_default()),
            logprobs: params.logprobs.map(|n| n as usize),
            vocab_size: context.vocab_size,
            bans: Vec::new(),
        })
    }

    /// How the token at `index` is drawn, where that is all there is to it: nothing but temperature, `min_p`, `top_k` and `top_p`
    /// in this order, or the most likely token, and nothing else of the logits is asked for.
    #[must_use]
    pub fn draw(&self, index: u32) -> Option<Draw> {
        if self.logprobs.is_some() || self.bans.iter().any(|&(at, _)| at == index) {
            return None;
        }
        let draw = self.processors.iter().try_fold(Draw::PLAIN, |draw, processor| processor.narrow(draw))?;
        Some(match self.seed {
            None => Draw::MOST_LIKELY,
            Some(seed) => Draw { uniform: draw::uniform(seed, index, Purpose::Token), ..draw },
        })
    }

    /// Takes back the newest tokens, `removed` in the order in which they were chosen, and never chooses the first of
    /// them at its index, `index`, again, unless the sequence goes back further.
    pub fn rewind(&mut self, index: u32, removed: &[TokenId]) {
        for &token in removed.iter().rev() {
            self.processors.iter_mut().for_each(|processor| processor.forget(token));
        }
        self.bans.retain(|&(at, _)| at <= index);
        self.bans.extend(removed.first().map(|&token| (index, token)));
    }

    /// Chooses output token `index`, counted from 0, from the model's logits, `[vocab_size]`, which it overwrites.
    ///
    /// Tokens must be sampled in order where penalties are on: they count what this sampler chose.
    ///
    /// # Errors
    /// `Internal` where the logits are not as many as the vocabulary, hold a NaN or `+inf`, or are all `-inf`;
    /// `Aborted` where the request's own wishes leave no token to choose.
    pub fn sample(&mut self, logits: &mut [f32], index: u32) -> Result<SampledToken> {
        self.sample_masked(logits, index, None)
    }

    /// The same among the tokens that `mask` allows, which everything else comes after. Log-probabilities are those of
    /// the model, before the mask.
    ///
    /// # Errors
    /// As [`sample`](Self::sample); `Aborted` too where the request's other parameters leave none of the tokens that the
    /// mask allows.
    pub fn sample_masked(&mut self, logits: &mut [f32], index: u32, mask: Option<&TokenMask>) -> Result<SampledToken> {
        if logits.len() != self.vocab_size {
            let why = format!("{} logits for a vocabulary of {}", logits.len(), self.vocab_size);
            return Err(Error::internal(why));
        }
        let max = checked_max(logits)?;
        let token = SCRATCH.with_borrow_mut(|scratch| {
            if self.logprobs.is_some() {
                scratch.raw.clear();
                scratch.raw.extend_from_slice(logits);
            }
            if let Some(mask) = mask {
                mask.apply(logits);
            }
            let id = self.choose(logits, index, scratch)?;
            let logprobs = self.logprobs.map(|n| logprobs::of_token(&scratch.raw, max, id, n, &mut scratch.kept));
            Some(SampledToken { id, logprobs: logprobs.map(Box::new) })
        });
        token.ok_or_else(|| {
            let why = match mask {
                None => "no token is left to choose: what is allowed and banned, bad_words too, excludes them all",
                Some(_) => "no token is left to choose: structured_outputs allows none that the other parameters allow",
            };
            Error::new(Code::Aborted, why)
        })
    }

    /// Learns of a token that came without being sampled, so that there were no candidates.
    pub fn observe_forced(&mut self, token: TokenId) {
        SCRATCH.with_borrow_mut(|scratch| {
            let none = Candidates::new(&mut [], &mut scratch.kept);
            self.processors.iter_mut().for_each(|processor| processor.observe(token, &none));
        });
    }

    /// The next token; every processor has then learned of it.
    fn choose(&mut self, logits: &mut [f32], index: u32, scratch: &mut Scratch) -> Option<TokenId> {
        for &(_, token) in self.bans.iter().filter(|&&(at, _)| at == index) {
            logits[token.index()] = f32::NEG_INFINITY;
        }
        let mut candidates = Candidates::new(logits, &mut scratch.kept);
        for processor in &self.processors {
            processor.apply(&mut candidates, index);
        }
        let token = match self.seed {
            None => draw::most_likely(candidates.logits_mut()),
            Some(seed) => {
                let uniform = draw::uniform(seed, index, Purpose::Token);
                draw::by_probability(&mut candidates, uniform, &mut scratch.sums)
            }
        }?;
        for processor in &mut self.processors {
            processor.observe(token, &candidates);
        }
        Some(token)
    }
}

/// The largest of a model's logits, which must be numbers or `-inf`.
pub(super) fn checked_max(logits: &[f32]) -> Result<f32> {
    if all_sound(logits) {
        return match largest(logits) {
            f32::NEG_INFINITY => Err(Error::internal("all of the model's logits are -inf")),
            max => Ok(max),
        };
    }
    let at = logits.iter().position(|&logit| logit.is_nan() || logit == f32::INFINITY).unwrap_or_default();
    Err(Error::internal(format!("the model's logit of token {at} is {}", logits.get(at).copied().unwrap_or(f32::NAN))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seeded(seed: u64) -> SamplingParams {
        SamplingParams { seed: Some(seed), ..SamplingParams::default() }
    }

    fn sampler(params: &SamplingParams, vocab_size: usize) -> Sampler {
        Sampler::new(params, &SamplingContext { vocab_size, ..SamplingContext::default() }).unwrap()
    }

    /// Logits that differ from index to index.
    fn logits(index: u32, vocab_size: usize) -> Vec<f32> {
        (0..vocab_size).map(|k| ((k as u32 * 37 + index * 101) % 61) as f32 / 8.0).collect()
    }

    fn run(sampler: &mut Sampler, n: u32, vocab_size: usize) -> Vec<u32> {
        (0..n).map(|index| sampler.sample(&mut logits(index, vocab_size), index).unwrap().id.0).collect()
    }

    #[test]
    fn a_temperature_of_zero_takes_the_most_likely_token() {
        let params = SamplingParams { temperature: 0.0, top_k: 1, top_p: 0.1, min_p: 0.5, ..SamplingParams::default() };
        let token = sampler(&params, 4).sample(&mut [1.0, 5.0, 5.0, 2.0], 0).unwrap();
        assert_eq!(token, SampledToken { id: TokenId(1), logprobs: None });
    }

    #[test]
    fn a_sampler_that_is_asked_for_nothing_else_is_a_draw() {
        let greedy = SamplingParams { temperature: 0.0, ..SamplingParams::default() };
        let mut plain = sampler(&SamplingParams { top_k: 3, top_p: 0.5, min_p: 0.1, ..greedy.clone() }, 4);
        assert_eq!(plain.draw(0), Some(Draw::MOST_LIKELY));
        plain.rewind(2, &[TokenId(1)]);
        assert!(plain.draw(1).is_some() && plain.draw(2).is_none(), "what it may not choose again");
        let knobs = SamplingParams { temperature: 0.5, min_p: 0.1, top_k: 3, top_p: 0.9, ..seeded(7) };
        let drawn = sampler(&knobs, 4).draw(5).unwrap();
        let uniform = draw::uniform(7, 5, Purpose::Token);
        assert_eq!(drawn, Draw { temperature: 0.5, min_p: 0.1, top_k: 3, top_p: 0.9, uniform });
        assert_eq!(
            sampler(&SamplingParams { top_k: 4, ..seeded(7) }, 4).draw(5),
            Some(Draw { uniform, ..Draw::PLAIN })
        );
        use crate::params::SamplerKind::{Temperature, TopK, TopP};
        for params in [
            SamplingParams { logprobs: Some(0), ..greedy.clone() },
            SamplingParams { repetition_penalty: 1.2, ..greedy.clone() },
            SamplingParams { banned_token_ids: vec![TokenId(1)], ..greedy },
            SamplingParams { typical_p: 0.5, ..knobs.clone() },
            SamplingParams { samplers: vec![TopK, Temperature], ..knobs.clone() },
            SamplingParams { samplers: vec![TopP, TopK], ..knobs },
        ] {
            assert!(sampler(&params, 4).draw(0).is_none(), "{params:?}");
        }
    }

    #[test]
    fn drawn_tokens_follow_the_distribution_that_is_left() {
        let probs = [0.05f32, 0.1, 0.15, 0.3, 0.4];
        // What the knobs leave of it, by hand.
        let cases = [
            (seeded(1), vec![0.05, 0.1, 0.15, 0.3, 0.4]),
            (SamplingParams { top_k: 2, ..seeded(2) }, vec![0.0, 0.0, 0.0, 3.0 / 7.0, 4.0 / 7.0]),
            (SamplingParams { top_p: 0.8, ..seeded(3) }, vec![0.0, 0.0, 0.15 / 0.85, 0.3 / 0.85, 0.4 / 0.85]),
            (SamplingParams { min_p: 0.3, ..seeded(4) }, vec![0.0, 0.0, 0.15 / 0.85, 0.3 / 0.85, 0.4 / 0.85]),
            (
                SamplingParams { min_p: 0.2, top_k: 3, top_p: 0.9, ..seeded(5) },
                vec![0.0, 0.0, 0.15 / 0.85, 0.3 / 0.85, 0.4 / 0.85],
            ),
            (SamplingParams { temperature: 0.5, ..seeded(6) }, {
                let total: f64 = probs.iter().map(|&p| f64::from(p).powi(2)).sum();
                probs.iter().map(|&p| f64::from(p).powi(2) / total).collect()
            }),
        ];
        const DRAWS: u32 = 20_000;
        for (params, expected) in cases {
            let mut sampler = sampler(&params, 5);
            let mut counts = [0u32; 5];
            for index in 0..DRAWS {
                counts[sampler.sample(&mut probs.map(f32::ln), index).unwrap().id.index()] += 1;
            }
            let mut chi_square = 0.0;
            for (count, expected) in counts.iter().zip(&expected) {
                let expected = expected * f64::from(DRAWS);
                if expected == 0.0 {
                    assert_eq!(*count, 0, "{params:?}: {counts:?}");
                } else {
                    chi_square += (f64::from(*count) - expected).powi(2) / expected;
                }
            }
            // 4 degrees of freedom exceed this once in 10,000 tries; the seeds are fixed.
            assert!(chi_square < 23.5, "{params:?}: chi square {chi_square}, {counts:?}");
        }
    }

    #[test]
    fn a_seed_repeats_itself_and_another_one_differs() {
        let params = SamplingParams { top_p: 0.95, repetition_penalty: 1.1, ..seeded(7) };
        let first = run(&mut sampler(&params, 300), 64, 300);
        assert_eq!(run(&mut sampler(&params, 300), 64, 300), first);
        let other = SamplingParams { seed: Some(8), ..params };
        assert_ne!(run(&mut sampler(&other, 300), 64, 300), first);
    }

    #[test]
    fn neither_the_batch_nor_the_moment_matters() {
        let mut samplers: Vec<_> = (0..8).map(|k| sampler(&seeded(k), 300)).collect();
        let alone: Vec<_> = samplers.iter_mut().map(|sampler| run(sampler, 32, 300)).collect();
        // All eight in turn, step by step, last one first, the fifth one every other step only.
        let mut samplers: Vec<_> = (0..8).map(|k| sampler(&seeded(k), 300)).collect();
        let mut batched = vec![Vec::new(); 8];
        for step in 0..64u32 {
            for k in (0..8).rev().filter(|k| *k != 4 || step % 2 == 1) {
                let index = batched[k].len() as u32;
                if index < 32 {
                    batched[k].push(samplers[k].sample(&mut logits(index, 300), index).unwrap().id.0);
                }
            }
        }
        assert_eq!(batched, alone);
    }

    #[test]
    fn log_probabilities_are_those_before_every_knob() {
        let params = SamplingParams {
            temperature: 0.2,
            top_k: 2,
            logit_bias: vec![(TokenId(0), 50.0)],
            repetition_penalty: 3.0,
            logprobs: Some(2),
            ..seeded(1)
        };
        let probs = [0.1f32, 0.2, 0.3, 0.4];
        let token = sampler(&params, 4).sample(&mut probs.map(f32::ln), 0).unwrap();
        assert_eq!(token.id, TokenId(0));
        let logprobs = token.logprobs.unwrap();
        assert!((logprobs.chosen - 0.1f32.ln()).abs() < 1e-6);
        assert_eq!(logprobs.top.iter().map(|(token, _)| token.0).collect::<Vec<_>>(), [3, 2]);
        assert!((logprobs.top[0].1 - 0.4f32.ln()).abs() < 1e-6);
    }

    #[test]
    fn penalties_learn_what_was_chosen() {
        let params = SamplingParams { temperature: 0.0, presence_penalty: 1.5, ..SamplingParams::default() };
        let mut sampler = sampler(&params, 3);
        let chosen = [0, 1, 2].map(|index| sampler.sample(&mut [2.0, 1.0, 0.0], index).unwrap().id.0);
        // 2 and 1, then 0.5 and 1, then 0.5 and -0.5.
        assert_eq!(chosen, [0, 1, 0]);
    }

    #[test]
    fn the_order_of_the_samplers_is_the_requests() {
        use crate::params::SamplerKind::{Temperature, TopP};
        // Hot, the three tokens are about equally likely and top_p needs two; cold, the first alone reaches it.
        let probs = [0.7f32, 0.2, 0.1];
        let drawn = |samplers: Vec<crate::params::SamplerKind>| {
            let params = SamplingParams { temperature: 50.0, top_p: 0.6, samplers, ..seeded(1) };
            let mut sampler = sampler(&params, 3);
            let mut seen = [false; 3];
            (0..200).for_each(|index| seen[sampler.sample(&mut probs.map(f32::ln), index).unwrap().id.index()] = true);
            seen
        };
        assert_eq!(drawn(Vec::new()), [true, true, false]);
        assert_eq!(drawn(vec![Temperature, TopP]), [true, true, false]);
        assert_eq!(drawn(vec![TopP, Temperature]), [true, false, false]);
        assert_eq!(drawn(vec![Temperature]), [true, true, true], "top_p is not in the list");
    }

    #[test]
    fn a_sequence_that_went_back_chooses_differently_there_and_as_ever_before() {
        let params = SamplingParams { bad_words: vec!["x".into()], presence_penalty: 0.5, mirostat: 2, ..seeded(3) };
        let (mut straight, mut turned) = (sampler(&params, 50), sampler(&params, 50));
        let first = run(&mut straight, 4, 50);
        assert_eq!(run(&mut turned, 4, 50), first);
        let wrong = [4, 5].map(|index| turned.sample(&mut logits(index, 50), index).unwrap().id);
        turned.rewind(4, &wrong);
        let other = turned.sample(&mut logits(4, 50), 4).unwrap().id;
        assert_ne!(other, wrong[0]);
        // Back to before that: what was banned there no longer is.
        turned.rewind(3, &[TokenId(first[3]), other]);
        assert_ne!(turned.sample(&mut logits(3, 50), 3).unwrap().id.0, first[3]);
        assert_eq!(turned.bans, [(3, TokenId(first[3]))]);
    }

    #[test]
    fn wishes_that_leave_nothing_are_refused_at_the_door_or_end_the_sequence_alone() {
        let params = SamplingParams {
            allowed_token_ids: vec![TokenId(1)],
            banned_token_ids: vec![TokenId(1)],
            ..SamplingParams::default()
        };
        assert_eq!(validate(&params, &[], 3).unwrap_err().violations[0].field, "allowed_token_ids");
        let error = sampler(&params, 3).sample(&mut [0.0; 3], 0).unwrap_err();
        assert_eq!(error.code, Code::Aborted);
    }

    #[test]
    fn logits_that_no_model_may_give_are_an_internal_error() {
        const INF: f32 = f32::INFINITY;
        let mut sampler = sampler(&seeded(1), 3);
        for mut bad in [vec![0.0, f32::NAN, 1.0], vec![0.0, INF, 1.0], vec![-INF; 3], vec![0.0; 2]] {
            let error = sampler.sample(&mut bad, 0).unwrap_err();
            assert_eq!(error.code, crate::error::Code::Internal, "{bad:?}");
        }
        assert_eq!(sampler.sample(&mut [-INF, 0.0, -INF], 0).unwrap().id, TokenId(1));
    }

    #[test]
    fn no_combination_of_extreme_knobs_leaves_nothing_to_choose() {
        for temperature in [0.0, 1e-5, 1e-3, 1.0, f32::MAX] {
            for repetition_penalty in [f32::MIN_POSITIVE, 1.0, f32::MAX] {
                for (top_k, top_p, min_p) in [(0, 1.0, 0.0), (1, 1.0, 0.0), (0, f32::MIN_POSITIVE, 0.0), (2, 0.5, 1.0)]
                {
                    let params = SamplingParams {
                        temperature,
                        repetition_penalty,
                        top_k,
                        top_p,
                        min_p,
                        min_tokens: 5,
                        ..seeded(3)
                    };
                    let prompt = [TokenId(0), TokenId(1), TokenId(3)];
                    let context = SamplingContext {
                        prompt: &prompt,
                        eos_token_ids: &[TokenId(2)],
                        vocab_size: 4,
                        ..SamplingContext::default()
                    };
                    let mut sampler = Sampler::new(&params, &context).unwrap();
                    for index in 0..8 {
                        sampler.sample(&mut [20.0, -20.0, 19.0, 0.0], index).unwrap();
                    }
                }
            }
        }
    }

    #[test]
    fn what_does_not_fit_the_vocabulary_is_refused_at_the_door() {
        let bias = SamplingParams { logit_bias: vec![(TokenId(5), 1.0)], ..SamplingParams::default() };
        assert!(validate(&bias, &[], 6).is_ok());
        assert_eq!(validate(&bias, &[], 5).unwrap_err().violations[0].field, "logit_bias[5]");
        let range = SamplingParams { top_p: 2.0, ..SamplingParams::default() };
        assert_eq!(validate(&range, &[], 5).unwrap_err().violations[0].field, "top_p");
    }
}
