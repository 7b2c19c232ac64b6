//! The choice among the candidates that are left: the most likely one, or one drawn by its probability.

use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng, SeedableRng},
};

use super::{
    Candidates,
    largest::{largest, position_of},
    softmax::{CHUNK, exp_in_place, exp_nonpositive},
};
use crate::ids::TokenId;

/// What a random number is for: each purpose has its own, so that a knob turned on leaves the others' draws alone.
#[derive(Clone, Copy)]
pub(super) enum Purpose {
    /// Which token.
    Token = 0,
    /// Whether XTC excludes.
    Xtc = 1,
}

/// The random number of output token `index`, uniform over `[0, 1)`.
///
/// Counter-based: ChaCha8 keyed by the seed, with the index as its stream, so that a token depends on nothing that was
/// drawn before it. A sequence draws the same numbers whatever else is in the batch, and again after preemption.
pub(super) fn uniform(seed: u64, index: u32, purpose: Purpose) -> f64 {
    let mut key = *b"\0\0\0\0\0\0\0\0candlewick sampling key\0";
    key[..8].copy_from_slice(&seed.to_le_bytes());
    let mut rng = ChaCha8Rng::from_seed(key);
    rng.set_stream((purpose as u64) << 32 | u64::from(index));
    (rng.next_u64() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
}

/// The most likely candidate, of equally likely ones that with the lowest id; `None` where all are masked.
pub(super) fn most_likely(logits: &[f32]) -> Option<TokenId> {
    let max = largest(logits);
    let at = position_of(max, logits)?;
    (max > f32::NEG_INFINITY).then_some(TokenId(at as u32))
}

/// The candidate at `uniform` of the cumulative distribution; `None` where all are masked. Consumes the logits.
///
/// `sums` is scratch.
pub(super) fn by_probability(candidates: &mut Candidates<'_>, uniform: f64, sums: &mut Vec<f64>) -> Option<TokenId> {
    let max = candidates.max_logit();
    if max == f32::NEG_INFINITY {
        return None;
    }
    if let Some(kept) = candidates.kept() {
        let weight = |logit: f32| f64::from(exp_nonpositive(logit - max));
        let target = uniform * kept.iter().map(|candidate| weight(candidate.logit)).sum::<f64>();
        return walk(kept.iter().map(|candidate| weight(candidate.logit)), target).map(|at| kept[at].id);
    }
    let weights = candidates.logits_mut();
    let target = uniform * exp_in_place(weights, max, sums);
    let chunk = walk(sums.iter().copied(), target)?;
    let before: f64 = sums[..chunk].iter().sum();
    let weights = &weights[chunk * CHUNK..];
    let inside = &weights[..weights.len().min(CHUNK)];
    let at = walk(inside.iter().copied().map(f64::from), target - before)?;
    Some(TokenId((chunk * CHUNK + at) as u32))
}

/// The first place where the running sum exceeds `target`; the last of any weight where rounding kept it below.
/// Never a place without weight.
fn walk(weights: impl Iterator<Item = f64>, target: f64) -> Option<usize> {
    let (mut sum, mut last) = (0.0, None);
    for (at, weight) in weights.enumerate() {
        if weight > 0.0 {
            sum += weight;
            last = Some(at);
            if sum > target {
                break;
            }
        }
    }
    last
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equally_likely_tokens_go_to_the_lowest_id() {
        assert_eq!(most_likely(&[0.0, 3.0, 3.0, -1.0]), Some(TokenId(1)));
        assert_eq!(most_likely(&[f32::NEG_INFINITY, f32::NEG_INFINITY]), None);
        assert_eq!(most_likely(&[]), None);
    }

    #[test]
    fn uniform_numbers_cover_the_unit_interval_evenly() {
        for seed in [0, 1, u64::MAX] {
            let mut tenths = [0; 10];
            (0..10_000).for_each(|index| tenths[(uniform(seed, index, Purpose::Token) * 10.0) as usize] += 1);
            assert!(tenths.iter().all(|count| (880..1120).contains(count)), "seed {seed}: {tenths:?}");
        }
    }

    /// A change here changes every seeded answer that anybody has kept.
    #[test]
    fn the_numbers_of_a_seed_stay_what_they_are() {
        let drawn = [(0, 0), (0, 1), (42, 0), (42, 1000)].map(|(seed, index)| uniform(seed, index, Purpose::Token));
        assert_eq!(
            drawn,
            [0.243_443_453_848_805_95, 0.738_655_736_889_658_7, 0.970_440_057_963_238, 0.950_502_734_975_898_7]
        );
    }

    #[test]
    fn each_place_of_the_distribution_goes_to_its_token() {
        let probs = [0.1f32, 0.0, 0.2, 0.3, 0.4];
        let cases = [(0.0, 0), (0.09, 0), (0.11, 2), (0.29, 2), (0.31, 3), (0.59, 3), (0.61, 4), (0.999_999_999, 4)];
        for (uniform, expected) in cases {
            for truncated in [false, true] {
                let (mut logits, mut kept, mut sums) = (probs.map(f32::ln), Vec::new(), Vec::new());
                let mut candidates = Candidates::new(&mut logits, &mut kept);
                if truncated {
                    candidates.keep_above(f32::NEG_INFINITY);
                }
                let drawn = by_probability(&mut candidates, uniform, &mut sums);
                assert_eq!(drawn, Some(TokenId(expected)), "at {uniform}, truncated: {truncated}");
            }
        }
    }

    #[test]
    fn a_large_vocabulary_is_walked_to_the_right_chunk() {
        let (mut kept, mut sums) = (Vec::new(), Vec::new());
        for token in [0usize, 255, 256, 70_000, 99_999] {
            let mut logits = vec![0.0f32; 100_000];
            let middle = (token as f64 + 0.5) / 100_000.0;
            let drawn = by_probability(&mut Candidates::new(&mut logits, &mut kept), middle, &mut sums);
            assert_eq!(drawn, Some(TokenId(token as u32)));
        }
    }

    #[test]
    fn nothing_is_drawn_where_all_are_masked() {
        let (mut logits, mut kept) = ([f32::NEG_INFINITY; 3], Vec::new());
        let drawn = by_probability(&mut Candidates::new(&mut logits, &mut kept), 0.5, &mut Vec::new());
        assert_eq!(drawn, None);
    }
}
