//! Single rows of a packed weight: what an embedding gives.

use super::{
    packed::{PAIR, Packed},
    panel::{PanelFormat, SUPER, with_format},
};
use crate::{
    ids::TokenId,
    kernels::{
        cpu_tensor::{SharedMatrix, for_each_row_range, written},
        simd::LANES,
    },
};

/// The rows of these tokens, `[ids.len(), in_features]`.
pub(super) fn gather_rows(weight: &Packed, ids: &[TokenId]) -> Vec<f32> {
    let width = weight.in_features;
    let write = |out: &SharedMatrix<'_, _>| {
        for_each_row_range(ids.len(), width * LANES, |rows| {
            // SAFETY: the ranges of rows do not overlap.
            let out = unsafe { out.cleared_mut(rows.start * width, rows.len() * width) };
            with_format!(weight.format, F => gather::<F>(weight, &ids[rows.clone()], out));
        })
    };
    // SAFETY: the ranges cover all rows.
    unsafe { written(ids.len() * width, write) }
}

fn gather<F: PanelFormat>(weight: &Packed, ids: &[TokenId], out: &mut [f32]) {
    let panels = weight.panels::<F>();
    for (id, out) in ids.iter().zip(out.chunks_exact_mut(weight.in_features.max(1))) {
        let (panel, lane) = (id.index() / LANES, id.index() % LANES);
        let pair = panels.pair(panel / PAIR);
        for (superblock, out) in pair.superblocks().zip(out.chunks_mut(SUPER)) {
            F::gather(superblock.head, superblock.steps, panel % PAIR, lane, out);
        }
    }
}
