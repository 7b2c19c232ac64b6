//! Rotary positions out of the metadata of a GGUF file, and the tensors that spell out frequencies.

use crate::{
    arch::{config::limits, gguf_config::Keys, gguf_family::Family},
    error::{Error, Result},
    kernels::linear::format::WeightFormat,
    layers::rope::{LongRope, RopeConfig, RopeScaling, RopeStyle, Yarn},
};

impl Keys<'_> {
    /// Those of all layers, or of those that see everything.
    pub(super) fn rope(&self, head_dim: usize, style: RopeStyle) -> Result<RopeConfig> {
        let theta = self.positive("rope.freq_base")?.unwrap_or(10_000.0);
        let rotary_dim = self.size("rope.dimension_count", 2..=head_dim)?.unwrap_or(head_dim);
        if !rotary_dim.is_multiple_of(2) {
            return Err(self.wrong("rope.dimension_count", format!("is {rotary_dim}, must be even")));
        }
        let scaling_type = self.gguf.string(&self.key("rope.scaling.type"))?;
        let factor = || {
            let factor = self.positive("rope.scaling.factor")?.ok_or_else(|| self.missing("rope.scaling.factor"))?;
            Ok::<_, Error>(f64::from(factor))
        };
        let long = self.long_rope(rotary_dim / 2)?;
        let scaling = match (self.divisors("rope_freqs.weight", rotary_dim / 2)?, scaling_type) {
            (None, None | Some("none" | "longrope")) if long.is_some() => {
                long.map_or(RopeScaling::Default, RopeScaling::LongRope)
            }
            (Some(divisors), None | Some("none" | "llama3")) => RopeScaling::Divisors(divisors),
            (None, None | Some("none")) => RopeScaling::Default,
            (None, Some("linear")) => RopeScaling::Linear { factor: factor()? },
            (None, Some("yarn")) => self.yarn(factor()?)?,
            (_, Some(other)) => {
                let why = format!("is {other}; supported are none, linear and yarn, or none with rope_freqs.weight");
                return Err(self.wrong("rope.scaling.type", why));
            }
        };
        // Whatever order a file has the rows in, the weights come in Hugging Face's.
        Ok(RopeConfig { theta: theta.into(), rotary_dim, scaling, style })
    }

    /// Those of layers with a window, where they have their own.
    pub(super) fn local_rope(&self, family: &Family, rope: &RopeConfig) -> Result<Option<RopeConfig>> {
        let theta = self.positive("rope.freq_base_swa")?.map(f64::from).or(family.local_theta);
        Ok(theta.map(|theta| RopeConfig { theta, scaling: RopeScaling::Default, ..rope.clone() }))
    }

    fn yarn(&self, factor: f64) -> Result<RopeScaling> {
        let original = self.required_size("rope.scaling.original_context_length", limits::POSITIONS)?;
        let number = |name: &str, otherwise: f64| Ok::<_, Error>(self.positive(name)?.map_or(otherwise, f64::from));
        let family = Family::of(self.prefix());
        // Where scores are multiplied by what the factor gives, sines and cosines are not.
        let in_scores = self.mscale_all_dim(family)?.is_some();
        let usual = if in_scores { 1.0 } else { Yarn::attention_factor(factor, 1.0) };
        Ok(RopeScaling::Yarn(Yarn {
            factor,
            original_max_position_embeddings: original,
            beta_fast: number("rope.scaling.yarn_beta_fast", 32.0)?,
            beta_slow: number("rope.scaling.yarn_beta_slow", 1.0)?,
            truncate: family.truncates_yarn,
            attention_factor: number("rope.scaling.attn_factor", 1.0)? * usual,
        }))
    }

    /// LongRoPE, where the file has both lists of divisors.
    fn long_rope(&self, count: usize) -> Result<Option<LongRope>> {
        let short = self.divisors("rope_factors_short.weight", count)?;
        let long = self.divisors("rope_factors_long.weight", count)?;
        let Some((short, long)) = short.zip(long) else { return Ok(None) };
        Ok(Some(LongRope {
            short,
            long,
            original_max_position_embeddings: self
                .required_size("rope.scaling.original_context_length", limits::POSITIONS)?,
            max_model_len: self.required_size("context_length", limits::POSITIONS)?,
            attention_factor: self.positive("rope.scaling.attn_factor")?.unwrap_or(1.0).into(),
        }))
    }

    /// The tensor `name`, where the file has it.
    fn divisors(&self, name: &str, count: usize) -> Result<Option<Vec<f32>>> {
        let Some(tensor) = self.gguf.tensor(name) else { return Ok(None) };
        let bytes = self.gguf.tensor_bytes(tensor).unwrap_or_default();
        let divisors = bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect::<Vec<_>>();
        let fits = tensor.format == Some(WeightFormat::F32.into()) && tensor.shape == [count];
        if fits && divisors.iter().all(|d| d.is_finite() && *d > 0.0) {
            return Ok(Some(divisors));
        }
        let why = format!("must be {count} float32 numbers above 0");
        Err(Error::bad_file(self.gguf.path(), format!("tensor {name}"), why))
    }
}
