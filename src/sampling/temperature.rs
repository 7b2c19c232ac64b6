//! `temperature`: divides the logits.

use super::{Candidates, LogitsProcessor, SamplingContext, is_greedy};
use crate::{error::Result, kernels::sample::Draw, params::SamplingParams};

/// Divides the logits' distances from the largest by the temperature: the same distribution as dividing the logits,
/// and nothing overflows however small the temperature.
pub(super) struct Temperature {
    temperature: f32,
}

impl LogitsProcessor for Temperature {
    fn from_params(params: &SamplingParams, _context: &SamplingContext<'_>) -> Result<Option<Self>> {
        let off = params.temperature == 1.0 || params.dynatemp_range > 0.0 || is_greedy(params);
        Ok((!off).then_some(Self { temperature: params.temperature }))
    }

    fn apply(&self, candidates: &mut Candidates<'_>, _index: u32) {
        divide(candidates, self.temperature);
    }

    fn narrow(&self, draw: Draw) -> Option<Draw> {
        (draw == Draw::PLAIN).then_some(Draw { temperature: self.temperature, ..draw })
    }
}

/// Divides the distances from the largest logit.
pub(super) fn divide(candidates: &mut Candidates<'_>, temperature: f32) {
    let max = candidates.max_logit();
    if max.is_finite() {
        candidates.map(|logit| (logit - max) / temperature);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampling::test_cases::{self, assert_close, context};

    #[test]
    fn the_distribution_is_that_of_divided_logits() {
        let logs = [0.1f32, 0.2, 0.3, 0.4].map(f32::ln);
        // With a temperature of 1/2 probabilities are squared, with 2 their roots are taken.
        let cases = [
            (0.5, [1.0 / 30.0, 4.0 / 30.0, 9.0 / 30.0, 16.0 / 30.0]),
            (2.0, [0.162_700_5, 0.230_093_2, 0.281_805_5, 0.325_400_9]),
            (1e-4, [0.0, 0.0, 0.0, 1.0]),
        ];
        for (temperature, expected) in cases {
            let params = SamplingParams { temperature, ..SamplingParams::default() };
            let processor = Temperature::from_params(&params, &context(4)).unwrap().unwrap();
            let logits = test_cases::logits_after(&processor, &logs, 0);
            assert_close(&test_cases::softmax(&logits), &expected, 1e-6, &format!("temperature {temperature}"));
        }
    }

    #[test]
    fn one_and_zero_need_no_division() {
        for temperature in [1.0, 0.0, 1e-6] {
            let params = SamplingParams { temperature, ..SamplingParams::default() };
            assert!(Temperature::from_params(&params, &context(4)).unwrap().is_none());
        }
    }
}
