//! Rotary positions: which frequencies a model turns its queries and keys by (Su et al. 2021, arXiv 2104.09864).

use std::{
    borrow::Cow,
    sync::{Arc, PoisonError, RwLock},
};

use candle_core::{Device, Tensor};

pub use crate::kernels::rope::RopeStyle;
use crate::{
    error::Result,
    ids::Slot,
    kernels::{
        rope::{HeadNorm, RopeTable, rope},
        store_kv::{KvLayer, QkvHeads, rope_and_store_kv},
    },
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
    /// The base raised with the length: positions past the first training's turn as in a sequence that ends with them, so
    /// that a token's turn does not depend on what comes after it.
    Dynamic {
        /// How steeply.
        factor: f64,
        /// Tokens of the first training.
        original_max_position_embeddings: usize,
    },
    /// YaRN (Peng et al. 2023, arXiv 2309.00071).
    Yarn(Yarn),
    /// A divisor a frequency, of one of two lists (LongRoPE, arXiv 2402.13753).
    LongRope(LongRope),
    /// A divisor a frequency, as a GGUF file spells out (`rope_freqs.weight`): `[rotary_dim / 2]`.
    Divisors(Vec<f32>),
}

/// YaRN's parameters: waves that turn more than `beta_fast` times in the first training's length are kept, those that turn
/// less than `beta_slow` times are stretched by `factor`, a ramp over the frequencies between.
#[derive(Clone, Debug, PartialEq)]
pub struct Yarn {
    /// Of the long wavelengths.
    pub factor: f64,
    /// Tokens of the first training.
    pub original_max_position_embeddings: usize,
    /// Turns above which a wave is kept.
    pub beta_fast: f64,
    /// Turns below which one is stretched.
    pub beta_slow: f64,
    /// Whether the ramp begins and ends at whole frequencies.
    pub truncate: bool,
    /// What sines and cosines are multiplied with.
    pub attention_factor: f64,
}

impl Yarn {
    /// What sines and cosines are multiplied with where a file does not say: `0.1 mscale ln(factor) + 1`.
    #[must_use]
    pub fn attention_factor(factor: f64, mscale: f64) -> f64 {
        if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 }
    }

    /// The frequency of pair `i`, which was `f`.
    fn stretch(&self, f: f64, i: usize, theta: f64, rotary_dim: usize) -> f64 {
        let dim = rotary_dim as f64;
        let length = self.original_max_position_embeddings as f64;
        let turning = |turns: f64| dim * (length / (turns * 2.0 * std::f64::consts::PI)).ln() / (2.0 * theta.ln());
        let (low, high) = (turning(self.beta_fast), turning(self.beta_slow));
        let (low, high) = if self.truncate { (low.floor(), high.ceil()) } else { (low, high) };
        let (low, high) = (low.max(0.0), high.min(dim - 1.0));
        let width = if low == high { 0.001 } else { high - low };
        let stretched = ((i as f64 - low) / width).clamp(0.0, 1.0);
        f / self.factor * stretched + f * (1.0 - stretched)
    }
}

/// LongRoPE's parameters. Which of its lists counts is decided once for a model that is served, by how long its sequences may
/// become, so that a token's turn depends neither on its sequence's length nor on how that was cut.
#[derive(Clone, Debug, PartialEq)]
pub struct LongRope {
    /// Divisors where sequences are no longer than the first training's: `[rotary_dim / 2]`.
    pub short: Vec<f32>,
    /// Those where they may be: as many.
    pub long: Vec<f32>,
    /// Tokens of the first training.
    pub original_max_position_embeddings: usize,
    /// Tokens that a sequence may have: the model's longest context, or less where less is served.
    pub max_model_len: usize,
    /// What sines and cosines are multiplied with, at least 1. Both lists have the same.
    pub attention_factor: f64,
}

impl LongRope {
    /// The list that counts.
    #[must_use]
    pub fn divisors(&self) -> &[f32] {
        if self.max_model_len > self.original_max_position_embeddings { &self.long } else { &self.short }
    }
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
            RopeScaling::Default | RopeScaling::Dynamic { .. } => base.map(|f| f as f32).collect(),
            RopeScaling::Linear { factor } => base.map(|f| (f / factor) as f32).collect(),
            RopeScaling::Yarn(yarn) => {
                let stretch = |(i, f)| yarn.stretch(f, i, self.theta, self.rotary_dim) as f32;
                base.enumerate().map(stretch).collect()
            }
            RopeScaling::Divisors(divisors) => divided(base, divisors),
            RopeScaling::LongRope(long) => divided(base, long.divisors()),
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

    /// What sines and cosines are multiplied with.
    #[must_use]
    pub fn attention_factor(&self) -> f64 {
        match &self.scaling {
            RopeScaling::Yarn(yarn) => yarn.attention_factor,
            RopeScaling::LongRope(long) => long.attention_factor,
            _ => 1.0,
        }
    }

    /// The same where sequences end at so many tokens, which are at most the model's longest context.
    #[must_use]
    pub fn up_to(mut self, max_model_len: usize) -> Self {
        if let RopeScaling::LongRope(long) = &mut self.scaling {
            long.max_model_len = max_model_len;
        }
        self
    }

    /// Radians a position at this position, where they differ from those at the first: past the first training's length of
    /// a dynamic scaling.
    fn inv_freq_at(&self, position: usize) -> Option<Vec<f32>> {
        let RopeScaling::Dynamic { factor, original_max_position_embeddings } = self.scaling else { return None };
        let length = position + 1;
        if length <= original_max_position_embeddings {
            return None;
        }
        let dim = self.rotary_dim as f64;
        let grown = factor * length as f64 / original_max_position_embeddings as f64 - (factor - 1.0);
        let theta = self.theta * grown.powf(dim / (dim - 2.0));
        Some(Self { theta, scaling: RopeScaling::Default, ..self.clone() }.inv_freq())
    }
}

/// Each frequency by its divisor.
fn divided(frequencies: impl Iterator<Item = f64>, divisors: &[f32]) -> Vec<f32> {
    frequencies.zip(divisors).map(|(f, d)| (f / f64::from(*d)) as f32).collect()
}

/// Positions a table begins with.
const FIRST_POSITIONS: usize = 1024;

/// Sines and cosines of a model's positions, shared by its layers. The table grows as sequences get longer: what a file
/// claims as its longest context is no reason to prepare for it.
pub struct Rope {
    config: RopeConfig,
    device: Device,
    table: RwLock<Arc<RopeTable>>,
}

impl Rope {
    /// The rotary positions of a model on `device`.
    ///
    /// # Errors
    /// `Internal` where the device has no memory.
    pub fn new(config: &RopeConfig, device: &Device) -> Result<Self> {
        let table = RwLock::new(Arc::new(Self::make(config, FIRST_POSITIONS, device)?));
        Ok(Self { config: config.clone(), device: device.clone(), table })
    }

    fn make(config: &RopeConfig, positions: usize, device: &Device) -> Result<RopeTable> {
        let first = config.inv_freq();
        let inv_freq = |position| config.inv_freq_at(position).map_or(Cow::Borrowed(first.as_slice()), Cow::Owned);
        RopeTable::by_position(first.len(), inv_freq, positions, config.attention_factor() as f32, device)
    }

    /// Turns `x` `[tokens, heads, head_dim]`, normed first where there is a norm, by the tokens' positions.
    ///
    /// # Errors
    /// `Internal` where the shapes do not fit or the device has no memory.
    pub fn forward(&self, x: &Tensor, norm: Option<HeadNorm<'_>>, positions: &[u32]) -> Result<Tensor> {
        let table = self.table(positions)?;
        rope(x, norm, positions, &table, self.config.style)
    }

    /// Turns the first `queries` heads of `qkv` `[tokens, heads, head_dim]` and the keys behind them, each normed first where
    /// there are norms, and writes keys and values to `slots`; the queries are the result.
    ///
    /// # Errors
    /// `Internal` where the shapes do not fit, a slot is outside the cache or the device has no memory.
    pub fn forward_and_store(
        &self,
        qkv: &Tensor,
        queries: usize,
        norms: Option<[HeadNorm<'_>; 2]>,
        positions: &[u32],
        cache: &KvLayer,
        slots: &[Slot],
    ) -> Result<Tensor> {
        let table = self.table(positions)?;
        let heads = QkvHeads { queries, norms, positions, table: &table, style: self.config.style };
        rope_and_store_kv(qkv, &heads, cache, slots)
    }

    /// A table that has all of `positions`.
    fn table(&self, positions: &[u32]) -> Result<Arc<RopeTable>> {
        let needed = positions.iter().max().map_or(0, |&last| last as usize + 1);
        // A table is replaced whole, so one that a panic left behind is as good as any.
        let table = Arc::clone(&self.table.read().unwrap_or_else(PoisonError::into_inner));
        if needed <= table.max_positions() { Ok(table) } else { self.grow(needed) }
    }

    fn grow(&self, needed: usize) -> Result<Arc<RopeTable>> {
        let count = needed.next_power_of_two();
        let table = Arc::new(Self::make(&self.config, count, &self.device)?);
        *self.table.write().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&table);
        Ok(table)
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
        let (plain, scaled) =
            (config(RopeScaling::Default).inv_freq(), config(RopeScaling::Divisors(divisors)).inv_freq());
        for (k, (p, s)) in plain.iter().zip(&scaled).enumerate() {
            assert!((p / (k as f32 + 1.0) - s).abs() <= p * 1e-6);
        }
    }

    #[test]
    fn longrope_goes_by_its_short_list_where_no_sequence_is_longer_than_the_first_training() {
        let long = LongRope {
            short: vec![2.0; 8],
            long: vec![4.0; 8],
            original_max_position_embeddings: 4096,
            max_model_len: 1 << 17,
            attention_factor: 1.25,
        };
        let long = config(RopeScaling::LongRope(long));
        let plain = config(RopeScaling::Default).inv_freq();
        for (max_model_len, divisor) in [(1 << 17, 4.0), (4097, 4.0), (4096, 2.0), (1, 2.0)] {
            let served = long.clone().up_to(max_model_len);
            assert!(served.inv_freq().iter().zip(&plain).all(|(s, p)| s * divisor == *p), "{max_model_len}");
            assert_eq!(served.attention_factor(), 1.25);
        }
        let other = config(RopeScaling::Linear { factor: 2.0 });
        assert_eq!(other.clone().up_to(1), other);
    }
}
