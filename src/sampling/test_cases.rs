//! What the processors' tests share: how to run one alone, and the distribution of llama.cpp's cases.

use super::{Candidates, LogitsProcessor, SamplingContext};
use crate::ids::TokenId;

/// The distribution that the cases of llama.cpp's `tests/test-sampling.cpp` start from.
pub(super) const LLAMA_CPP_PROBS: [f32; 4] = [0.1, 0.2, 0.3, 0.4];

/// A model of `vocab_size` tokens without an end, an empty prompt.
pub(super) fn context(vocab_size: usize) -> SamplingContext<'static> {
    SamplingContext { vocab_size, ..SamplingContext::default() }
}

/// Lets a processor that does not look at the candidates observe these tokens.
pub(super) fn observe(processor: &mut dyn LogitsProcessor, tokens: &[u32]) {
    let mut kept = Vec::new();
    let left = Candidates::new(&mut [], &mut kept);
    tokens.iter().for_each(|&token| processor.observe(TokenId(token), &left));
}

/// The probabilities of all tokens by their ids after a processor; those that it dropped have none.
pub(super) fn probabilities_after(processor: &dyn LogitsProcessor, logits: &[f32], index: u32) -> Vec<f32> {
    let (mut logits, mut kept) = (logits.to_vec(), Vec::new());
    let n = logits.len();
    let mut candidates = Candidates::new(&mut logits, &mut kept);
    processor.apply(&mut candidates, index);
    let left = match candidates.kept() {
        Some(kept) => {
            let mut left = vec![f32::NEG_INFINITY; n];
            kept.iter().for_each(|candidate| left[candidate.id.index()] = candidate.logit);
            left
        }
        None => candidates.logits_mut().to_vec(),
    };
    softmax(&left)
}

/// The logits that a processor of the whole vocabulary leaves.
pub(super) fn logits_after(processor: &dyn LogitsProcessor, logits: &[f32], index: u32) -> Vec<f32> {
    let (mut logits, mut kept) = (logits.to_vec(), Vec::new());
    processor.apply(&mut Candidates::new(&mut logits, &mut kept), index);
    logits
}

/// The renormalized probabilities of what a truncating processor keeps, in its order.
pub(super) fn kept_after(processor: &dyn LogitsProcessor, probs: &[f32]) -> Vec<f32> {
    let (mut logits, mut kept) = (probs.iter().map(|p| p.ln()).collect::<Vec<_>>(), Vec::new());
    let mut candidates = Candidates::new(&mut logits, &mut kept);
    processor.apply(&mut candidates, 0);
    softmax(&candidates.kept().unwrap().iter().map(|candidate| candidate.logit).collect::<Vec<_>>())
}

/// In double precision.
pub(super) fn softmax(logits: &[f32]) -> Vec<f32> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let exp: Vec<f64> = logits.iter().map(|&logit| f64::from(logit - max).exp()).collect();
    let total: f64 = exp.iter().sum();
    exp.iter().map(|e| (e / total) as f32).collect()
}

/// Fails where any two differ by more than `tolerance`.
pub(super) fn assert_close(actual: &[f32], expected: &[f32], tolerance: f32, case: &str) {
    let close = actual.iter().zip(expected).all(|(a, b)| (a - b).abs() <= tolerance);
    assert!(actual.len() == expected.len() && close, "{case}: {actual:?}, not {expected:?}");
}
