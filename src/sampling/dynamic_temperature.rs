//! `dynatemp_range`, `dynatemp_exponent`: a temperature that the entropy decides, low where the model is sure.

use super::{Candidates, GREEDY_BELOW, LogitsProcessor, SamplingContext, is_greedy, temperature::divide};
use crate::{error::Result, params::SamplingParams};

/// As llama.cpp's `temp_ext`: with `H` the entropy of the `n` candidates in play, the temperature is
/// `low + (high - low) · (H / ln n) ^ exponent`, where `low` and `high` are `temperature ∓ range`, `low` at least 0.
pub(super) struct DynamicTemperature {
    low: f32,
    high: f32,
    exponent: f32,
}

impl DynamicTemperature {
    fn temperature(&self, candidates: &Candidates<'_>) -> f32 {
        let moments = candidates.moments();
        let share = (moments.entropy() / (moments.count as f64).ln()).clamp(0.0, 1.0) as f32;
        self.low + (self.high - self.low) * share.powf(self.exponent)
    }
}

impl LogitsProcessor for DynamicTemperature {
    fn from_params(params: &SamplingParams, _context: &SamplingContext<'_>) -> Result<Option<Self>> {
        let range = params.dynatemp_range;
        let (low, high) = ((params.temperature - range).max(0.0), (params.temperature + range).min(f32::MAX));
        let off = range <= 0.0 || is_greedy(params);
        Ok((!off).then_some(Self { low, high, exponent: params.dynatemp_exponent }))
    }

    fn apply(&self, candidates: &mut Candidates<'_>, _index: u32) {
        let temperature = self.temperature(candidates);
        // NaN where there is one candidate, which needs no temperature.
        if temperature.is_finite() {
            divide(candidates, temperature.max(GREEDY_BELOW));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampling::test_cases::{self, assert_close, context};

    fn after(params: &SamplingParams, probs: &[f32]) -> Vec<f32> {
        let processor = DynamicTemperature::from_params(params, &context(probs.len())).unwrap().unwrap();
        let logits: Vec<f32> = probs.iter().map(|p| p.ln()).collect();
        test_cases::probabilities_after(&processor, &logits, 0)
    }

    #[test]
    fn the_temperature_follows_the_entropy() {
        let params = SamplingParams { temperature: 1.0, dynatemp_range: 0.5, ..SamplingParams::default() };
        // Two tokens of 0.8 and 0.2 have 0.721928 bits of one.
        let squeezed = |p: f32, t: f32| p.powf(1.0 / t) / (p.powf(1.0 / t) + (1.0 - p).powf(1.0 / t));
        let p = squeezed(0.8, 0.5 + 0.721_928);
        assert_close(&after(&params, &[0.8, 0.2]), &[p, 1.0 - p], 1e-5, "straight");
        let bent = SamplingParams { dynatemp_exponent: 2.0, ..params.clone() };
        let p = squeezed(0.8, 0.5 + 0.721_928f32.powi(2));
        assert_close(&after(&bent, &[0.8, 0.2]), &[p, 1.0 - p], 1e-5, "bent");
        assert_close(&after(&params, &[0.25; 4]), &[0.25; 4], 1e-6, "as unsure as can be");
    }

    #[test]
    fn a_range_down_to_zero_leaves_a_distribution() {
        let params = SamplingParams { temperature: 0.5, dynatemp_range: 5.0, ..SamplingParams::default() };
        assert_close(&after(&params, &[1.0, 0.0, 0.0]), &[1.0, 0.0, 0.0], 1e-6, "sure");
        assert_close(&after(&params, &[1.0]), &[1.0], 0.0, "one token");
    }

    #[test]
    fn it_takes_the_place_of_the_plain_temperature() {
        let params = SamplingParams { temperature: 0.5, dynatemp_range: 0.1, ..SamplingParams::default() };
        assert!(super::super::temperature::Temperature::from_params(&params, &context(4)).unwrap().is_none());
        let off = SamplingParams { dynatemp_range: 0.0, ..params };
        assert!(DynamicTemperature::from_params(&off, &context(4)).unwrap().is_none());
    }
}
