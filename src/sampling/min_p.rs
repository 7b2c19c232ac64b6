//! `min_p`: keeps tokens at least this share as likely as the most likely one.

use super::{Candidates, LogitsProcessor, SamplingContext, is_greedy};
use crate::{error::Result, kernels::sample::Draw, params::SamplingParams};

/// Keeps logits within `ln(min_p)` of the largest.
pub(super) struct MinP {
    min_p: f32,
}

impl LogitsProcessor for MinP {
    fn from_params(params: &SamplingParams, _context: &SamplingContext<'_>) -> Result<Option<Self>> {
        let off = params.min_p <= 0.0 || is_greedy(params);
        Ok((!off).then(|| Self { min_p: params.min_p.min(1.0) }))
    }

    fn apply(&self, candidates: &mut Candidates<'_>, _index: u32) {
        candidates.keep_above(candidates.max_logit() + self.min_p.ln());
    }

    fn narrow(&self, draw: Draw) -> Option<Draw> {
        (draw.top_k == 0 && draw.top_p == 1.0).then_some(Draw { min_p: self.min_p, ..draw })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampling::test_cases::{LLAMA_CPP_PROBS, assert_close, context, kept_after};

    /// The cases of llama.cpp's `tests/test-sampling.cpp`, less the one above 1, which is out of range here.
    #[test]
    fn llama_cpp_agrees() {
        let cases: [(f32, &[f32]); 7] = [
            (0.24, &[0.1, 0.2, 0.3, 0.4]),
            (0.26, &[0.222_222, 0.333_333, 0.444_444]),
            (0.49, &[0.222_222, 0.333_333, 0.444_444]),
            (0.51, &[0.428_571, 0.571_429]),
            (0.74, &[0.428_571, 0.571_429]),
            (0.76, &[1.0]),
            (1.0, &[1.0]),
        ];
        for (min_p, expected) in cases {
            let params = SamplingParams { min_p, ..SamplingParams::default() };
            let processor = MinP::from_params(&params, &context(4)).unwrap().unwrap();
            assert_close(&kept_after(&processor, &LLAMA_CPP_PROBS), expected, 1e-6, &format!("min_p {min_p}"));
        }
        assert!(MinP::from_params(&SamplingParams::default(), &context(4)).unwrap().is_none());
    }
}
