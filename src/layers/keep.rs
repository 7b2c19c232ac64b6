//! In which format each weight of a model is kept.

use crate::kernels::linear::{format::WeightFormat, stored::StoredFormat};

/// What is asked of a model's weights as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// As the file has them, or as the nearest that the kernels read.
    AsStored,
    /// All of them as plain numbers of this format.
    Widened(WeightFormat),
    /// Those that the file has as plain numbers quantized to this format; the others as they are.
    Quantized(WeightFormat),
}

/// What a weight is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Inside a block.
    Block,
    /// The embedding and the head: errors there reach every token.
    Vocabulary,
}

impl Keep {
    /// The format for a weight of rows of `inputs` that the file has as `stored`.
    ///
    /// Quantizing, the embedding and the head get at least 6 bits, as llama.cpp's quantizer gives them, and rows that are
    /// no whole blocks of a format take one with smaller blocks, in the end bfloat16. Beside eight-bit floats they stay plain
    /// numbers of 16 bits, as in vLLM.
    #[must_use]
    pub fn format(self, stored: StoredFormat, inputs: usize, role: Role) -> WeightFormat {
        let wanted = match self {
            Self::AsStored => return stored.kept(),
            Self::Widened(format) => return format,
            Self::Quantized(_) if !stored.is_float() => return stored.kept(),
            Self::Quantized(WeightFormat::Fp8) if role == Role::Vocabulary => match stored.kept() {
                WeightFormat::F32 => return WeightFormat::BF16,
                plain => return plain,
            },
            Self::Quantized(format) => format,
        };
        let wanted = match (role, wanted) {
            (Role::Vocabulary, WeightFormat::Q4_0 | WeightFormat::Q4K | WeightFormat::Q5K) => WeightFormat::Q6K,
            _ => wanted,
        };
        let fits = |format: &WeightFormat| inputs.is_multiple_of(format.block_len());
        [wanted, WeightFormat::Q8_0].into_iter().find(fits).unwrap_or(WeightFormat::BF16)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::linear::stored::IQ3_S;

    #[test]
    fn only_plain_numbers_are_quantized_and_rows_stay_whole_blocks() {
        use WeightFormat::{BF16, F16, F32, Fp8, Q4K, Q6K, Q8_0};
        let keep = Keep::Quantized(Q4K);
        assert_eq!(keep.format(BF16.into(), 512, Role::Block), Q4K);
        assert_eq!(keep.format(BF16.into(), 512, Role::Vocabulary), Q6K);
        assert_eq!(keep.format(Q8_0.into(), 512, Role::Block), Q8_0);
        assert_eq!(keep.format(F32.into(), 96, Role::Block), Q8_0);
        assert_eq!(keep.format(F32.into(), 40, Role::Block), BF16);
        assert_eq!(Keep::AsStored.format(Q4K.into(), 512, Role::Vocabulary), Q4K);
        assert_eq!(Keep::Widened(F32).format(Q4K.into(), 512, Role::Block), F32);
        let read_only = StoredFormat::ReadOnly(&IQ3_S);
        assert_eq!(Keep::AsStored.format(read_only, 512, Role::Block), Q6K);
        assert_eq!(keep.format(read_only, 512, Role::Vocabulary), Q6K);
        assert_eq!(Keep::Widened(F32).format(read_only, 512, Role::Block), F32);
        let keep = Keep::Quantized(Fp8);
        assert_eq!([F32, F16, BF16].map(|stored| keep.format(stored.into(), 40, Role::Block)), [Fp8; 3]);
        assert_eq!([F32, F16, BF16].map(|stored| keep.format(stored.into(), 40, Role::Vocabulary)), [BF16, F16, BF16]);
        assert_eq!(keep.format(Q4K.into(), 512, Role::Block), Q4K);
    }
}
