//! What query vectors have come to where a stretch of keys ends and another begins.

use super::{register_tile::Vector, softmax::Softmax};
use crate::kernels::simd::{LANES, Simd};

/// Softmaxes and sums of the query vectors of a unit of work.
#[derive(Default)]
pub(super) struct Carried {
    softmax: Vec<Softmax>,
    /// `[query vector][panel]`.
    sums: Vec<Vector>,
    panels: usize,
}

impl Carried {
    /// Makes room for so many query vectors.
    pub(super) fn make_room(&mut self, vectors: usize, head_dim: usize) {
        self.panels = head_dim.div_ceil(LANES);
        self.softmax.resize(self.softmax.len().max(vectors), Softmax::NEW);
        self.sums.resize(self.sums.len().max(vectors * self.panels), [0.0; LANES]);
    }

    /// What a query vector has come to.
    pub(super) fn get(&self, vector: usize) -> (Softmax, &[Vector]) {
        (self.softmax[vector], &self.sums[vector * self.panels..(vector + 1) * self.panels])
    }

    /// Keeps that.
    #[inline(always)]
    pub(super) fn put<'a, S: Simd>(
        &mut self,
        simd: S,
        vector: usize,
        softmax: Softmax,
        sums: impl Iterator<Item = &'a Vector>,
    ) {
        self.softmax[vector] = softmax;
        let to = &mut self.sums[vector * self.panels..(vector + 1) * self.panels];
        for (to, sum) in to.iter_mut().zip(sums) {
            simd.store(simd.load(sum), to);
        }
    }
}
