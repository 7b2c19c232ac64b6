//! The result of a Linear while several tasks write it.

use std::{mem::MaybeUninit, ops::Range};

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
    /// Writes the sums of a panel in a row, as far as there are outputs, with what is added.
    #[inline(always)]
    pub(super) fn store<S: Simd>(&self, simd: S, row: usize, panel: usize, sums: &[f32; LANES]) {
        let first = panel * LANES;
        let count = self.width.saturating_sub(first).min(LANES);
        if count == 0 {
            return;
        }
        // SAFETY: each panel is one task's, which holds one such slice at a time.
        let out = unsafe { self.data.slice_mut(row * self.width + first, count) };
        let mut result = simd.load(sums);
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

/// Pairs of panels that are written together: a row's part of the result should be longer than a cache line or two, because
/// the rows lie in pages of their own.
pub(super) const WRITTEN: usize = 4;

impl Outputs<'_> {
    /// Asks for what [`store_panels`](Self::store_panels) will write, and for what it will add.
    #[inline(always)]
    pub(super) fn prefetch_panels<S: Simd>(&self, simd: S, rows: Range<usize>, panel: usize, panels: usize) {
        for row in rows {
            let out = self.data.address(row * self.width + panel * LANES).cast::<f32>();
            let onto = self.added.onto.as_ref().map(|onto| onto.row(row).as_ptr().wrapping_add(panel * LANES));
            for line in 0..panels {
                simd.prefetch_line(out.wrapping_add(line * LANES).cast());
                if let Some(onto) = onto {
                    simd.prefetch_line(onto.wrapping_add(line * LANES).cast());
                }
            }
        }
    }

    /// As [`store`](Self::store) for some of `R` rows and some panels from `panel` on, which are all there but for the last.
    #[inline(always)]
    pub(super) fn store_panels<'s, S: Simd, const R: usize>(
        &self,
        simd: S,
        rows: Range<usize>,
        panel: usize,
        panels: usize,
        sums: impl Fn(usize) -> &'s [[f32; LANES]; R],
    ) {
        let first = panel * LANES;
        let columns = first..first + panels * LANES;
        if columns.end > self.width {
            for (row, r) in rows.zip(0..) {
                for p in 0..panels {
                    self.store(simd, row, panel + p, &sums(p)[r]);
                }
            }
            return;
        }
        let bias = self.added.bias.map(|bias| bias[columns.clone()].as_chunks().0);
        for (row, r) in rows.zip(0..) {
            // SAFETY: each panel is one task's, which holds one such slice at a time.
            let out = unsafe { self.data.slice_mut(row * self.width + first, panels * LANES) };
            let onto = self.added.onto.as_ref().map(|onto| onto.row(row)[columns.clone()].as_chunks().0);
            for (p, out) in out.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
                let mut result = simd.load(&sums(p)[r]);
                if let Some(bias) = bias {
                    result = simd.add(result, simd.load(&bias[p]));
                }
                if let Some(onto) = onto {
                    result = simd.add(result, simd.load(&onto[p]));
                }
                simd.store_new(result, out);
            }
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
