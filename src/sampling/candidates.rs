//! The tokens still in play: the whole vocabulary until a processor truncates, from then on a short list.
//!
//! No step sorts the vocabulary: truncation selects in linear time, and only what is kept gets sorted.

use std::{cmp::Ordering, collections::HashMap};

use super::{
    largest::largest,
    softmax::{Moments, exp_nonpositive, sum_exp},
};
use crate::ids::TokenId;

/// A token and its logit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    /// Which token.
    pub id: TokenId,
    /// Its logit, as processed so far.
    pub logit: f32,
}

impl Candidate {
    /// Most likely first, ties by the lower id. Total, since logits are never NaN.
    fn rank(&self, other: &Self) -> Ordering {
        other.logit.total_cmp(&self.logit).then(self.id.cmp(&other.id))
    }
}

/// The candidates for one output token.
pub struct Candidates<'a> {
    logits: &'a mut [f32],
    kept: &'a mut Vec<Candidate>,
    truncated: bool,
}

impl<'a> Candidates<'a> {
    /// All of the vocabulary. `kept` is scratch; its contents are forgotten, its capacity is reused.
    pub(super) fn new(logits: &'a mut [f32], kept: &'a mut Vec<Candidate>) -> Self {
        kept.clear();
        Self { logits, kept, truncated: false }
    }

    /// The logits of the whole vocabulary, by token id; for processors that come before truncation.
    pub fn logits_mut(&mut self) -> &mut [f32] {
        debug_assert!(!self.truncated, "a processor of the whole vocabulary comes after a truncating one");
        self.logits
    }

    /// The list that truncation left, or `None` while the whole vocabulary is in play.
    #[must_use]
    pub fn kept(&self) -> Option<&[Candidate]> {
        self.truncated.then_some(self.kept.as_slice())
    }

    /// The largest logit; `-inf` where nothing is left.
    #[must_use]
    pub fn max_logit(&self) -> f32 {
        match self.kept() {
            Some(kept) => kept.iter().fold(f32::NEG_INFINITY, |max, candidate| max.max(candidate.logit)),
            None => largest(self.logits),
        }
    }

    /// Replaces every logit.
    pub fn map(&mut self, f: impl Fn(f32) -> f32) {
        if self.truncated {
            self.kept.iter_mut().for_each(|candidate| candidate.logit = f(candidate.logit));
        } else {
            self.logits.iter_mut().for_each(|logit| *logit = f(*logit));
        }
    }

    /// Replaces the logits of the tokens that `changes` has something for, as far as they are in play. Masked ones
    /// stay masked, and no other becomes infinite: a penalty must neither mask the last token nor make one that beats
    /// all others.
    pub fn change<C>(&mut self, changes: &HashMap<TokenId, C>, f: impl Fn(f32, &C) -> f32) {
        let change = |logit: &mut f32, with: &C| {
            if logit.is_finite() {
                *logit = f(*logit, with).clamp(f32::MIN, f32::MAX);
            }
        };
        if self.truncated {
            for candidate in &mut *self.kept {
                if let Some(with) = changes.get(&candidate.id) {
                    change(&mut candidate.logit, with);
                }
            }
        } else {
            for (token, with) in changes {
                if let Some(logit) = self.logits.get_mut(token.index()) {
                    change(logit, with);
                }
            }
        }
    }

    /// What is known of the distribution as a whole; masked candidates have no part in it.
    #[must_use]
    pub fn moments(&self) -> Moments {
        let max = self.max_logit();
        match self.kept() {
            Some(kept) => Moments::of(kept.iter().map(|candidate| candidate.logit), max),
            None => Moments::of_slice(self.logits, max),
        }
    }

    /// Excludes the candidates with at least this logit but the least likely of them, of ties the one with the highest
    /// id. Masked candidates are not counted.
    pub fn drop_above_but_one(&mut self, logit: f32) {
        let above = |candidate: &Candidate| candidate.logit >= logit && candidate.logit > f32::NEG_INFINITY;
        if self.truncated {
            let Some(stays) = self.kept.iter().copied().filter(above).max_by(Candidate::rank) else { return };
            self.kept.retain(|candidate| !above(candidate) || candidate.id == stays.id);
        } else {
            let Some(stays) = enumerate(self.logits).filter(above).max_by(Candidate::rank) else { return };
            for (id, logit) in self.logits.iter_mut().enumerate() {
                let candidate = Candidate { id: TokenId(id as u32), logit: *logit };
                if above(&candidate) && candidate.id != stays.id {
                    *logit = f32::NEG_INFINITY;
                }
            }
        }
    }

    /// Keeps candidates with at least this logit.
    pub fn keep_above(&mut self, logit: f32) {
        if self.truncated {
            self.kept.retain(|candidate| candidate.logit >= logit);
        } else {
            self.kept.extend(enumerate(self.logits).filter(|candidate| candidate.logit >= logit));
            self.truncated = true;
        }
    }

    /// Keeps the `k` most likely candidates, ties by the lower id, and sorts them.
    pub fn keep_top(&mut self, k: usize) {
        if self.truncated {
            if k < self.kept.len() {
                select(self.kept, k);
            }
        } else {
            collect_top(self.logits, k, self.kept);
            self.truncated = true;
        }
        self.kept.sort_unstable_by(Candidate::rank);
    }

    /// Keeps the most likely candidates that together reach the probability `mass`, at least one, sorted.
    pub fn keep_mass(&mut self, mass: f64) {
        let max = self.max_logit();
        let total: f64 = match self.kept() {
            Some(kept) => kept.iter().map(|candidate| f64::from(exp_nonpositive(candidate.logit - max))).sum(),
            None => sum_exp(self.logits, max),
        };
        if !self.truncated {
            // All tokens less likely than this make up less than `1 - mass` together, so none of them is needed.
            let floor = ((1.0 - mass) / self.logits.len() as f64 * total).ln() as f32 + max;
            // A hair lower, for the rounding in `floor` itself.
            self.keep_above(floor - 1e-3);
        }
        self.take_mass(Candidate::rank, max, mass * total);
    }

    /// Keeps the candidates whose surprise is closest to the expected one, until together they reach the probability
    /// `mass`, at least one.
    pub fn keep_typical(&mut self, mass: f64) {
        let moments = self.moments();
        let (max, entropy) = (moments.max, moments.entropy());
        // A logit at this distance below the largest is just as surprising as a token is on average.
        let expected = entropy - moments.log_total();
        self.keep_above(f32::MIN);
        let score = |candidate: &Candidate| (f64::from(max - candidate.logit) - expected).abs();
        let order = |a: &Candidate, b: &Candidate| score(a).total_cmp(&score(b)).then_with(|| a.rank(b));
        self.take_mass(order, max, mass * moments.total);
    }

    /// Keeps the first in `order` of those kept until the sum of `e^(logit - max)` reaches `target`.
    fn take_mass(&mut self, order: impl Fn(&Candidate, &Candidate) -> Ordering, max: f32, target: f64) {
        let (mut sorted, mut sum, mut end) = (0, 0.0, None);
        // Sorts from the top, four times as many each round, until the mass is reached.
        while end.is_none() && sorted < self.kept.len() {
            let rest = &mut self.kept[sorted..];
            let n = (sorted * 3).max(64).min(rest.len());
            if n < rest.len() {
                rest.select_nth_unstable_by(n - 1, &order);
            }
            rest[..n].sort_unstable_by(&order);
            end = rest[..n]
                .iter()
                .position(|candidate| {
                    sum += f64::from(exp_nonpositive(candidate.logit - max));
                    sum >= target
                })
                .map(|at| sorted + at + 1);
            sorted += n;
        }
        self.kept.truncate(end.unwrap_or(sorted));
    }
}

/// The `k` largest of `values`, most likely first, ties by the lower index, into `top`.
pub(super) fn top_of(values: &[f32], k: usize, top: &mut Vec<Candidate>) {
    top.clear();
    collect_top(values, k, top);
    top.sort_unstable_by(Candidate::rank);
}

fn enumerate(logits: &[f32]) -> impl Iterator<Item = Candidate> {
    logits.iter().enumerate().map(|(id, &logit)| Candidate { id: TokenId(id as u32), logit })
}

/// Leaves the `k` first by rank, in no order.
fn select(candidates: &mut Vec<Candidate>, k: usize) {
    if 0 < k && k < candidates.len() {
        candidates.select_nth_unstable_by(k - 1, Candidate::rank);
    }
    candidates.truncate(k);
}

/// Collects the `k` largest in one pass: a buffer of `2 k` takes whatever beats the worst known member of the top `k`,
/// and is cut back to `k` when it is full. Few tokens beat it once the first `k` are known.
fn collect_top(logits: &[f32], k: usize, top: &mut Vec<Candidate>) {
    if k == 0 {
        return;
    }
    if k >= logits.len() {
        top.extend(enumerate(logits));
        return;
    }
    let mut worst = f32::NEG_INFINITY;
    for candidate in enumerate(logits) {
        // An equal logit further on has a higher id and loses, once `k` are known.
        if candidate.logit > worst || top.len() < k {
            top.push(candidate);
            if top.len() == 2 * k {
                select(top, k);
                worst = top.iter().fold(f32::INFINITY, |min, candidate| min.min(candidate.logit));
            }
        }
    }
    select(top, k);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ids(candidates: &Candidates<'_>) -> Vec<u32> {
        candidates.kept().unwrap().iter().map(|candidate| candidate.id.0).collect()
    }

    fn by_full_sort(logits: &[f32]) -> Vec<Candidate> {
        let mut all: Vec<_> = enumerate(logits).collect();
        all.sort_by(Candidate::rank);
        all
    }

    proptest! {
        #[test]
        fn the_top_k_are_those_of_a_full_sort(
            logits in prop::collection::vec((-8i8..8).prop_map(f32::from), 1..400),
            k in 1usize..450,
            floor in prop::option::of(-8i8..8),
        ) {
            let (mut values, mut kept) = (logits.clone(), Vec::new());
            let mut candidates = Candidates::new(&mut values, &mut kept);
            let mut expected = by_full_sort(&logits);
            if let Some(floor) = floor {
                candidates.keep_above(f32::from(floor));
                expected.retain(|candidate| candidate.logit >= f32::from(floor));
            }
            candidates.keep_top(k);
            expected.truncate(k);
            prop_assert_eq!(candidates.kept().unwrap(), expected.as_slice());
        }

        #[test]
        fn the_mass_kept_is_that_of_a_full_sort(
            logits in prop::collection::vec(-30.0f32..30.0, 1..600),
            mass in 0.001f64..1.0,
        ) {
            let (mut values, mut kept) = (logits.clone(), Vec::new());
            let mut candidates = Candidates::new(&mut values, &mut kept);
            candidates.keep_mass(mass);
            let sorted = by_full_sort(&logits);
            let exp: Vec<f64> = sorted.iter().map(|c| f64::from(c.logit - sorted[0].logit).exp()).collect();
            let total: f64 = exp.iter().sum();
            let kept = candidates.kept().unwrap();
            prop_assert_eq!(kept, &sorted[..kept.len()]);
            let reached: f64 = exp[..kept.len()].iter().sum::<f64>() / total;
            let before: f64 = exp[..kept.len() - 1].iter().sum::<f64>() / total;
            prop_assert!(reached >= mass - 1e-5 && before < mass + 1e-5, "{before} < {mass} <= {reached}");
        }
    }

    #[test]
    fn equal_logits_go_to_the_lower_ids() {
        let (mut logits, mut kept) = ([1.0, 2.0, 2.0, 2.0, 0.0], Vec::new());
        let mut candidates = Candidates::new(&mut logits, &mut kept);
        candidates.keep_top(2);
        assert_eq!(ids(&candidates), [1, 2]);
    }

    #[test]
    fn masked_tokens_are_never_needed_for_the_mass() {
        let (mut logits, mut kept) = ([f32::NEG_INFINITY, 0.0, f32::NEG_INFINITY, 0.0], Vec::new());
        let mut candidates = Candidates::new(&mut logits, &mut kept);
        candidates.keep_mass(0.9);
        assert_eq!(ids(&candidates), [1, 3]);
    }
}
