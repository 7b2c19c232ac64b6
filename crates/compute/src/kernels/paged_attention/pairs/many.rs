//! More than one register tile of query vectors: a tile's keys and values are laid out in pairs once for all of them.

use super::{Pairs, Scratch, values};
use crate::kernels::{
    paged_attention::{
        KEY_VECTORS, KEYS,
        heads::OneTile,
        in_place::InPlace,
        register_tile::{FOUR, GROUP, PairPanels, add_group, tile_range, with_rows},
        widened::{put_sums, sums_of},
    },
    simd::{Kernel, LANES, Simd},
    store_kv::element::CacheElement,
};

/// Query vectors of a register tile, which is one panel wide: both chains and the sums of all stay in registers.
pub(super) const TILE_ROWS: usize = 8;

/// Takes a task's query vectors over the keys and values of a tile.
pub(super) struct Many<'a, E>(pub(super) OneTile<'a, E, Scratch>);

impl<E: CacheElement> Kernel for Many<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        let vectors = self.0.task.vectors();
        let register_tiles = || (0..vectors.div_ceil(TILE_ROWS)).map(|tile| tile_range(vectors, TILE_ROWS, tile));
        self.lay_out_keys(simd);
        for vectors in register_tiles() {
            with_rows!(S, vectors.len(), R => self.score::<S, R>(simd, vectors.start));
            for vector in vectors {
                self.0.weigh(simd, vector);
            }
        }
        self.lay_out_values(simd);
        for vectors in register_tiles() {
            with_rows!(S, vectors.len(), R => self.sum::<S, R>(simd, vectors.start));
        }
    }
}

impl<E: CacheElement> Many<'_, E> {
    #[inline(always)]
    fn lay_out_keys<S: Simd>(&mut self, simd: S) {
        let OneTile { task, cache, tile, ref mut scratch, .. } = self.0;
        let pairs = task.config.head_dim / 2;
        scratch.keys.resize(scratch.keys.len().max(KEY_VECTORS * pairs), Pairs::default());
        for vector in tile.vectors() {
            let keys = InPlace::keys(cache, [tile.start + vector * LANES]);
            lay_out(simd, keys, 0, &mut scratch.keys[vector * pairs..(vector + 1) * pairs]);
        }
    }

    #[inline(always)]
    fn lay_out_values<S: Simd>(&mut self, simd: S) {
        let OneTile { task, cache, tile, coming, ref mut scratch } = self.0;
        let (start, panels) = (tile.start, task.config.head_dim / LANES);
        scratch.values.resize(scratch.values.len().max(panels * (KEYS / 2)), Pairs::default());
        let mut copy = [[E::ZEROS]; LANES];
        for first in tile.groups().flat_map(|group| [group, group + LANES]) {
            for panel in 0..panels {
                let values = values(cache, tile, coming, first, panel, &mut copy);
                let to = &mut scratch.values[panel * (KEYS / 2)..(panel + 1) * (KEYS / 2)];
                lay_out(simd, values, first - start, &mut to[(first - start) / 2..(first - start + LANES) / 2]);
            }
        }
    }

    /// Scores of `R` query vectors with the tile's keys.
    #[inline(always)]
    fn score<S: Simd, const R: usize>(&mut self, simd: S, first: usize) {
        let OneTile { task, tile, ref mut scratch, .. } = self.0;
        let head_dim = task.config.head_dim;
        let queries = &scratch.queries[first * head_dim / 2..(first + R) * head_dim / 2];
        let queries = queries.as_chunks::<R>().0.as_chunks::<2>().0;
        let scores = &mut scratch.shared.scores[first..first + R];
        for vector in tile.vectors() {
            let keys = LaidOut::new(&scratch.keys[vector * head_dim / 2..(vector + 1) * head_dim / 2]);
            let mut sums = [[simd.zero()]; R];
            for group in (0..head_dim).step_by(GROUP) {
                let dims = group..head_dim.min(group + GROUP);
                add_group(simd, [(dims, keys)], |r, four, chain| queries[four][chain][r], &mut sums);
            }
            for (&[score], scores) in sums.iter().zip(&mut *scores) {
                simd.store(score, &mut scores.as_chunks_mut::<LANES>().0[vector]);
            }
        }
    }

    /// Adds the tile's weighted values to the sums of `R` query vectors.
    #[inline(always)]
    fn sum<S: Simd, const R: usize>(&mut self, simd: S, first: usize) {
        let OneTile { task, tile, ref mut scratch, .. } = self.0;
        let panels = task.config.head_dim / LANES;
        let Some(weights) = scratch.weights[first..].first_chunk::<R>() else { return };
        let all = &mut scratch.shared.sums[first * panels..(first + R) * panels];
        for panel in 0..panels {
            let values = LaidOut::new(&scratch.values[panel * (KEYS / 2)..(panel + 1) * (KEYS / 2)]);
            let mut sums = sums_of::<_, R, 1>(simd, all, panel);
            for group in tile.groups() {
                let keys = group - tile.start..group - tile.start + GROUP;
                add_group(simd, [(keys, values)], |r, four, chain| weights[r][four * FOUR + chain], &mut sums);
            }
            put_sums(simd, all, panel, &sums);
        }
    }
}

/// Writes a panel's pairs of the entries from `first` on, `[four][chain]`.
#[inline(always)]
fn lay_out<S: Simd>(simd: S, panel: impl PairPanels<S, 1>, first: usize, to: &mut [Pairs]) {
    for (four, to) in to.as_chunks_mut::<2>().0.iter_mut().enumerate() {
        for (chain, to) in to.iter_mut().enumerate() {
            simd.store_bytes(panel.get(simd, 0, first + four * FOUR + chain), to);
        }
    }
}

/// A panel's pairs, `[four][chain]`.
#[derive(Clone, Copy)]
struct LaidOut<'a>(&'a [[Pairs; 2]]);

impl<'a> LaidOut<'a> {
    fn new(pairs: &'a [Pairs]) -> Self {
        Self(pairs.as_chunks().0)
    }
}

impl<S: Simd> PairPanels<S, 1> for LaidOut<'_> {
    #[inline(always)]
    fn get(self, simd: S, _: usize, k: usize) -> S::I {
        simd.load_bytes(&self.0[k / FOUR][k % FOUR])
    }
}
