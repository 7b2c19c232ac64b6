//! One query of few heads, which decoding has, over keys and values where they lie: each is used too seldom to pay for
//! being written again.

use std::{marker::PhantomData, ops::Range};

use super::{
    head_cache::HeadCache,
    heads::{Coming, Heads, OneTile},
    register_tile::{Chains, GROUP, Panels},
    task::{KeyTile, Task},
    widened::{Begin, Finish, Scratch, put_sums, score_vectors, sums_of},
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
    task.stretch.queries.len() == 1
        && task.group <= VECTORS
        && block_size.is_multiple_of(LANES)
        && head_dim.is_multiple_of(PANELS * LANES)
}

/// Computes a task that [`suits`] for each of some KV heads.
pub(super) fn run<E: CacheElement>(level: Level, heads: &Heads<'_, E>, scratches: &mut Vec<Scratch>) {
    heads.run(
        scratches,
        |task, scratch| level.run(Begin::<E> { task, tile_rows: VECTORS, scratch, element: PhantomData }),
        |tile| level.run(tile),
        |task, scratch| level.run(Finish(task, scratch)),
    );
}

/// Panels where they lie in the cache: sixteen neighbours every `stride`, the first those of entry `first`. Meanwhile asks
/// for as much of what comes next.
#[derive(Clone, Copy)]
pub(super) struct InPlace<'a, E, const P: usize> {
    from: [*const E; P],
    coming: [*const E; P],
    first: usize,
    count: usize,
    stride: usize,
    borrow: PhantomData<&'a [E]>,
}

impl<'a, E: CacheElement, const P: usize> InPlace<'a, E, P> {
    /// Panels that begin where `from` does, of `count` entries from `first` on; nothing comes next where a slice of `coming`
    /// is empty.
    ///
    /// # Panics
    /// Where a slice is too short.
    #[inline(always)]
    pub(super) fn new(from: [&'a [E]; P], coming: [&'a [E]; P], first: usize, count: usize, stride: usize) -> Self {
        for from in from {
            assert!((count - 1) * stride + LANES <= from.len());
        }
        let coming = std::array::from_fn(|p| if coming[p].is_empty() { from[p].as_ptr() } else { coming[p].as_ptr() });
        Self { from: from.map(<[E]>::as_ptr), coming, first, count, stride, borrow: PhantomData }
    }

    /// The keys of a tile from each position of `first` on, a vector of them, which lies in one block. Meanwhile asks for
    /// their values, which take as much room.
    #[inline(always)]
    pub(super) fn keys(cache: &HeadCache<'a, E>, first: [usize; P]) -> Self {
        let KvCacheConfig { block_size, head_dim, .. } = cache.config;
        let run = |p: usize| cache.run(first[p]..first[p] + 1);
        let from = std::array::from_fn(|p| cache.keys_from(first[p]));
        let coming = std::array::from_fn(|p| &cache.values[run(p).part][run(p).offset..]);
        Self::new(from, coming, 0, head_dim, block_size)
    }

    /// Entry `k` of a panel.
    #[inline(always)]
    pub(super) fn entry<S: Simd>(self, simd: S, panel: usize, k: usize) -> &'a [E; LANES] {
        debug_assert!((self.first..self.first + self.count).contains(&k), "no entry {k}");
        let at = (k - self.first) * self.stride;
        simd.prefetch_far_line(self.coming[panel].wrapping_add(at).cast());
        // SAFETY: `new` has seen that the slice, which is borrowed, covers all entries; it is only asked for those.
        unsafe { &*self.from[panel].add(at).cast() }
    }
}

impl<S: Simd, E: CacheElement, const P: usize> Panels<S, P> for InPlace<'_, E, P> {
    #[inline(always)]
    fn get(self, simd: S, panel: usize, k: usize) -> S::F {
        E::load(simd, self.entry(simd, panel, k))
    }
}

/// Takes a task's one query over the keys and values of a tile, all of which it sees.
impl<E: CacheElement> Kernel for OneTile<'_, E, Scratch> {
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

impl<E: CacheElement> OneTile<'_, E, Scratch> {
    #[inline(always)]
    fn rows<S: Simd, const R: usize, const P: usize>(self, simd: S) {
        let Self { task, cache, tile, coming, scratch } = self;
        score::<S, E, R, P>(simd, task, cache, tile, scratch);
        for vector in 0..R {
            scratch.weigh::<S, E>(simd, task, vector, tile.start);
        }
        for panel in (0..task.config.head_dim / LANES).step_by(P) {
            sum::<S, E, R, P>(simd, cache, tile, coming, panel, scratch);
        }
    }
}

/// Scores of `R` query vectors with the tile's keys. Meanwhile asks for its values, which take as much room.
#[inline(always)]
fn score<S: Simd, E: CacheElement, const R: usize, const P: usize>(
    simd: S,
    task: &Task<'_>,
    cache: &HeadCache<'_, E>,
    tile: &KeyTile,
    scratch: &mut Scratch,
) {
    let Range { start: mut vector, end } = tile.vectors();
    while vector + P <= end {
        score_panels::<S, E, R, P>(simd, task, cache, tile.start, vector, scratch);
        vector += P;
    }
    while vector < end {
        score_panels::<S, E, R, 1>(simd, task, cache, tile.start, vector, scratch);
        vector += 1;
    }
}

/// Those with `P` vectors of keys of the tile that begins at `start`.
#[inline(always)]
fn score_panels<S: Simd, E: CacheElement, const R: usize, const P: usize>(
    simd: S,
    task: &Task<'_>,
    cache: &HeadCache<'_, E>,
    start: usize,
    vector: usize,
    scratch: &mut Scratch,
) {
    let keys = InPlace::keys(cache, std::array::from_fn::<_, P, _>(|p| start + (vector + p) * LANES));
    let queries = scratch.queries[..R * task.config.head_dim].as_chunks::<R>().0;
    score_vectors(simd, queries, keys, &mut scratch.scores, vector);
}

/// Adds the tile's weighted values to `P` panels of the sums of `R` query vectors. Meanwhile asks for the keys that come
/// next, which take as much room.
#[inline(always)]
fn sum<S: Simd, E: CacheElement, const R: usize, const P: usize>(
    simd: S,
    cache: &HeadCache<'_, E>,
    tile: &KeyTile,
    coming: Coming<'_, E>,
    panel: usize,
    scratch: &mut Scratch,
) {
    let KeyTile { start, ref positions, .. } = *tile;
    let head_dim = cache.config.head_dim;
    let Scratch { scores, sums, .. } = scratch;
    let mut tile = sums_of::<S, R, P>(simd, sums, panel);
    let mut rest = positions.clone();
    while !rest.is_empty() {
        let group = rest.start..rest.end.min(rest.start / GROUP * GROUP + GROUP);
        rest.start = group.end;
        let mut chains = Chains::new(simd);
        let mut group = group;
        while !group.is_empty() {
            let run = cache.run(group.clone()).positions;
            group.start = run.end;
            let from = cache.values_from(run.start);
            let coming = coming.map_or(&[][..], |(cache, next)| cache.keys_beside(next + run.start - start));
            let from = std::array::from_fn(|p| &from[(panel + p) * LANES..]);
            let coming = std::array::from_fn(|p| coming.get((panel + p) * LANES..).unwrap_or_default());
            let keys = run.start - start..run.end - start;
            let values = InPlace::<E, P>::new(from, coming, keys.start, keys.len(), head_dim);
            chains.take(simd, keys, |r: usize, key: usize| scores[r][key], values);
        }
        chains.add_to(simd, &mut tile);
    }
    put_sums(simd, sums, panel, &tile);
}
