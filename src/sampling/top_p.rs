//! `top_p`: keeps the smallest set of tokens whose probability reaches this (Holtzman et al. 2019, nucleus sampling).

use super::{Candidates, LogitsProcessor, SamplingContext, is_greedy};
use crate::{error::Result, kernels::sample::Draw, params::SamplingParams};

/// Keeps the most likely tokens until their probability, among those that `min_p` and `top_k` left, reaches `top_p`;
/// the token that reaches it is kept.
pub(super) struct TopP {
    mass: f32,
}

impl LogitsProcessor for TopP {
    fn from_params(params: &SamplingParams, _context: &SamplingContext<'_>) -> Result<Option<Self>> {
        let off = params.top_p >= 1.0 || is_greedy(params);
        Ok((!off).then_some(Self { mass: params.top_p }))
    }

    fn apply(&self, candidates: &mut Candidates<'_>, _index: u32) {
        candidates.keep_mass(f64::from(self.mass));
    }

    fn narrow(&self, draw: Draw) -> Option<Draw> {
        Some(Draw { top_p: self.mass, ..draw })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampling::test_cases::{LLAMA_CPP_PROBS, assert_close, context, kept_after};

    /// The cases of llama.cpp's `tests/test-sampling.cpp`; its 0, out of range here, as a very small number.
    #[test]
    fn llama_cpp_agrees() {
        let cases: [(f32, &[f32]); 4] = [
            (1e-6, &[1.0]),
            (0.7, &[0.571_429, 0.428_571]),
            (0.8, &[0.444_444, 0.333_333, 0.222_222]),
            (0.999_999, &[0.4, 0.3, 0.2, 0.1]),
        ];
        for (top_p, expected) in cases {
            let params = SamplingParams { top_p, ..SamplingParams::default() };
            let processor = TopP::from_params(&params, &context(4)).unwrap().unwrap();
            assert_close(&kept_after(&processor, &LLAMA_CPP_PROBS), expected, 1e-6, &format!("top_p {top_p}"));
        }
        assert!(TopP::from_params(&SamplingParams::default(), &context(4)).unwrap().is_none());
    }
}
