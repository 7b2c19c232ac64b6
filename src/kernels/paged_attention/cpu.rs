//! Paged attention on the CPU.
//!
//! A task is one KV head of one row and some of its queries, with all query heads that share the KV head. It widens a
//! tile of 64 keys and values into the cache and takes its queries over it in register tiles: scores have their lanes
//! across keys, outputs across the head's dimensions, so neither needs a sum across lanes. The weights of a query sum
//! up in sixteen lanes by position, added as a tree at the end. A task of one query and few heads, which decoding has,
//! reads keys and values where they lie: each is used too seldom to pay for being written again. The order of additions
//! is the same.

use std::{cell::RefCell, ops::Range};

use candle_core::Storage;

use super::{PagedAttention, Row};
use crate::kernels::{
    cpu_tensor::{Rows, SharedMatrix},
    pool::for_each_task,
    simd::{Kernel, LANES, Level, Simd},
    store_kv::{KvCacheConfig, cache_storage, element::CacheElement, with_elements},
    tile::{Panels, Vector, multiply_add, tile_range, with_rows},
};

/// Keys a tile; tiles begin at multiples of it.
const KEYS: usize = 64;
/// Vectors of keys in a tile.
const KEY_VECTORS: usize = KEYS / LANES;
/// Query vectors (queries times query heads) a task, at most, where a KV head has fewer query heads.
const VECTORS_A_TASK: usize = 48;
/// Panels of the register tiles, and of those of few rows.
const PANELS: usize = 2;
const FEW_ROWS: usize = 2;
const PANELS_FEW_ROWS: usize = 4;
/// Query vectors that read keys and values where they lie, at most.
const IN_PLACE: usize = 4;

/// All queries, `[n, heads * head_dim]`.
pub(super) fn paged_attention(op: &PagedAttention<'_>, q: Rows<'_>) -> candle_core::Result<Vec<f32>> {
    let (keys, _) = op.cache.keys.storage_and_layout();
    let (values, _) = op.cache.values.storage_and_layout();
    let [keys, values]: [&Storage; 2] = [&keys, &values];
    with_elements!(cache_storage(keys)?, keys => Ok(attend(op, q, keys, values_like(keys, cache_storage(values)?)?)))
}

/// The values, which have the type of the keys.
fn values_like<'a, E: candle_core::WithDType>(
    _: &[E],
    values: &'a candle_core::CpuStorage,
) -> candle_core::Result<&'a [E]> {
    values.as_slice::<E>()
}

fn attend<E: CacheElement>(op: &PagedAttention<'_>, q: Rows<'_>, keys: &[E], values: &[E]) -> Vec<f32> {
    let config = *op.cache.config();
    let group = op.heads / config.kv_heads;
    let queries_a_task = (VECTORS_A_TASK / group).max(1);
    let mut tasks = Vec::new();
    for row in op.rows {
        for queries in (0..row.queries.len()).step_by(queries_a_task) {
            let queries = queries..row.queries.len().min(queries + queries_a_task);
            tasks.extend((0..config.kv_heads).map(|kv_head| (row, queries.clone(), kv_head)));
        }
    }
    let mut out = vec![0.0; q.count * q.width];
    let shared = SharedMatrix::new(&mut out);
    for_each_task(tasks.len(), true, |index| {
        thread_local! {
            static SCRATCH: RefCell<Scratch> = RefCell::default();
        }
        let (row, queries, kv_head) = tasks[index].clone();
        SCRATCH.with_borrow_mut(|scratch| {
            let cache = HeadCache { keys, values, config, kv_head, row };
            let mut task = Task {
                config,
                kv_head,
                row,
                tile_rows: op.level.tile_rows(),
                queries,
                group,
                q,
                scale: op.scale,
                window: op.window,
                scratch,
                out: &shared,
            };
            task.run(op.level, &cache);
        });
    });
    out
}

/// One row's keys and values of one head.
struct HeadCache<'a, E> {
    keys: &'a [E],
    values: &'a [E],
    config: KvCacheConfig,
    kv_head: usize,
    row: &'a Row<'a>,
}

/// Neighbouring positions in one block.
struct Run {
    /// The head's part of the block, in keys and in values.
    part: Range<usize>,
    /// The first position's place in the block.
    offset: usize,
    positions: Range<usize>,
}

impl<E: CacheElement> HeadCache<'_, E> {
    /// The positions from `positions.start` as far as they lie in one block.
    #[inline(always)]
    fn run(&self, positions: Range<usize>) -> Run {
        let KvCacheConfig { block_size, kv_heads, head_dim, .. } = self.config;
        let (index, offset) = (positions.start / block_size, positions.start % block_size);
        let len = block_size * head_dim;
        let start = (self.row.blocks[index].index() * kv_heads + self.kv_head) * len;
        let end = positions.end.min(positions.start + block_size - offset);
        Run { part: start..start + len, offset, positions: positions.start..end }
    }

    /// The keys from a position to the end of its block, every `block_size` one dimension's.
    #[inline(always)]
    fn keys_from(&self, position: usize) -> &[E] {
        let run = self.run(position..position + 1);
        &self.keys[run.part][run.offset..]
    }

    /// The values from a position to the end of its block, every `head_dim` one key's.
    #[inline(always)]
    fn values_from(&self, position: usize) -> &[E] {
        let run = self.run(position..position + 1);
        &self.values[run.part][run.offset * self.config.head_dim..]
    }

    /// Widens the keys at `positions` of the tile at `start` into `[vector][dim][key]`; other keys are left as they are.
    /// Meanwhile asks for the keys that stand a tile further, as far as `end`.
    #[inline(always)]
    fn widen_keys<S: Simd>(&self, simd: S, start: usize, positions: Range<usize>, end: usize, to: &mut [Vector]) {
        let KvCacheConfig { block_size, head_dim, .. } = self.config;
        if block_size.is_multiple_of(LANES) {
            for (vector, to) in to.chunks_exact_mut(head_dim).take(KEY_VECTORS).enumerate() {
                let first = start + vector * LANES;
                if first + LANES <= positions.start || first >= positions.end {
                    continue;
                }
                // Whole vectors: a block has room for all their keys, and scores of those not asked for are not used.
                let run = self.run(first..first + LANES);
                let coming = self.run(if first + KEYS < end { first + KEYS..end } else { first..first + 1 });
                let coming = self.keys[coming.part].chunks_exact(block_size).map(|keys| &keys[coming.offset]);
                for ((from, to), coming) in self.keys[run.part].chunks_exact(block_size).zip(to).zip(coming) {
                    simd.prefetch_far(coming);
                    if let Some(from) = from[run.offset..].first_chunk() {
                        simd.store(E::load(simd, from), to);
                    }
                }
            }
            return;
        }
        let mut rest = positions;
        while !rest.is_empty() {
            let run = self.run(rest.clone());
            rest.start = run.positions.end;
            for (dim, from) in self.keys[run.part].chunks_exact(block_size).enumerate() {
                for (key, from) in run.positions.clone().zip(&from[run.offset..]) {
                    let key = key - start;
                    to[key / LANES * head_dim + dim][key % LANES] = from.to_f32();
                }
            }
        }
    }

    /// Widens the values at `positions` of the tile at `start` into `[panel][key][dim]`; other keys are left as they are.
    /// Meanwhile asks for the values that stand a tile further, as far as `end`.
    #[inline(always)]
    fn widen_values<S: Simd>(&self, simd: S, start: usize, positions: Range<usize>, end: usize, to: &mut [Vector]) {
        let head_dim = self.config.head_dim;
        let mut rest = positions;
        while !rest.is_empty() {
            let run = self.run(rest.clone());
            rest.start = run.positions.end;
            let first = run.positions.start;
            let coming = self.run(if first + KEYS < end { first + KEYS..end } else { first..first + 1 });
            let coming = &self.values[coming.part][coming.offset * head_dim..];
            let rows = self.values[run.part][run.offset * head_dim..].chunks_exact(head_dim);
            for (row, (key, from)) in run.positions.zip(rows).enumerate() {
                let (from, tail) = from.as_chunks::<LANES>();
                let to = &mut to[key - start..];
                for (panel, from) in from.iter().enumerate() {
                    if let Some(coming) = coming.get(row * head_dim + panel * LANES) {
                        simd.prefetch_far(coming);
                    }
                    simd.store(E::load(simd, from), &mut to[panel * KEYS]);
                }
                if !tail.is_empty() {
                    for (from, to) in tail.iter().zip(&mut to[from.len() * KEYS]) {
                        *to = from.to_f32();
                    }
                }
            }
        }
    }
}

/// Buffers of one thread, grown as needed. What a task has not written is never used.
#[derive(Default)]
struct Scratch {
    /// `[vector][dim][key]`.
    keys: Vec<Vector>,
    /// `[panel][key][dim]`.
    values: Vec<Vector>,
    /// Queries in register tiles, `[dim][query vector]` each.
    queries: Vec<f32>,
    /// `[query vector][key]`: scores, then weights.
    scores: Vec<[f32; KEYS]>,
    /// `[query vector][panel]`.
    sums: Vec<Vector>,
    /// One a query vector.
    softmax: Vec<Softmax>,
}

/// The running maximum of a query's scores, and the sum of its weights by position modulo sixteen.
#[derive(Clone, Copy)]
struct Softmax {
    max: f32,
    weights: Vector,
}

/// Some queries of one row and one KV head.
struct Task<'a> {
    config: KvCacheConfig,
    kv_head: usize,
    row: &'a Row<'a>,
    /// Query vectors a register tile, at most.
    tile_rows: usize,
    /// In the row.
    queries: Range<usize>,
    /// Query heads that share the KV head.
    group: usize,
    q: Rows<'a>,
    scale: f32,
    window: usize,
    scratch: &'a mut Scratch,
    out: &'a SharedMatrix<'a, f32>,
}

/// Widens the keys and values at some positions of the tile at `start`; those before `end` will be needed soon.
struct Widen<'a, E> {
    cache: &'a HeadCache<'a, E>,
    start: usize,
    positions: Range<usize>,
    end: usize,
    scratch: &'a mut Scratch,
}

impl<E: CacheElement> Kernel for Widen<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        self.cache.widen_keys(simd, self.start, self.positions.clone(), self.end, &mut self.scratch.keys);
        self.cache.widen_values(simd, self.start, self.positions, self.end, &mut self.scratch.values);
    }
}

/// Takes a task's queries over the widened tile at `start`, of whose keys `end` are needed.
struct Tile<'a, 'b> {
    task: &'a mut Task<'b>,
    start: usize,
    end: usize,
}

impl Kernel for Tile<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { task, start, end } = self;
        for tile in 0..task.tiles() {
            let vectors = task.tile(tile);
            with_rows!(S, vectors.len(), R => task.score::<S, R>(simd, vectors.start, end));
            for vector in vectors.clone() {
                task.weigh(simd, vector, start);
            }
            // What all vectors of the tile see they take together, what only some see each by itself, in order.
            let visible = |vector| task.visible_in_tile(vector, start);
            let from = vectors.clone().map(|vector| visible(vector).start).max().unwrap_or(0);
            let to = vectors.clone().map(|vector| visible(vector).end).min().unwrap_or(0).max(from);
            for vector in vectors.clone() {
                let Range { start: own, end } = task.visible_in_tile(vector, start);
                task.sum::<S, 1>(simd, vector, own..from.min(end));
            }
            with_rows!(S, vectors.len(), R => task.sum::<S, R>(simd, vectors.start, from..to));
            for vector in vectors.clone() {
                let Range { start: own, end } = task.visible_in_tile(vector, start);
                task.sum::<S, 1>(simd, vector, own.max(to)..end);
            }
        }
    }
}

/// Divides a task's sums by its weights.
struct Finish<'a, 'b>(&'a Task<'b>);

impl Kernel for Finish<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        self.0.finish(simd);
    }
}

impl Task<'_> {
    fn run<E: CacheElement>(&mut self, level: Level, cache: &HeadCache<'_, E>) {
        self.load_queries();
        let first = self.visible(0).start;
        let end = self.visible(self.vectors() - 1).end;
        for start in (first / KEYS * KEYS..end).step_by(KEYS) {
            let positions = first.max(start)..end.min(start + KEYS);
            let needed = positions.end - start;
            if self.reads_in_place() {
                level.run(TileInPlace { task: self, cache, start, positions, end });
                continue;
            }
            level.run(Widen { cache, start, positions, end, scratch: self.scratch });
            level.run(Tile { task: self, start, end: needed });
        }
        level.run(Finish(self));
    }

    /// Query vectors: the query heads of the first query, then those of the second, and so on.
    #[inline(always)]
    fn vectors(&self) -> usize {
        self.queries.len() * self.group
    }

    /// Whether it takes so little from each key and value that widening them first does not pay, and they lie in whole
    /// register tiles.
    fn reads_in_place(&self) -> bool {
        let KvCacheConfig { block_size, head_dim, .. } = self.config;
        self.queries.len() == 1
            && self.group <= IN_PLACE
            && block_size.is_multiple_of(LANES)
            && head_dim.is_multiple_of(PANELS_FEW_ROWS * LANES)
    }

    #[inline(always)]
    fn panels(&self) -> usize {
        self.config.head_dim.div_ceil(LANES)
    }

    #[inline(always)]
    fn tiles(&self) -> usize {
        self.vectors().div_ceil(self.tile_rows)
    }

    #[inline(always)]
    fn tile(&self, tile: usize) -> Range<usize> {
        tile_range(self.vectors(), self.tile_rows, tile)
    }

    /// Positions of the keys that a query vector sees.
    #[inline(always)]
    fn visible(&self, vector: usize) -> Range<usize> {
        let position = self.row.context_len + self.queries.start + vector / self.group;
        (position + 1).saturating_sub(self.window)..position + 1
    }

    /// Those of them in the tile at `start`, from its beginning.
    #[inline(always)]
    fn visible_in_tile(&self, vector: usize, start: usize) -> Range<usize> {
        let Range { start: first, end } = self.visible(vector);
        first.clamp(start, start + KEYS) - start..end.clamp(start, start + KEYS) - start
    }

    /// A query vector's row in the batch and its first column there.
    #[inline(always)]
    fn place(&self, vector: usize) -> (usize, usize) {
        let row = self.row.queries.start + self.queries.start + vector / self.group;
        (row, (self.kv_head * self.group + vector % self.group) * self.config.head_dim)
    }

    fn load_queries(&mut self) {
        let (vectors, panels, head_dim) = (self.vectors(), self.panels(), self.config.head_dim);
        let scratch = &mut *self.scratch;
        scratch.keys.resize(scratch.keys.len().max(KEY_VECTORS * head_dim), [0.0; LANES]);
        scratch.values.resize(scratch.values.len().max(panels * KEYS), [0.0; LANES]);
        scratch.queries.resize(scratch.queries.len().max(vectors * head_dim), 0.0);
        scratch.scores.resize(scratch.scores.len().max(vectors), [0.0; KEYS]);
        scratch.sums.clear();
        scratch.sums.resize(vectors * panels, [0.0; LANES]);
        scratch.softmax.clear();
        scratch.softmax.resize(vectors, Softmax { max: f32::NEG_INFINITY, weights: [0.0; LANES] });
        for tile in 0..self.tiles() {
            let range = self.tile(tile);
            for (column, vector) in range.clone().enumerate() {
                let (row, start) = self.place(vector);
                let to = self.scratch.queries[range.start * head_dim + column..].iter_mut().step_by(range.len());
                for (to, &x) in to.zip(&self.q.row(row)[start..start + head_dim]) {
                    *to = x;
                }
            }
        }
    }

    /// Scores of `R` query vectors with the first `keys` keys of the tile (rounded up to whole vectors).
    #[inline(always)]
    fn score<S: Simd, const R: usize>(&mut self, simd: S, first: usize, keys: usize) {
        // Few rows take more panels, so that there are enough chains to hide the latency of a multiply-add.
        if const { R <= FEW_ROWS } {
            self.score_panels::<S, R, PANELS_FEW_ROWS>(simd, first, keys);
        } else {
            self.score_panels::<S, R, PANELS>(simd, first, keys);
        }
    }

    #[inline(always)]
    fn score_panels<S: Simd, const R: usize, const P: usize>(&mut self, simd: S, first: usize, keys: usize) {
        let head_dim = self.config.head_dim;
        let Scratch { keys: widened, queries, scores, .. } = &mut *self.scratch;
        for vector in (0..keys.div_ceil(LANES)).step_by(P) {
            let panels: [&[Vector]; P] =
                std::array::from_fn(|p| &widened[(vector + p) * head_dim..(vector + p + 1) * head_dim]);
            let queries = queries[first * head_dim..(first + R) * head_dim].as_chunks::<R>().0;
            score_vectors::<S, R, P>(simd, queries, self.scale, panels, &mut scores[first..first + R], vector);
        }
    }

    /// Turns a query vector's scores into weights, and rescales what it summed where its maximum rises.
    #[inline(always)]
    fn weigh<S: Simd>(&mut self, simd: S, vector: usize, start: usize) {
        let visible = self.visible_in_tile(vector, start);
        if visible.is_empty() {
            return;
        }
        let panels = self.panels();
        let Scratch { scores, sums, softmax, .. } = &mut *self.scratch;
        let (scores, softmax) = (&mut scores[vector], &mut softmax[vector]);
        let vectors = visible.start / LANES..visible.end.div_ceil(LANES);
        scores[vectors.start * LANES..visible.start].fill(f32::NEG_INFINITY);
        scores[visible.end..vectors.end * LANES].fill(f32::NEG_INFINITY);
        let scores_by_vector = &mut scores.as_chunks_mut::<LANES>().0[vectors.clone()];
        let mut largest = simd.splat(softmax.max);
        for scores in scores_by_vector.iter() {
            largest = simd.max(largest, simd.load(scores));
        }
        let max = simd.max_lane(largest);
        let mut weights = simd.load(&softmax.weights);
        if max > softmax.max {
            let decay = simd.exp(simd.splat(softmax.max - max));
            weights = simd.mul(weights, decay);
            for sum in &mut sums[vector * panels..(vector + 1) * panels] {
                simd.store(simd.mul(simd.load(sum), decay), sum);
            }
            softmax.max = max;
        }
        for scores in scores_by_vector {
            let weight = simd.exp(simd.sub(simd.load(scores), simd.splat(softmax.max)));
            simd.store(weight, scores);
        }
        scores[vectors.start * LANES..visible.start].fill(0.0);
        scores[visible.end..vectors.end * LANES].fill(0.0);
        for scores in &scores.as_chunks::<LANES>().0[vectors] {
            weights = simd.add(weights, simd.load(scores));
        }
        simd.store(weights, &mut softmax.weights);
    }

    /// Adds these keys' weighted values to the sums of `R` query vectors.
    #[inline(always)]
    fn sum<S: Simd, const R: usize>(&mut self, simd: S, first: usize, keys: Range<usize>) {
        if keys.is_empty() {
            return;
        }
        assert!(keys.end <= KEYS);
        let panels = self.panels();
        let Scratch { values, scores, sums, .. } = &mut *self.scratch;
        let Some(scores) = scores[first..].first_chunk::<R>() else { return };
        let values = values.as_chunks::<KEYS>().0;
        let sums = &mut sums[first * panels..(first + R) * panels];
        let mut panel = 0;
        if const { R <= FEW_ROWS } {
            while panel + PANELS_FEW_ROWS <= panels {
                sum_panels::<S, R, PANELS_FEW_ROWS>(simd, keys.clone(), scores, &values[panel..], sums, panel);
                panel += PANELS_FEW_ROWS;
            }
        }
        while panel + PANELS <= panels {
            sum_panels::<S, R, PANELS>(simd, keys.clone(), scores, &values[panel..], sums, panel);
            panel += PANELS;
        }
        if panel < panels {
            sum_panels::<S, R, 1>(simd, keys, scores, &values[panel..], sums, panel);
        }
    }

    #[inline(always)]
    fn finish<S: Simd>(&self, simd: S) {
        let (panels, head_dim) = (self.panels(), self.config.head_dim);
        for vector in 0..self.vectors() {
            let total = simd.splat(simd.sum(simd.load(&self.scratch.softmax[vector].weights)));
            let (row, column) = self.place(vector);
            // SAFETY: the query head of this row is this task's alone.
            let out = unsafe { self.out.slice_mut(row * self.q.width + column, head_dim) };
            let sums = &self.scratch.sums[vector * panels..(vector + 1) * panels];
            for (out, sum) in out.chunks_mut(LANES).zip(sums) {
                simd.store_partial(simd.div(simd.load(sum), total), out);
            }
        }
    }
}

/// Scores of `R` queries, `[dim]` each, with `P` vectors of keys from `vector` on.
#[inline(always)]
fn score_vectors<S: Simd, const R: usize, const P: usize>(
    simd: S,
    queries: &[[f32; R]],
    scale: f32,
    keys: impl Panels<S, P>,
    scores: &mut [[f32; KEYS]],
    vector: usize,
) {
    let mut tile = [[[0.0; LANES]; P]; R];
    multiply_add(simd, 0..queries.len(), |r, d| queries[d][r], keys, &mut tile);
    for (row, scores) in tile.iter().zip(scores) {
        let scores = scores.as_chunks_mut::<LANES>().0;
        for (p, sum) in row.iter().enumerate() {
            simd.store(simd.mul(simd.load(sum), simd.splat(scale)), &mut scores[vector + p]);
        }
    }
}

/// One register tile of weights times values. `values` begins at the first of the `P` panels.
#[inline(always)]
fn sum_panels<S: Simd, const R: usize, const P: usize>(
    simd: S,
    keys: Range<usize>,
    weights: &[[f32; KEYS]; R],
    values: &[[Vector; KEYS]],
    sums: &mut [Vector],
    panel: usize,
) {
    let Some(values) = values.first_chunk::<P>() else { return };
    let values = values.each_ref().map(|values| &values[..]);
    add_weighted::<S, R, P>(simd, keys, |r, key| weights[r][key], values, sums, panel);
}

/// Adds `P` panels of values, weighted, to the sums of `R` query vectors from `panel` on.
#[inline(always)]
fn add_weighted<S: Simd, const R: usize, const P: usize>(
    simd: S,
    keys: Range<usize>,
    weight: impl Fn(usize, usize) -> f32,
    values: impl Panels<S, P>,
    sums: &mut [Vector],
    panel: usize,
) {
    let panels = sums.len() / R;
    let mut tile = [[[0.0; LANES]; P]; R];
    for (r, row) in tile.iter_mut().enumerate() {
        row.copy_from_slice(&sums[r * panels + panel..][..P]);
    }
    multiply_add(simd, keys, weight, values, &mut tile);
    for (r, row) in tile.iter().enumerate() {
        sums[r * panels + panel..][..P].copy_from_slice(row);
    }
}

/// Panels where they lie in the cache: sixteen neighbours every `stride`. Meanwhile asks for as much of what comes next.
#[derive(Clone, Copy)]
struct InPlace<'a, E, const P: usize> {
    from: [&'a [E]; P],
    coming: [&'a [E]; P],
    stride: usize,
}

impl<S: Simd, E: CacheElement, const P: usize> Panels<S, P> for InPlace<'_, E, P> {
    #[inline(always)]
    fn get(self, simd: S, panel: usize, k: usize) -> S::F {
        let at = k * self.stride;
        if let Some(coming) = self.coming[panel].get(at) {
            simd.prefetch_far(coming);
        }
        match self.from[panel].get(at..).and_then(<[E]>::first_chunk) {
            Some(from) => E::load(simd, from),
            None => simd.zero(),
        }
    }
}

/// Takes a task's one query over the keys and values at some positions of the tile at `start`, all of which it sees;
/// those before `end` will be needed soon.
struct TileInPlace<'a, 'b, E> {
    task: &'a mut Task<'b>,
    cache: &'a HeadCache<'a, E>,
    start: usize,
    positions: Range<usize>,
    end: usize,
}

impl<E: CacheElement> Kernel for TileInPlace<'_, '_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        match self.task.vectors() {
            1 => self.rows::<S, 1, PANELS_FEW_ROWS>(simd),
            2 => self.rows::<S, 2, PANELS_FEW_ROWS>(simd),
            3 => self.rows::<S, 3, PANELS>(simd),
            IN_PLACE => self.rows::<S, IN_PLACE, PANELS>(simd),
            vectors => unreachable!("{vectors} query vectors are not few"),
        }
    }
}

impl<E: CacheElement> TileInPlace<'_, '_, E> {
    #[inline(always)]
    fn rows<S: Simd, const R: usize, const P: usize>(self, simd: S) {
        let Self { task, cache, start, positions, end } = self;
        let KvCacheConfig { block_size, head_dim, .. } = task.config;
        let vectors = (positions.start - start) / LANES..(positions.end - start).div_ceil(LANES);
        for vector in vectors.clone().step_by(P) {
            // Panels past the last vector take that one again; what they give is not kept.
            let position = |p: usize| start + (vector + p).min(vectors.end - 1) * LANES;
            let from = std::array::from_fn(|p| cache.keys_from(position(p)));
            let coming = std::array::from_fn(|p| match position(p) + KEYS {
                next if next < end => cache.keys_from(next),
                _ => &[],
            });
            let Scratch { queries, scores, .. } = &mut *task.scratch;
            let queries = queries[..R * head_dim].as_chunks::<R>().0;
            let keys = InPlace::<E, P> { from, coming, stride: block_size };
            let mut tile = [[0.0; KEYS]; R];
            score_vectors(simd, queries, task.scale, keys, &mut tile, 0);
            let kept = vector * LANES..vectors.end.min(vector + P) * LANES;
            for (scores, tile) in scores.iter_mut().zip(&tile) {
                scores[kept.clone()].copy_from_slice(&tile[..kept.len()]);
            }
        }
        for vector in 0..R {
            task.weigh(simd, vector, start);
        }
        let panels = task.panels();
        let Scratch { scores, sums, .. } = &mut *task.scratch;
        let mut rest = positions;
        while !rest.is_empty() {
            let run = cache.run(rest.clone()).positions;
            rest.start = run.end;
            let from = cache.values_from(run.start);
            let coming = if run.start + KEYS < end { cache.values_from(run.start + KEYS) } else { &[] };
            for panel in (0..panels).step_by(P) {
                let values = InPlace::<E, P> {
                    from: std::array::from_fn(|p| &from[(panel + p) * LANES..]),
                    coming: std::array::from_fn(|p| coming.get((panel + p) * LANES..).unwrap_or_default()),
                    stride: head_dim,
                };
                let weight = |r: usize, key: usize| scores[r][run.start - start + key];
                add_weighted::<S, R, P>(simd, 0..run.len(), weight, values, &mut sums[..R * panels], panel);
            }
        }
    }
}
