//! Rotary positions: which frequencies a model turns its queries and keys by (Su et al. 2021, arXiv 2104.09864).

use candle_core::{Device, Tensor};

pub use crate::kernels::rope::RopeStyle;
use crate::{
    error::Result,
    kernels::rope::{RopeTable, rope},
};

/// How a model was stretched beyond the length it was first trained at.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    Default,
    /// Every frequency divided by `factor`.
    Linear {
        /// At least 1 in practice.
        factor: f64,
    },
    /// Llama 3.1's: wavelengths beyond `original / low_freq_factor` divided by `factor`, those below
    /// `original / high_freq_factor` kept, a ramp between.
    Llama3 {
        /// Of the long wavelengths.
        factor: f64,
        /// Where stretching is whole.
        low_freq_factor: f64,
        /// Where it begins.
        high_freq_factor: f64,
        /// Tokens of the first training.
        original_max_position_embeddings: usize,
    },
    /// A divisor a frequency, as a GGUF file spells out (`rope_freqs.weight`): `[rotary_dim / 2]`.
    Divisors(Vec<f32>),
}

/// A model's rotary positions.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeConfig {
    /// Base of the wavelengths.
    pub theta: f64,
    /// Numbers of a head that are turned, from its first; the rest stay. Even.
    pub rotary_dim: usize,
    /// How it was stretched.
    pub scaling: RopeScaling,
    /// Which numbers make a pair: halves apart (Hugging Face), or neighbours (GGUF files of Llama, whose query and key
    /// rows are permuted).
    pub style: RopeStyle,
}

impl RopeConfig {
    /// Radians a position, a pair: `[rotary_dim / 2]`.
    #[must_use]
    pub fn inv_freq(&self) -> Vec<f32> {
        let base = (0..self.rotary_dim / 2).map(|i| self.theta.powf(-2.0 * i as f64 / self.rotary_dim as f64));
        match &self.scaling {
            RopeScaling::Default => base.map(|f| f as f32).collect(),
            RopeScaling::Linear { factor } => base.map(|f| (f / factor) as f32).collect(),
            RopeScaling::Divisors(divisors) => base.zip(divisors).map(|(f, d)| (f / f64::from(*d)) as f32).collect(),
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
                let original = *original_max_position_embeddings as f64;
                let stretch = |f: f64| {
                    let turns = original * f / (2.0 * std::f64::consts::PI);
                    let kept = ((turns - low_freq_factor) / (high_freq_factor - low_freq_factor)).clamp(0.0, 1.0);
                    (1.0 - kept) * f / factor + kept * f
                };
                base.map(|f| stretch(f) as f32).collect()
            }
        }
    }
}

/// Sines and cosines of all positions of a model, shared by its layers.
pub struct Rope {
    table: RopeTable,
    style: RopeStyle,
}

impl Rope {
    /// For positions below `max_positions`.
    ///
    /// # Errors
    /// `Internal` where the device has no memory.
    pub fn new(config: &RopeConfig, max_positions: usize, device: &Device) -> Result<Self> {
        let table = RopeTable::new(&config.inv_freq(), max_positions, 1.0, device)?;
        Ok(Self { table, style: config.style })
    }

    /// Turns `x` `[tokens, heads, head_dim]` by the tokens' positions.
    ///
    /// # Errors
    /// `Internal` where a position is beyond the table.
    pub fn forward(&self, x: &Tensor, positions: &[u32]) -> Result<Tensor> {
        rope(x, positions, &self.table, self.style)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(scaling: RopeScaling) -> RopeConfig {
        RopeConfig { theta: 500_000.0, rotary_dim: 16, scaling, style: RopeStyle::Halves }
    }

    #[test]
    fn the_first_pair_turns_a_radian_a_position_and_the_others_slower() {
        let frequencies = config(RopeScaling::Default).inv_freq();
        assert_eq!(frequencies.len(), 8);
        assert_eq!(frequencies[0], 1.0);
        assert!(frequencies.windows(2).all(|pair| pair[1] < pair[0]));
    }

    #[test]
    fn llama3_keeps_short_waves_and_stretches_long_ones_by_the_factor() {
        let scaling = RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 64,
        };
        let (plain, scaled) = (config(RopeScaling::Default).inv_freq(), config(scaling).inv_freq());
        assert_eq!(plain[0], scaled[0]);
        assert_eq!(plain[7] / 8.0, scaled[7]);
        let between = scaled[1] / plain[1];
        assert!(between > 1.0 / 8.0 && between < 1.0, "{between}");
    }

    #[test]
    fn divisors_of_a_gguf_file_divide_one_by_one() {
        let divisors: Vec<f32> = (1..=8).map(|k| k as f32).collect();
        let (plain, scaled) = (config(RopeScaling::Default).inv_freq(), config(RopeScaling::Divisors(divisors)).inv_freq());
        for (k, (p, s)) in plain.iter().zip(&scaled).enumerate() {
            assert!((p / (k as f32 + 1.0) - s).abs() <= p * 1e-6);
        }
    }
}
