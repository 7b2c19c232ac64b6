//! Any number of query vectors over keys and values of bfloat16, or less, where they lie: each instruction takes two of
//! their products.
//!
//! Two links of a chain are two entries apart, so pairs are made of four neighbours: the first and the third are of the
//! even chain, the second and the fourth of the odd one.

use super::{
    KEYS,
    heads::{Heads, OneTile},
    in_place::InPlace,
    register_tile::{FOUR, GROUP, PairPanels, add_group, tile_range, with_rows},
    task::{KeyTile, Task},
    widened::{self, Finish, put_sums, sums_of},
};
use crate::kernels::{
    simd::{Kernel, LANES, Level, Simd, bf16::Bf16},
    store_kv::{KvCacheConfig, element::CacheElement},
};

/// Panels of a register tile, and of one of few rows, which takes more so that there are enough chains.
const PANELS: usize = 2;
const FEW_ROWS: usize = 2;
const PANELS_FEW_ROWS: usize = 4;

/// Buffers of one thread, grown as needed.
#[derive(Default)]
pub(super) struct Scratch {
    /// Scores, sums and softmaxes.
    shared: widened::Scratch,
    /// Queries in register tiles, `[four][chain][query vector]` each.
    queries: Vec<u32>,
    /// `[query vector][key]`: pairs of weights where the first two of four keys are.
    weights: Vec<[u32; KEYS]>,
}

/// Whether keys and values lie in whole vectors.
pub(super) fn suits(config: &KvCacheConfig) -> bool {
    config.block_size.is_multiple_of(LANES) && config.head_dim.is_multiple_of(LANES)
}

/// Computes a task over a cache that [`suits`] for each of some KV heads.
pub(super) fn run<E: CacheElement>(bf16: Bf16, heads: &Heads<'_, E>, scratches: &mut Vec<Scratch>) {
    let level = Level::Avx512Bf16(bf16);
    heads.run(
        scratches,
        |task, scratch| bf16.run(Begin { task, tile_rows: level.tile_rows(), scratch }),
        |tile| bf16.run(tile),
        |task, scratch| level.run(Finish(task, &scratch.shared)),
    );
}

/// Makes room for a task's query vectors, and takes these in register tiles of at most `tile_rows`.
struct Begin<'a> {
    task: &'a Task<'a>,
    tile_rows: usize,
    scratch: &'a mut Scratch,
}

impl Kernel for Begin<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { task, tile_rows, scratch } = self;
        let (vectors, head_dim) = (task.vectors(), task.config.head_dim);
        scratch.shared.make_room(task);
        scratch.queries.resize(scratch.queries.len().max(vectors * head_dim / 2), 0);
        scratch.weights.resize(scratch.weights.len().max(vectors), [0; KEYS]);
        for tile in 0..vectors.div_ceil(tile_rows) {
            let range = tile_range(vectors, tile_rows, tile);
            let rows = range.len();
            let to = &mut scratch.queries[range.start * head_dim / 2..range.end * head_dim / 2];
            for (column, vector) in range.enumerate() {
                let from = task.query(vector).as_chunks::<LANES>().0;
                for (to, from) in to.chunks_exact_mut(LANES / 2 * rows).zip(from) {
                    let pairs = simd.pairs_of_fours(simd.round_bf16_or_nan(simd.load(from)));
                    let pairs = simd.to_integers(pairs);
                    for (to, pairs) in to.chunks_exact_mut(2 * rows).zip(pairs.as_chunks::<FOUR>().0) {
                        (to[column], to[rows + column]) = (pairs[0] as u32, pairs[1] as u32);
                    }
                }
            }
        }
    }
}

impl<S: Simd, E: CacheElement, const P: usize> PairPanels<S, P> for InPlace<'_, E, P> {
    #[inline(always)]
    fn get(self, simd: S, panel: usize, k: usize) -> S::I {
        let [first, second] = [k, k + 2].map(|k| self.entry(simd, panel, k));
        E::load_pairs(simd, first, second)
    }
}

/// Takes a task's query vectors over the keys and values of a tile.
impl<E: CacheElement> Kernel for OneTile<'_, E, Scratch> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        let vectors = self.task.vectors();
        for register_tile in 0..vectors.div_ceil(S::TILE_ROWS) {
            let vectors = tile_range(vectors, S::TILE_ROWS, register_tile);
            with_rows!(S, vectors.len(), R => self.score::<S, R>(simd, vectors.start));
            for vector in vectors.clone() {
                self.weigh(simd, vector);
            }
            with_rows!(S, vectors.len(), R => self.sum::<S, R>(simd, vectors.start));
        }
    }
}

impl<E: CacheElement> OneTile<'_, E, Scratch> {
    /// Scores of `R` query vectors with the tile's keys.
    #[inline(always)]
    fn score<S: Simd, const R: usize>(&mut self, simd: S, first: usize) {
        if const { R <= FEW_ROWS } {
            self.score_panels::<S, R, PANELS_FEW_ROWS>(simd, first);
        } else {
            self.score_panels::<S, R, PANELS>(simd, first);
        }
    }

    /// Meanwhile asks for the tile's values, which take as much room.
    #[inline(always)]
    fn score_panels<S: Simd, const R: usize, const P: usize>(&mut self, simd: S, first: usize) {
        let Self { cache, tile: &KeyTile { start, ref positions, .. }, .. } = *self;
        let KvCacheConfig { block_size, head_dim, .. } = self.task.config;
        let vectors = (positions.start - start) / LANES..(positions.end - start).div_ceil(LANES);
        let queries = &self.scratch.queries[first * head_dim / 2..(first + R) * head_dim / 2];
        let queries = queries.as_chunks::<R>().0.as_chunks::<2>().0;
        let scores = &mut self.scratch.shared.scores[first..first + R];
        for vector in vectors.clone().step_by(P) {
            // Panels past the last vector take that one again.
            let place = |p: usize| (vector + p).min(vectors.end - 1);
            let run = |p: usize| cache.run(start + place(p) * LANES..start + place(p) * LANES + 1);
            let from = std::array::from_fn(|p| cache.keys_from(start + place(p) * LANES));
            let coming = std::array::from_fn(|p| &cache.values[run(p).part][run(p).offset..]);
            let keys = InPlace::<E, P>::new(from, coming, 0, head_dim, block_size);
            let mut tile = [[simd.zero(); P]; R];
            for group in (0..head_dim).step_by(GROUP) {
                let dims = group..head_dim.min(group + GROUP);
                add_group(simd, [(dims, keys)], |r, four, chain| queries[four][chain][r], &mut tile);
            }
            for (row, scores) in tile.iter().zip(&mut *scores) {
                let scores = scores.as_chunks_mut::<LANES>().0;
                for (p, &score) in row.iter().enumerate() {
                    simd.store(score, &mut scores[place(p)]);
                }
            }
        }
    }

    /// Turns a query vector's scores into weights.
    #[inline(always)]
    fn weigh<S: Simd>(&mut self, simd: S, vector: usize) {
        let Scratch { shared, weights, .. } = &mut *self.scratch;
        shared.weigh::<_, E>(simd, self.task, vector, self.tile.start);
        let weights = weights[vector].as_chunks_mut::<LANES>().0;
        for (scores, weights) in shared.scores[vector].as_chunks::<LANES>().0.iter().zip(weights) {
            *weights = simd.to_integers(simd.pairs_of_fours(simd.load(scores))).map(|pair| pair as u32);
        }
    }

    /// Adds the tile's weighted values to the sums of `R` query vectors.
    #[inline(always)]
    fn sum<S: Simd, const R: usize>(&mut self, simd: S, first: usize) {
        let panels = self.task.config.head_dim / LANES;
        let mut panel = 0;
        if const { R <= FEW_ROWS } {
            while panel + PANELS_FEW_ROWS <= panels {
                self.sum_panels::<S, R, PANELS_FEW_ROWS>(simd, first, panel);
                panel += PANELS_FEW_ROWS;
            }
        }
        while panel + PANELS <= panels {
            self.sum_panels::<S, R, PANELS>(simd, first, panel);
            panel += PANELS;
        }
        if panel < panels {
            self.sum_panels::<S, R, 1>(simd, first, panel);
        }
    }

    /// Meanwhile asks for the keys that come next, which take as much room.
    #[inline(always)]
    fn sum_panels<S: Simd, const R: usize, const P: usize>(&mut self, simd: S, first: usize, panel: usize) {
        let Self { cache, tile: &KeyTile { start, ref positions, .. }, coming, .. } = *self;
        let head_dim = self.task.config.head_dim;
        let Scratch { shared, weights, .. } = &mut *self.scratch;
        let weights = &weights[first..first + R];
        let sums = &mut shared.sums[first * (head_dim / LANES)..(first + R) * (head_dim / LANES)];
        let mut tile = sums_of::<_, R, P>(simd, sums, panel);
        for group in (positions.start / GROUP * GROUP..positions.end).step_by(GROUP) {
            let mut copied = [[E::ZEROS; P]; GROUP];
            let whole = positions.start <= group && group + GROUP <= positions.end;
            if !whole {
                // Zeros stand for those that no query sees, which may be anything.
                for key in positions.start.max(group)..positions.end.min(group + GROUP) {
                    let from = cache.values_from(key)[panel * LANES..].as_chunks::<LANES>().0;
                    copied[key % GROUP].copy_from_slice(&from[..P]);
                }
            }
            // A vector of keys lies in one block.
            let halves = [group, group + LANES].map(|first| {
                let keys = first - start..first + LANES - start;
                if whole {
                    let from = cache.values_from(first);
                    let coming = coming.map_or(&[][..], |(cache, next)| cache.keys_beside(next + keys.start));
                    let from = std::array::from_fn(|p| &from[(panel + p) * LANES..]);
                    let coming = std::array::from_fn(|p| coming.get((panel + p) * LANES..).unwrap_or_default());
                    (keys.clone(), InPlace::<E, P>::new(from, coming, keys.start, LANES, head_dim))
                } else {
                    let from = copied[first % GROUP..].as_flattened().as_flattened();
                    let from = std::array::from_fn(|p| &from[p * LANES..]);
                    (keys.clone(), InPlace::new(from, [&[]; P], keys.start, LANES, P * LANES))
                }
            });
            add_group(simd, halves, |r, four, chain| weights[r][four * FOUR + chain], &mut tile);
        }
        put_sums(simd, sums, panel, &tile);
    }
}
