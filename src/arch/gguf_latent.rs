//! Sizes of a latent attention out of the metadata of a GGUF file (`deepseek2`), and what only files of such models say.

use crate::{
    arch::{config::limits, gguf_config::Keys, gguf_family::Family},
    error::Result,
    layers::latent_attention::LatentSizes,
};

/// What llama.cpp's converter multiplies `mscale_all_dim` with.
pub(crate) const LOG_MULTIPLIER: f64 = 0.1;
/// The number of `expert_gating_func` that stands for a sigmoid.
pub(crate) const SIGMOID: usize = 2;

impl Keys<'_> {
    /// Of a model of so many heads.
    pub(super) fn latent(&self, heads: usize) -> Result<LatentSizes> {
        // Older files have a head's sizes under the names that now say what one shared by all heads would be.
        let length = |own: &str, older: &str| match self.size(own, limits::HEAD_PART)? {
            Some(length) => Ok(length),
            None => self.required_size(older, limits::HEAD_PART),
        };
        let key = length("attention.key_length_mla", "attention.key_length")?;
        let value = length("attention.value_length_mla", "attention.value_length")?;
        let rope = self.required_size("rope.dimension_count", limits::HEAD_PART)?;
        let Some(nope) = key.checked_sub(rope).filter(|&nope| nope > 0) else {
            let why = format!("is {rope}, must leave some of the {key} numbers of a key");
            return Err(self.wrong("rope.dimension_count", why));
        };
        if value > key {
            return Err(
                self.wrong("attention.value_length_mla", format!("is {value}, must be at most the key's {key}"))
            );
        }
        let kv_rank = self.required_size("attention.kv_lora_rank", limits::HIDDEN)?;
        if let Some(other) = self.size("attention.head_count_kv", limits::HEADS)?.filter(|kv| ![1, heads].contains(kv))
        {
            let why = format!("is {other}, must be 1 or the {heads} attention heads, beside kv_lora_rank");
            return Err(self.wrong("attention.head_count_kv", why));
        }
        let q_rank = self.size("attention.q_lora_rank", 0..=*limits::HIDDEN.end())?.filter(|&rank| rank > 0);
        Ok(LatentSizes { kv_rank, q_rank, nope, rope, value })
    }

    /// What makes of YaRN's factor what scores are multiplied with, in files of a family that says so.
    pub(super) fn mscale_all_dim(&self, family: &Family) -> Result<Option<f64>> {
        let multiplier = self.positive("rope.scaling.yarn_log_multiplier")?.filter(|_| family.has_latents);
        Ok(multiplier.map(|multiplier| f64::from(multiplier) / LOG_MULTIPLIER))
    }

    /// Refuses experts that are not chosen by sigmoids: DeepSeek V2 goes by the same name.
    pub(super) fn check_gating(&self) -> Result<()> {
        let name = "expert_gating_func";
        match self.size(name, 0..=usize::MAX)? {
            Some(SIGMOID) => Ok(()),
            given => {
                let given = given.map_or_else(|| "missing".to_owned(), |other| other.to_string());
                let why = format!("is {given}; supported is {SIGMOID}, sigmoids (DeepSeek V3), not a softmax (V2)");
                Err(self.wrong(name, why))
            }
        }
    }
}
