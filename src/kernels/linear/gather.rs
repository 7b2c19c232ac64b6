//! Single rows of a packed weight: what an embedding gives.

use super::{
    packed::{Packed, Panels},
    panel::{PanelFormat, STEP, Sink, with_format},
};
use crate::{
    ids::TokenId,
    kernels::{
        cpu_tensor::{SharedMatrix, for_each_row_range, written},
        simd::{Kernel, LANES, Level, Simd},
    },
};

/// The rows of these tokens, `[ids.len(), in_features]`.
pub(super) fn gather_rows(level: Level, weight: &Packed, ids: &[TokenId]) -> Vec<f32> {
    let width = weight.in_features;
    let write = |out: &SharedMatrix<'_, _>| {
        for_each_row_range(ids.len(), width * LANES, |rows| {
            // SAFETY: the ranges of rows do not overlap.
            let out = unsafe { out.cleared_mut(rows.start * width, rows.len() * width) };
            with_format!(weight.format, F => {
                level.run(Gather::<F> { panels: weight.panels::<F>(), scales: &weight.scales, ids: &ids[rows.clone()], width, out });
            });
        })
    };
    // SAFETY: the ranges cover all rows.
    unsafe { written(ids.len() * width, write) }
}

struct Gather<'a, F: PanelFormat> {
    panels: Panels<'a, F>,
    scales: &'a [f32],
    ids: &'a [TokenId],
    width: usize,
    out: &'a mut [f32],
}

impl<F: PanelFormat> Kernel for Gather<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        for (id, out) in self.ids.iter().zip(self.out.chunks_exact_mut(self.width.max(1))) {
            let (panel, lane) = (id.index() / LANES, id.index() % LANES);
            let scale = self.scales[panel];
            for (step, out) in out.chunks_mut(STEP).enumerate() {
                let block = self.panels.block(panel, step / F::STEPS);
                F::unpack(simd, block, step % F::STEPS, &mut Lane { simd, lane, scale, out });
            }
        }
    }
}

/// Keeps one output's weights, as many as there is room for.
struct Lane<'a, S> {
    simd: S,
    lane: usize,
    scale: f32,
    out: &'a mut [f32],
}

impl<S: Simd> Sink<S> for Lane<'_, S> {
    #[inline(always)]
    fn put(&mut self, pair: usize, even: S::F, odd: S::F) {
        for (out, weights) in self.out.iter_mut().skip(2 * pair).zip([even, odd]) {
            *out = self.simd.to_array(weights)[self.lane] * self.scale;
        }
    }
}
