//! Weights in MXFP4 as Hugging Face keeps them (Open Compute Project, Microscaling Formats 1.0): `NAME_blocks`, each 32 floats of
//! four bits in 16 bytes, neighbours in one, and `NAME_scales`, a power of two for each block. ggml has the same numbers with
//! the scale before them and halves of a block in one byte, which is what they come in.

use super::view::View;
use crate::kernels::{
    linear::{
        format::RawTensor,
        stored::{MXFP4, StoredFormat},
    },
    pool::for_each_mut,
};

/// How the names of the two tensors end: blocks, and their scales.
pub(super) const PARTS: [&str; 2] = ["_blocks", "_scales"];
/// What it comes in.
pub(super) const FORMAT: StoredFormat = StoredFormat::ReadOnly(&MXFP4);
/// Numbers a block.
const BLOCK: usize = 32;
/// Bytes a block, without its scale.
const BLOCK_BYTES: usize = BLOCK / 2;
/// Blocks that a thread takes at once.
const RUN: usize = 1 << 12;

/// A checked weight.
pub(super) struct Mxfp4<'a> {
    blocks: &'a [u8],
    scales: &'a [u8],
    /// `[…, in]`, where the file's two tensors are `[…, in / 32, 16]` and `[…, in / 32]`.
    pub(super) shape: Vec<usize>,
}

impl<'a> Mxfp4<'a> {
    /// Of the two tensors, where they fit each other.
    pub(super) fn new(blocks: &View<'a>, scales: &View<'a>) -> Option<Self> {
        let [outer @ .., count, BLOCK_BYTES] = blocks.shape else { return None };
        let fits = blocks.dtype == "U8" && scales.dtype == "U8" && *scales.shape == [outer, &[*count]].concat();
        let shape = [outer, &[count.checked_mul(BLOCK)?]].concat();
        fits.then_some(Self { blocks: blocks.bytes, scales: scales.bytes, shape })
    }

    /// Its bytes in the file.
    pub(super) fn bytes(&self) -> usize {
        self.blocks.len() + self.scales.len()
    }

    /// Part `index` of the `count` along its outermost dimension, which is taken away; none where there are not so many.
    pub(super) fn part(&self, index: usize, count: usize) -> Option<Self> {
        let (&outermost, shape) = self.shape.split_first()?;
        let cut = |bytes: &'a [u8]| bytes.chunks_exact(bytes.len() / count).nth(index);
        if outermost != count || index >= count || self.scales.len() < count {
            return None;
        }
        Some(Self { blocks: cut(self.blocks)?, scales: cut(self.scales)?, shape: shape.to_vec() })
    }

    /// It as ggml has it.
    pub(super) fn to_tensor(&self) -> RawTensor<'static> {
        let size = FORMAT.block_bytes();
        let mut bytes = vec![0u8; self.scales.len() * size];
        let runs = bytes.chunks_mut(RUN * size).zip(self.blocks.chunks(RUN * BLOCK_BYTES).zip(self.scales.chunks(RUN)));
        for_each_mut(&mut runs.collect::<Vec<_>>(), |(to, (blocks, scales))| {
            let blocks = blocks.as_chunks::<BLOCK_BYTES>().0;
            for ((to, block), scale) in to.chunks_exact_mut(size).zip(blocks).zip(*scales) {
                to[0] = *scale;
                let (first, second) = block.split_at(BLOCK_BYTES / 2);
                for (to, (a, b)) in to[1..].as_chunks_mut::<2>().0.iter_mut().zip(first.iter().zip(second)) {
                    *to = [a & 0xf | b << 4, a >> 4 | b & 0xf0];
                }
            }
        });
        RawTensor { format: FORMAT, shape: self.shape.clone(), bytes: bytes.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What four bits stand for: a sign, two bits of exponent, one of mantissa.
    const VALUES: [f32; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];

    fn number(nibble: u8) -> f32 {
        let magnitude = VALUES[usize::from(nibble & 7)];
        if nibble & 8 == 0 { magnitude } else { -magnitude }
    }

    /// Blocks of `[parts, 2, 64]` and scales that look like none.
    fn weight(parts: usize) -> (Vec<u8>, Vec<u8>) {
        let count = parts * 4;
        let blocks = (0..count * BLOCK_BYTES).map(|k| (k * 37 + k / 5) as u8).collect();
        (blocks, (0..count).map(|k| (120 + k * 3 % 11) as u8).collect())
    }

    #[test]
    fn numbers_are_those_of_the_format_in_their_order() {
        let (blocks, scales) = weight(3);
        let shape = [[3, 2, 2, BLOCK_BYTES].as_slice(), &[3, 2, 2]];
        let view = |shape, bytes| View { dtype: "U8", shape, bytes };
        let whole = Mxfp4::new(&view(shape[0], &blocks), &view(shape[1], &scales)).expect("they fit");
        assert_eq!((whole.shape.as_slice(), whole.bytes()), (&[3, 2, 64][..], 12 * 17));
        let wanted: Vec<f32> = (0..3 * 2 * 64)
            .map(|k| number(blocks[k / 2] >> (4 * (k % 2)) & 15) * 2f32.powi(i32::from(scales[k / 32]) - 127))
            .collect();
        assert_eq!(whole.to_tensor().to_f32(), wanted);
        let part = whole.part(1, 3).expect("there are three").to_tensor();
        assert_eq!((part.shape.as_slice(), part.to_f32().as_slice()), (&[2, 64][..], &wanted[128..256]));
        assert!(whole.part(3, 3).is_none() && whole.part(0, 2).is_none() && whole.part(0, 0).is_none());
    }

    #[test]
    fn the_form_that_kernels_take_has_the_same_numbers() {
        // Twice the values are whole numbers below 13, and their scales powers of two: a byte and a half hold both.
        let (blocks, scales) = weight(1);
        let view = |shape, bytes| View { dtype: "U8", shape, bytes };
        let whole = Mxfp4::new(&view(&[2, 2, BLOCK_BYTES], &blocks), &view(&[2, 2], &scales)).expect("they fit");
        let stored = whole.to_tensor();
        let bytes = stored.converted(FORMAT.kept()).expect("is converted");
        let kept = RawTensor { format: FORMAT.kept().into(), shape: stored.shape.clone(), bytes };
        assert_eq!(kept.to_f32(), stored.to_f32());
    }

    #[test]
    fn tensors_that_do_not_fit_each_other_are_no_weight() {
        let bytes = [0u8; 64];
        let view = |dtype, shape| View { dtype, shape, bytes: &bytes };
        let blocks = view("U8", &[2, 2, 16]);
        assert!(Mxfp4::new(&blocks, &view("U8", &[2, 2])).is_some());
        assert!(Mxfp4::new(&blocks, &view("U8", &[4])).is_none());
        assert!(Mxfp4::new(&blocks, &view("I8", &[2, 2])).is_none());
        assert!(Mxfp4::new(&view("U8", &[4, 8]), &view("U8", &[4])).is_none());
        assert!(Mxfp4::new(&view("U8", &[16]), &view("U8", &[])).is_none());
    }
}
