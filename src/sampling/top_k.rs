//! `top_k`: keeps the `k` most likely tokens.

use super::{Candidates, LogitsProcessor, SamplingContext, is_greedy};
use crate::{error::Result, kernels::sample::Draw, params::SamplingParams};

/// Keeps exactly `k` tokens, of equally likely ones those with the lower ids; vLLM keeps all that tie with the last.
pub(super) struct TopK {
    k: usize,
}

impl LogitsProcessor for TopK {
    fn from_params(params: &SamplingParams, context: &SamplingContext<'_>) -> Result<Option<Self>> {
        let k = params.top_k as usize;
        let off = k == 0 || k >= context.vocab_size || is_greedy(params);
        Ok((!off).then_some(Self { k }))
    }

    fn apply(&self, candidates: &mut Candidates<'_>, _index: u32) {
        candidates.keep_top(self.k);
    }

    fn narrow(&self, draw: Draw) -> Option<Draw> {
        (draw.top_p == 1.0).then_some(Draw { top_k: self.k as u32, ..draw })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampling::test_cases::{LLAMA_CPP_PROBS, assert_close, context, kept_after};

    /// The cases of llama.cpp's `tests/test-sampling.cpp`; 4 of 4 and 0 leave the processor out.
    #[test]
    fn llama_cpp_agrees() {
        for (top_k, expected) in [(1, &[1.0][..]), (3, &[0.444_444, 0.333_333, 0.222_222])] {
            let params = SamplingParams { top_k, ..SamplingParams::default() };
            let processor = TopK::from_params(&params, &context(4)).unwrap().unwrap();
            assert_close(&kept_after(&processor, &LLAMA_CPP_PROBS), expected, 1e-6, &format!("top_k {top_k}"));
        }
        for top_k in [0, 4, u32::MAX] {
            let params = SamplingParams { top_k, ..SamplingParams::default() };
            assert!(TopK::from_params(&params, &context(4)).unwrap().is_none());
        }
    }
}
