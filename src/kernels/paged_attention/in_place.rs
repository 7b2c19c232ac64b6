//! One query of few heads, which decoding has, over keys and values where they lie: each is used too seldom to pay for
//! being written again.

use super::{
    KEYS,
    head_cache::HeadCache,
    register_tile::{Chains, GROUP, Panels},
    task::{KeyTile, Task},
    widened::{Finish, Scratch, put_sums, score_vectors, sums_of},
};
use crate::kernels::{
    simd::{Kernel, LANES, Level, Simd},
    store_kv::{KvCacheConfig, element::CacheElement},
};

/// Query vectors, at most.
const VECTORS: usize = 4;
/// Panels of a register tile, and of one of more rows.
const PANELS: usize = 4;
const PANELS_MORE_ROWS: usize = 2;

/// Whether a task takes so little from each key and value that widening them first does not pay, and they lie in whole
/// register tiles.
pub(super) fn suits(task: &Task<'_>) -> bool {
    let KvCacheConfig { block_size, head_dim, .. } = task.config;
    task.queries.len() == 1
        && task.group <= VECTORS
        && block_size.is_multiple_of(LANES)
        && head_dim.is_multiple_of(PANELS * LANES)
}

/// Computes a task that [`suits`].
pub(super) fn run<E: CacheElement>(level: Level, task: &Task<'_>, cache: &HeadCache<'_, E>, scratch: &mut Scratch) {
    scratch.begin::<E>(task, VECTORS);
    for tile in task.key_tiles() {
        level.run(Tile { task, cache, tile: &tile, scratch });
    }
    level.run(Finish(task, scratch));
}

/// Panels where they lie in the cache: sixteen neighbours every `stride`, the first those of entry `first`. Meanwhile asks
/// for as much of what comes next.
#[derive(Clone, Copy)]
struct InPlace<'a, E, const P: usize> {
    from: [&'a [E]; P],
    coming: [&'a [E]; P],
    first: usize,
    stride: usize,
}

impl<S: Simd, E: CacheElement, const P: usize> Panels<S, P> for InPlace<'_, E, P> {
    #[inline(always)]
    fn get(self, simd: S, panel: usize, k: usize) -> S::F {
        let at = (k - self.first) * self.stride;
        if let Some(coming) = self.coming[panel].get(at) {
            simd.prefetch_far(coming);
        }
        match self.from[panel].get(at..).and_then(<[E]>::first_chunk) {
            Some(from) => E::load(simd, from),
            None => simd.zero(),
        }
    }
}

/// Takes a task's one query over the keys and values of a tile, all of which it sees.
struct Tile<'a, E> {
    task: &'a Task<'a>,
    cache: &'a HeadCache<'a, E>,
    tile: &'a KeyTile,
    scratch: &'a mut Scratch,
}

impl<E: CacheElement> Kernel for Tile<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        match self.task.vectors() {
            1 => self.rows::<S, 1, PANELS>(simd),
            2 => self.rows::<S, 2, PANELS>(simd),
            3 => self.rows::<S, 3, PANELS_MORE_ROWS>(simd),
            VECTORS => self.rows::<S, VECTORS, PANELS_MORE_ROWS>(simd),
            vectors => unreachable!("{vectors} query vectors are not few"),
        }
    }
}

impl<E: CacheElement> Tile<'_, E> {
    #[inline(always)]
    fn rows<S: Simd, const R: usize, const P: usize>(self, simd: S) {
        let Self { task, cache, tile, scratch } = self;
        score::<S, E, R, P>(simd, task, cache, tile, scratch);
        for vector in 0..R {
            scratch.weigh::<S, E>(simd, task, vector, tile.start);
        }
        for panel in (0..task.config.head_dim / LANES).step_by(P) {
            sum::<S, E, R, P>(simd, cache, tile, panel, scratch);
        }
    }
}

/// Scores of `R` query vectors with the tile's keys.
#[inline(always)]
fn score<S: Simd, E: CacheElement, const R: usize, const P: usize>(
    simd: S,
    task: &Task<'_>,
    cache: &HeadCache<'_, E>,
    tile: &KeyTile,
    scratch: &mut Scratch,
) {
    let KvCacheConfig { block_size, head_dim, .. } = task.config;
    let KeyTile { start, ref positions, end } = *tile;
    let vectors = (positions.start - start) / LANES..(positions.end - start).div_ceil(LANES);
    for vector in vectors.clone().step_by(P) {
        // Panels past the last vector take that one again; what they give is not kept.
        let position = |p: usize| start + (vector + p).min(vectors.end - 1) * LANES;
        let from = std::array::from_fn(|p| cache.keys_from(position(p)));
        let coming = std::array::from_fn(|p| match position(p) + KEYS {
            next if next < end => cache.keys_from(next),
            _ => &[],
        });
        let queries = scratch.queries[..R * head_dim].as_chunks::<R>().0;
        let keys = InPlace::<E, P> { from, coming, first: 0, stride: block_size };
        let mut scores = [[0.0; KEYS]; R];
        score_vectors(simd, queries, keys, &mut scores, 0);
        let kept = vector * LANES..vectors.end.min(vector + P) * LANES;
        for (to, scores) in scratch.scores.iter_mut().zip(&scores) {
            to[kept.clone()].copy_from_slice(&scores[..kept.len()]);
        }
    }
}

/// Adds the tile's weighted values to `P` panels of the sums of `R` query vectors.
#[inline(always)]
fn sum<S: Simd, E: CacheElement, const R: usize, const P: usize>(
    simd: S,
    cache: &HeadCache<'_, E>,
    tile: &KeyTile,
    panel: usize,
    scratch: &mut Scratch,
) {
    let KeyTile { start, ref positions, end } = *tile;
    let Scratch { scores, sums, .. } = scratch;
    let mut tile = sums_of::<R, P>(sums, panel);
    let mut rest = positions.clone();
    while !rest.is_empty() {
        let group = rest.start..rest.end.min(rest.start / GROUP * GROUP + GROUP);
        rest.start = group.end;
        let mut chains = Chains::ZERO;
        let mut group = group;
        while !group.is_empty() {
            let run = cache.run(group.clone()).positions;
            group.start = run.end;
            let from = cache.values_from(run.start);
            let coming = if run.start + KEYS < end { cache.values_from(run.start + KEYS) } else { &[] };
            let values = InPlace::<E, P> {
                from: std::array::from_fn(|p| &from[(panel + p) * LANES..]),
                coming: std::array::from_fn(|p| coming.get((panel + p) * LANES..).unwrap_or_default()),
                first: run.start - start,
                stride: cache.config.head_dim,
            };
            chains.take(simd, run.start - start..run.end - start, |r: usize, key: usize| scores[r][key], values);
        }
        chains.add_to(simd, &mut tile);
    }
    put_sums(sums, panel, &tile);
}
