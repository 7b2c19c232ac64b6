//! Any number of query vectors over keys and values of bfloat16, or less: each instruction takes two of their products.
//!
//! Two links of a chain are two entries apart, so pairs are made of four neighbours: the first and the third are of the
//! even chain, the second and the fourth of the odd one. [`few`] makes those of keys and values as they come, [`many`] once
//! for more query vectors than a register tile has.

mod few;
mod many;

use super::{
    KEYS,
    head_cache::HeadCache,
    heads::{Coming, Heads, OneTile},
    in_place::InPlace,
    register_tile::{FOUR, PairPanels, tile_range},
    task::{KeyTile, Task},
    widened::{self, Finish},
};
use crate::kernels::{
    simd::{Kernel, LANES, Level, Simd, bf16::Bf16},
    store_kv::{KvCacheConfig, element::CacheElement},
};

/// Query vectors a task, at most: so many that making pairs of keys and values is little beside multiplying them.
pub(super) const VECTORS_A_TASK: usize = 128;

/// Pairs of sixteen keys, or of sixteen dimensions of values.
type Pairs = [[u8; 4]; LANES];

/// Buffers of one thread, grown as needed.
#[derive(Default)]
pub(super) struct Scratch {
    /// Scores, sums and softmaxes.
    shared: widened::Scratch,
    /// Queries in register tiles, `[four][chain][query vector]` each.
    queries: Vec<u32>,
    /// `[query vector][key]`: pairs of weights where the first two of four keys are.
    weights: Vec<[u32; KEYS]>,
    /// `[vector][four][chain]`.
    keys: Vec<Pairs>,
    /// `[panel][four][chain]`.
    values: Vec<Pairs>,
}

/// Whether keys and values lie in whole vectors.
pub(super) fn suits(config: &KvCacheConfig) -> bool {
    config.block_size.is_multiple_of(LANES) && config.head_dim.is_multiple_of(LANES)
}

/// Computes a task over a cache that [`suits`] for each of some KV heads.
pub(super) fn run<E: CacheElement>(bf16: Bf16, heads: &Heads<'_, E>, scratches: &mut Vec<Scratch>) {
    let level = Level::Avx512Bf16(bf16);
    // Those that one register tile holds.
    let few = heads.task.vectors() <= level.tile_rows();
    let tile_rows = if few { level.tile_rows() } else { many::TILE_ROWS };
    heads.run(
        scratches,
        |task, scratch| bf16.run(Begin { task, tile_rows, scratch }),
        |tile| if few { bf16.run(few::Few(tile)) } else { bf16.run(many::Many(tile)) },
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

impl<E: CacheElement> OneTile<'_, E, Scratch> {
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
}

/// `P` panels of the values of a tile's sixteen keys from position `first` on. Where queries see only some of these keys,
/// zeros stand for the others', which may be anything, in a copy. Meanwhile asks for the keys that come next, which take as
/// much room.
#[inline(always)]
fn values<'a, E: CacheElement, const P: usize>(
    cache: &HeadCache<'a, E>,
    tile: &KeyTile,
    coming: Coming<'a, E>,
    first: usize,
    panel: usize,
    copy: &'a mut [[[E; LANES]; P]; LANES],
) -> InPlace<'a, E, P> {
    let KeyTile { start, ref positions, .. } = *tile;
    let head_dim = cache.config.head_dim;
    if positions.start <= first && first + LANES <= positions.end {
        let from = cache.values_from(first);
        let coming = coming.map_or(&[][..], |(cache, next)| cache.keys_beside(next + first - start));
        let from = std::array::from_fn(|p| &from[(panel + p) * LANES..]);
        let coming = std::array::from_fn(|p| coming.get((panel + p) * LANES..).unwrap_or_default());
        return InPlace::new(from, coming, first - start, LANES, head_dim);
    }
    *copy = [[E::ZEROS; P]; LANES];
    for key in positions.start.max(first)..positions.end.min(first + LANES) {
        let from = cache.values_from(key)[panel * LANES..].as_chunks::<LANES>().0;
        copy[key - first].copy_from_slice(&from[..P]);
    }
    let copy = copy.as_flattened().as_flattened();
    let from = std::array::from_fn(|p| &copy[p * LANES..]);
    InPlace::new(from, [&[]; P], first - start, LANES, P * LANES)
}
