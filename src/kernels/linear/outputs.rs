//! The result of a Linear while several tasks write it.

use std::mem::MaybeUninit;

use crate::kernels::{
    cpu_tensor::{Rows, SharedMatrix},
    simd::{LANES, Simd},
};

/// `[rows, width]`, of which each task writes its panels' columns.
pub(super) struct Outputs<'a> {
    pub(super) data: &'a SharedMatrix<'a, MaybeUninit<f32>>,
    pub(super) width: usize,
    pub(super) added: &'a Added<'a>,
}

/// What is added to a product.
pub(super) struct Added<'a> {
    /// To each row: `[width]`.
    pub(super) bias: Option<&'a [f32]>,
    /// Then this, `[rows, width]`.
    pub(super) onto: Option<Rows<'a>>,
}

impl Outputs<'_> {
    /// Writes the sums of a panel in a row times `scale`, as far as there are outputs, with what is added.
    #[inline(always)]
    pub(super) fn store<S: Simd>(&self, simd: S, row: usize, panel: usize, sums: &[f32; LANES], scale: f32) {
        let first = panel * LANES;
        let count = self.width.saturating_sub(first).min(LANES);
        if count == 0 {
            return;
        }
        // SAFETY: each panel is one task's, which holds one such slice at a time.
        let out = unsafe { self.data.slice_mut(row * self.width + first, count) };
        let mut result = simd.mul(simd.load(sums), simd.splat(scale));
        if let Some(bias) = self.added.bias {
            result = simd.add(result, load(simd, &bias[first..first + count]));
        }
        if let Some(onto) = &self.added.onto {
            result = simd.add(result, load(simd, &onto.row(row)[first..first + count]));
        }
        // A panel is whole but for the last one; then this is one instruction.
        match out.as_chunks_mut::<LANES>().0 {
            [whole] => simd.store_new(result, whole),
            _ => drop(out.write_copy_of_slice(&simd.to_array(result)[..count])),
        }
    }
}

/// Up to sixteen floats; sixteen but for the last panel, which is one instruction.
#[inline(always)]
fn load<S: Simd>(simd: S, from: &[f32]) -> S::F {
    match from.as_chunks().0 {
        [whole] => simd.load(whole),
        _ => simd.load_partial(from, 0.0),
    }
}
