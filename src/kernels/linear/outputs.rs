//! The result of a Linear while several tasks write it.

use crate::kernels::{cpu_tensor::SharedMatrix, simd::LANES};

/// `[rows, width]`, of which each task writes its panels' columns.
pub(super) struct Outputs<'a> {
    pub(super) data: SharedMatrix<'a, f32>,
    pub(super) width: usize,
    pub(super) bias: Option<&'a [f32]>,
}

impl Outputs<'_> {
    /// Writes the sums of a panel in a row times `scale`, as far as there are outputs, with the bias.
    #[inline(always)]
    pub(super) fn store(&self, row: usize, panel: usize, sums: &[f32; LANES], scale: f32) {
        let columns = self.width.min(panel * LANES)..self.width.min((panel + 1) * LANES);
        // SAFETY: each panel is one task's, which holds one such slice at a time.
        let out = unsafe { self.data.slice_mut(row * self.width + columns.start, columns.len()) };
        match self.bias {
            None => {
                for (out, sum) in out.iter_mut().zip(sums) {
                    *out = sum * scale;
                }
            }
            Some(bias) => {
                for ((out, sum), bias) in out.iter_mut().zip(sums).zip(&bias[columns]) {
                    *out = sum * scale + bias;
                }
            }
        }
    }
}
