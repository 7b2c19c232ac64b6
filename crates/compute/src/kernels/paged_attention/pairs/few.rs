//! One register tile of query vectors: pairs are made as keys and values are read.

use super::{Scratch, values};
use crate::kernels::{
    paged_attention::{
        heads::OneTile,
        in_place::InPlace,
        register_tile::{FOUR, GROUP, add_group, with_rows},
        widened::{put_sums, sums_of},
    },
    simd::{Kernel, LANES, Simd},
    store_kv::element::CacheElement,
};

/// Panels of a register tile, and of one of few rows, which takes more so that there are enough chains.
const PANELS: usize = 2;
const FEW_ROWS: usize = 2;
const PANELS_FEW_ROWS: usize = 4;

/// Takes a task's query vectors over the keys and values of a tile.
pub(super) struct Few<'a, E>(pub(super) OneTile<'a, E, Scratch>);

impl<E: CacheElement> Kernel for Few<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        let vectors = self.0.task.vectors();
        with_rows!(S, vectors, R => self.score::<S, R>(simd));
        for vector in 0..vectors {
            self.0.weigh(simd, vector);
        }
        with_rows!(S, vectors, R => self.sum::<S, R>(simd));
    }
}

impl<E: CacheElement> Few<'_, E> {
    /// Scores of `R` query vectors with the tile's keys.
    #[inline(always)]
    fn score<S: Simd, const R: usize>(&mut self, simd: S) {
        if const { R <= FEW_ROWS } {
            self.score_panels::<S, R, PANELS_FEW_ROWS>(simd);
        } else {
            self.score_panels::<S, R, PANELS>(simd);
        }
    }

    #[inline(always)]
    fn score_panels<S: Simd, const R: usize, const P: usize>(&mut self, simd: S) {
        let OneTile { task, cache, tile, ref mut scratch, .. } = self.0;
        let (head_dim, vectors) = (task.config.head_dim, tile.vectors());
        let queries = scratch.queries[..R * head_dim / 2].as_chunks::<R>().0.as_chunks::<2>().0;
        let scores = &mut scratch.shared.scores[..R];
        for vector in vectors.clone().step_by(P) {
            // Panels past the last vector take that one again.
            let places: [usize; P] = std::array::from_fn(|p| (vector + p).min(vectors.end - 1));
            let keys = InPlace::keys(cache, places.map(|place| tile.start + place * LANES));
            let mut sums = [[simd.zero(); P]; R];
            for group in (0..head_dim).step_by(GROUP) {
                let dims = group..head_dim.min(group + GROUP);
                add_group(simd, [(dims, keys)], |r, four, chain| queries[four][chain][r], &mut sums);
            }
            for (row, scores) in sums.iter().zip(&mut *scores) {
                let scores = scores.as_chunks_mut::<LANES>().0;
                for (&score, place) in row.iter().zip(places) {
                    simd.store(score, &mut scores[place]);
                }
            }
        }
    }

    /// Adds the tile's weighted values to the sums of `R` query vectors.
    #[inline(always)]
    fn sum<S: Simd, const R: usize>(&mut self, simd: S) {
        let panels = self.0.task.config.head_dim / LANES;
        let mut panel = 0;
        if const { R <= FEW_ROWS } {
            while panel + PANELS_FEW_ROWS <= panels {
                self.sum_panels::<S, R, PANELS_FEW_ROWS>(simd, panel);
                panel += PANELS_FEW_ROWS;
            }
        }
        while panel + PANELS <= panels {
            self.sum_panels::<S, R, PANELS>(simd, panel);
            panel += PANELS;
        }
        if panel < panels {
            self.sum_panels::<S, R, 1>(simd, panel);
        }
    }

    #[inline(always)]
    fn sum_panels<S: Simd, const R: usize, const P: usize>(&mut self, simd: S, panel: usize) {
        let OneTile { task, cache, tile, coming, ref mut scratch } = self.0;
        let (start, panels) = (tile.start, task.config.head_dim / LANES);
        let Some(weights) = scratch.weights.first_chunk::<R>() else { return };
        let all = &mut scratch.shared.sums[..R * panels];
        let mut sums = sums_of::<_, R, P>(simd, all, panel);
        let mut copies = [[[E::ZEROS; P]; LANES]; 2];
        for group in tile.groups() {
            let [low, high] = &mut copies;
            let halves = [(group, low), (group + LANES, high)].map(|(first, copy)| {
                let values = values(cache, tile, coming, first, panel, copy);
                (first - start..first + LANES - start, values)
            });
            add_group(simd, halves, |r, four, chain| weights[r][four * FOUR + chain], &mut sums);
        }
        put_sums(simd, all, panel, &sums);
    }
}
