//! `dry_multiplier` and its company: against repeating in a row what was said in a row (p-e-w, DRY, 2024).

use std::collections::HashMap;

use super::{Candidates, LogitsProcessor, SamplingContext};
use crate::{error::Result, ids::TokenId, params::SamplingParams};

/// Longer repetitions count as this long; their penalty is far beyond any logit by then.
const LONGEST: u32 = 1024;

/// Takes `multiplier · base ^ (n - allowed_length)` from the logit of every token that came, earlier in the context,
/// after the same `n >= allowed_length` tokens that the context ends with; the largest such `n` counts. As in
/// llama.cpp, no repetition reaches back across a sequence breaker, and a token that is a breaker by itself goes free.
pub(super) struct Dry {
    multiplier: f32,
    base: f32,
    allowed_length: u32,
    /// Tokens looked at, from the end.
    window: usize,
    breakers: Vec<Vec<TokenId>>,
    /// Prompt and output.
    context: Vec<TokenId>,
    /// Where each token stands in the context.
    places: HashMap<TokenId, Vec<u32>>,
    /// For each place that comes after the token that the context ends with: how many tokens before the place are
    /// those that the context ends with. Sorted by place. A new token makes the new ones out of the old ones, so that
    /// a step costs as much as the token is frequent.
    matches: Vec<(u32, u32)>,
    /// Tokens since the last breaker.
    unbroken: u32,
}

impl LogitsProcessor for Dry {
    fn from_params(params: &SamplingParams, context: &SamplingContext<'_>) -> Result<Option<Self>> {
        if !params.wants_dry() {
            return Ok(None);
        }
        let mut dry = Self {
            multiplier: params.dry_multiplier,
            base: params.dry_base,
            allowed_length: params.dry_allowed_length,
            window: usize::try_from(params.dry_penalty_last_n).unwrap_or(usize::MAX),
            breakers: context.dry_breakers.to_vec(),
            context: context.prompt.to_vec(),
            places: HashMap::new(),
            matches: Vec::new(),
            unbroken: 0,
        };
        for (place, &token) in (0..).zip(context.prompt) {
            dry.places.entry(token).or_default().push(place);
        }
        dry.recount();
        Ok(Some(dry))
    }

    fn apply(&self, candidates: &mut Candidates<'_>, _index: u32) {
        let mut penalties: HashMap<TokenId, u32> = HashMap::new();
        let window_start = self.context.len().saturating_sub(self.window);
        for &(place, length) in &self.matches {
            let inside = (place as usize).saturating_sub(window_start);
            let length = length.min(self.unbroken).min(u32::try_from(inside).unwrap_or(u32::MAX));
            let token = self.context[place as usize];
            if length >= self.allowed_length && !self.breakers.iter().any(|breaker| breaker[..] == [token]) {
                let longest = penalties.entry(token).or_default();
                *longest = length.max(*longest);
            }
        }
        candidates.change(&penalties, |logit, &length| {
            let exponent = f64::from(length - self.allowed_length);
            let penalty = f64::from(self.multiplier) * f64::from(self.base).powf(exponent);
            (f64::from(logit) - penalty).max(f64::from(f32::MIN)) as f32
        });
    }

    fn observe(&mut self, token: TokenId, _left: &Candidates<'_>) {
        self.push(token);
    }

    fn forget(&mut self, token: TokenId) {
        self.context.pop();
        if let Some(places) = self.places.get_mut(&token) {
            places.pop();
        }
        self.recount();
    }
}

impl Dry {
    /// Takes a token in.
    fn push(&mut self, token: TokenId) {
        let window_start = self.context.len().saturating_sub(self.window);
        let mut before = std::mem::take(&mut self.matches).into_iter().peekable();
        let places = self.places.entry(token).or_default();
        let first = places.partition_point(|&place| (place as usize) < window_start);
        // After an earlier place of this token: what matched before that place has grown by one.
        self.matches = places[first..]
            .iter()
            .map(|&place| {
                while before.next_if(|&(at, _)| at < place).is_some() {}
                let length = before.next_if(|&(at, _)| at == place).map_or(0, |(_, length)| length);
                (place + 1, (length + 1).min(LONGEST))
            })
            .collect();
        places.push(self.context.len() as u32);
        self.context.push(token);
        let broken = self.ends_with_breaker(self.context.len());
        self.unbroken = if broken { 0 } else { self.unbroken.saturating_add(1) };
    }

    fn ends_with_breaker(&self, end: usize) -> bool {
        self.breakers.iter().any(|breaker| self.context[..end].ends_with(breaker))
    }

    /// Finds all matches anew: in linear time, however repetitive the context is.
    fn recount(&mut self) {
        let window_start = self.context.len().saturating_sub(self.window);
        let backwards: Vec<TokenId> = self.context[window_start..].iter().rev().copied().collect();
        // What is `back` tokens before the end stands right before the place `len - back`.
        let same = common_prefixes(&backwards);
        let place = |back: usize| (self.context.len() - back) as u32;
        self.matches = (1..same.len())
            .rev()
            .filter(|&back| same[back] > 0)
            .map(|back| (place(back), (same[back] as u32).min(LONGEST)))
            .collect();
        let unbroken = (0..self.context.len()).take_while(|&back| !self.ends_with_breaker(self.context.len() - back));
        self.unbroken = u32::try_from(unbroken.count()).unwrap_or(u32::MAX);
    }
}

/// How many tokens each end of the list has in common with its beginning (the Z function: Gusfield 1997).
fn common_prefixes(tokens: &[TokenId]) -> Vec<usize> {
    let mut lengths = vec![0; tokens.len()];
    // The stretch that begins with the same tokens as the list and reaches furthest.
    let (mut start, mut end) = (0, 0);
    for at in 1..tokens.len() {
        let known = if at < end { lengths[at - start].min(end - at) } else { 0 };
        let more = tokens[known..].iter().zip(&tokens[at + known..]).take_while(|(one, other)| one == other).count();
        lengths[at] = known + more;
        if at + lengths[at] > end {
            (start, end) = (at, at + lengths[at]);
        }
    }
    lengths
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::sampling::test_cases::{self, context};

    fn params(allowed_length: u32, last_n: i32) -> SamplingParams {
        SamplingParams {
            dry_multiplier: 0.5,
            dry_base: 1.5,
            dry_allowed_length: allowed_length,
            dry_penalty_last_n: last_n,
            ..SamplingParams::default()
        }
    }

    fn ids(ids: &[u32]) -> Vec<TokenId> {
        ids.iter().copied().map(TokenId).collect()
    }

    fn dry(params: &SamplingParams, prompt: &[u32], breakers: &[Vec<TokenId>]) -> Dry {
        let prompt = ids(prompt);
        let context = SamplingContext { prompt: &prompt, dry_breakers: breakers, ..context(8) };
        Dry::from_params(params, &context).unwrap().unwrap()
    }

    /// By the definition, place by place.
    fn penalties_by_definition(params: &SamplingParams, all: &[u32], breakers: &[Vec<TokenId>]) -> Vec<f32> {
        let (all, n) = (ids(all), params.dry_penalty_last_n);
        let tokens = &all[all.len().saturating_sub(usize::try_from(n).unwrap_or(usize::MAX))..];
        let unbroken = (0..all.len())
            .take_while(|back| !breakers.iter().any(|breaker| all[..all.len() - back].ends_with(breaker)))
            .count();
        let mut longest = [0; 8];
        for place in 1..tokens.len() {
            let same = tokens[..place].iter().rev().zip(tokens.iter().rev()).take_while(|(a, b)| a == b).count();
            let token = tokens[place];
            if !breakers.iter().any(|breaker| breaker[..] == [token]) {
                longest[token.index()] = longest[token.index()].max(same.min(unbroken));
            }
        }
        let allowed = params.dry_allowed_length as usize;
        let penalty = |length: usize| params.dry_multiplier * params.dry_base.powi(length as i32 - allowed as i32);
        longest.iter().map(|&length| if length >= allowed { -penalty(length) } else { 0.0 }).collect()
    }

    proptest! {
        #[test]
        fn matches_made_as_we_go_are_those_of_the_definition(
            prompt in prop::collection::vec(0u32..4, 0..12),
            output in prop::collection::vec(0u32..4, 1..40),
            taken_back in 0usize..20,
            allowed_length in 1u32..4,
            last_n in prop::sample::select(vec![-1, 3, 10, 1000]),
            broken in prop::sample::select(vec![vec![], vec![vec![3]], vec![vec![2, 3], vec![0, 1, 0]]]),
        ) {
            let params = params(allowed_length, last_n);
            let breakers: Vec<_> = broken.iter().map(|breaker: &Vec<u32>| ids(breaker)).collect();
            let mut processor = dry(&params, &prompt, &breakers);
            test_cases::observe(&mut processor, &output);
            let kept = output.len() - taken_back.min(output.len());
            output[kept..].iter().rev().for_each(|&token| processor.forget(TokenId(token)));
            for extra in [&[][..], &[0], &[0, 1]] {
                test_cases::observe(&mut processor, extra);
            }
            let all: Vec<u32> = prompt.iter().chain(&output[..kept]).chain(&[0, 0, 1]).copied().collect();
            let logits = test_cases::logits_after(&processor, &[0.0; 8], 0);
            let expected = penalties_by_definition(&params, &all, &breakers);
            test_cases::assert_close(&logits, &expected, 1e-4, "penalties");
        }
    }

    #[test]
    fn an_endless_repetition_costs_no_more_than_a_number_can_be() {
        let params = SamplingParams { dry_base: f32::MAX, ..params(1, -1) };
        let processor = dry(&params, &[1; 3000], &[]);
        assert_eq!(test_cases::logits_after(&processor, &[1.0; 8], 0)[1], f32::MIN);
        assert!(processor.matches.iter().all(|&(_, length)| length <= LONGEST));
    }

    #[test]
    fn it_is_off_unless_asked_for() {
        let looks_at_nothing = SamplingParams { dry_penalty_last_n: 0, ..params(2, 0) };
        for params in [SamplingParams::default(), looks_at_nothing] {
            assert!(Dry::from_params(&params, &context(8)).unwrap().is_none());
        }
    }
}
