//! Which format each tensor of a file gets: llama.cpp's mixtures, under its names.

use super::DraftTensor;
use crate::{
    error::{Code, Error, Result},
    kernels::linear::{format::WeightFormat, stored::StoredFormat},
    weights::gguf::writer::NewTensor,
};

/// GGUF's name of the head.
pub(super) const HEAD: &str = "output.weight";
const EMBEDDING: &str = "token_embd.weight";

/// Formats of a file's tensors, in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mixture {
    /// Q8_0 everywhere.
    Q8_0,
    /// Q4_0, with a head of Q6_K.
    Q4_0,
    /// Q4_K, with Q6_K for the head and half of the value and down projections.
    Q4KM,
    /// Q5_K, with Q6_K for the head and half of the value and down projections.
    Q5KM,
    /// Q6_K everywhere.
    Q6K,
}

/// A mixture's name and number (`general.file_type`), its main format, and whether half of the value and down
/// projections get more bits.
static MIXTURES: [(Mixture, &str, u32, WeightFormat, bool); 5] = [
    (Mixture::Q8_0, "Q8_0", 7, WeightFormat::Q8_0, false),
    (Mixture::Q4_0, "Q4_0", 2, WeightFormat::Q4_0, false),
    (Mixture::Q4KM, "Q4_K_M", 15, WeightFormat::Q4K, true),
    (Mixture::Q5KM, "Q5_K_M", 17, WeightFormat::Q5K, true),
    (Mixture::Q6K, "Q6_K", 18, WeightFormat::Q6K, false),
];

/// `general.file_type` of plain numbers.
const PLAIN: [(WeightFormat, u32); 3] = [(WeightFormat::F32, 0), (WeightFormat::F16, 1), (WeightFormat::BF16, 32)];

/// Matrices that stay as they are: small, and what they decide is not made good by others.
const KEPT: [&str; 8] = [
    "_norm.weight",
    "ffn_gate_inp.weight",
    "ffn_gate_inp_shexp.weight",
    "position_embd.weight",
    "ssm_conv1d.weight",
    "ssm_ba.weight",
    "ssm_alpha.weight",
    "ssm_beta.weight",
];

impl Mixture {
    /// All of them, with their names.
    pub fn all() -> impl Iterator<Item = (Self, &'static str)> {
        MIXTURES.iter().map(|row| (row.0, row.1))
    }

    fn row(self) -> &'static (Self, &'static str, u32, WeightFormat, bool) {
        MIXTURES.iter().find(|row| row.0 == self).unwrap_or(&MIXTURES[0])
    }

    /// llama.cpp's name.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.row().1
    }

    pub(super) fn file_type(self) -> u32 {
        self.row().2
    }

    /// What a tensor becomes in a model of so many layers, whose head may be its embedding.
    pub(super) fn format(self, tensor: &NewTensor, layers: usize, is_tied: bool) -> Result<StoredFormat> {
        let name = tensor.name.as_str();
        let inputs = tensor.shape.last().copied().unwrap_or(0);
        if tensor.shape.len() < 2 || KEPT.iter().any(|kept| name.ends_with(kept)) || !name.ends_with(".weight") {
            return Ok(tensor.format);
        }
        let &(_, _, _, main, mixes) = self.row();
        let wanted = if name == HEAD || is_tied && name == EMBEDDING {
            if self == Self::Q8_0 { main } else { WeightFormat::Q6K }
        } else if mixes && gets_more_bits(name, layers) {
            WeightFormat::Q6K
        } else {
            main
        };
        let fits = |format: &WeightFormat| inputs.is_multiple_of(format.block_len());
        let wanted = [wanted, WeightFormat::Q8_0].into_iter().find(fits).unwrap_or(WeightFormat::F16);
        if !tensor.format.is_float() && tensor.format.kept() != wanted {
            let why = format!(
                "tensor {name} is {} already and cannot become {wanted}: quantize a file of plain numbers",
                tensor.format
            );
            return Err(Error::new(Code::FailedPrecondition, why));
        }
        Ok(wanted.into())
    }
}

/// Whether a projection is one whose errors count most: values and what comes down from the MLP, in the first and the
/// last eighth of the layers, and in every third between.
fn gets_more_bits(name: &str, layers: usize) -> bool {
    let Some((layer, projection)) = name.strip_prefix("blk.").and_then(|rest| rest.split_once('.')) else {
        return false;
    };
    let Ok(layer) = layer.parse::<usize>() else { return false };
    let eighth = layers / 8;
    matches!(projection, "attn_v.weight" | "ffn_down.weight" | "ffn_down_exps.weight")
        && (layer < eighth || layer >= layers - layers.div_ceil(8) || (layer - eighth) % 3 == 2)
}

/// `general.file_type` of tensors that are not quantized anew: what most of their bytes are.
pub(super) fn file_type_of(tensors: &[DraftTensor<'_>]) -> u32 {
    let bytes_in = |format: WeightFormat| {
        let tensors = tensors.iter().filter(|tensor| tensor.new.format == format);
        tensors.filter_map(|tensor| tensor.new.bytes().ok()).sum::<usize>()
    };
    let plain = PLAIN.map(|(format, file_type)| (bytes_in(format), file_type));
    let mixed = MIXTURES.iter().map(|row| (bytes_in(row.3), row.2));
    plain.into_iter().chain(mixed).max_by_key(|(bytes, _)| *bytes).map_or(0, |(_, file_type)| file_type)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn format(mixture: Mixture, name: &str, inputs: usize, stored: WeightFormat) -> Result<StoredFormat> {
        let tensor = NewTensor { name: name.into(), shape: vec![512, inputs], format: stored.into() };
        mixture.format(&tensor, 16, true)
    }

    #[test]
    fn the_head_and_half_of_the_projections_that_matter_get_more_bits() {
        use WeightFormat::{BF16, F16, Q4K, Q6K, Q8_0};
        let q4_k_m = |name: &str| format(Mixture::Q4KM, name, 512, BF16).expect("plain numbers");
        assert_eq!(q4_k_m("blk.3.attn_q.weight"), Q4K);
        let down = (0..16).filter(|layer| q4_k_m(&format!("blk.{layer}.ffn_down.weight")) == Q6K).collect::<Vec<_>>();
        assert_eq!(down, [0, 1, 4, 7, 10, 13, 14, 15]);
        assert!((0..20).all(|layer| (layer >= 7 * 20 / 8) == (layer >= 20 - 20_usize.div_ceil(8))));
        assert!(gets_more_bits("blk.3.ffn_down.weight", usize::MAX), "whatever a file says of its layers");
        assert_eq!(q4_k_m("token_embd.weight"), Q6K);
        assert_eq!(q4_k_m("blk.3.attn_q_norm.weight"), BF16);
        assert_eq!(format(Mixture::Q8_0, "token_embd.weight", 512, BF16).expect("plain numbers"), Q8_0);
        assert_eq!(format(Mixture::Q5KM, "blk.3.attn_q.weight", 96, BF16).expect("plain numbers"), Q8_0);
        assert_eq!(format(Mixture::Q5KM, "blk.3.attn_q.weight", 40, BF16).expect("plain numbers"), F16);
    }

    #[test]
    fn what_is_quantized_already_is_refused_by_name() {
        let error = format(Mixture::Q4_0, "blk.3.attn_q.weight", 512, WeightFormat::Q8_0).expect_err("is quantized");
        assert!(error.message.contains("tensor blk.3.attn_q.weight is q8_0 already"), "{error}");
        let same = format(Mixture::Q8_0, "blk.3.attn_q.weight", 512, WeightFormat::Q8_0).expect("stays");
        assert_eq!(same, WeightFormat::Q8_0);
    }
}
