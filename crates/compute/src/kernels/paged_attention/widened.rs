//! Any number of query vectors over a tile of keys and values that are widened to float32 first, in register tiles:
//! scores have their lanes across keys, outputs across the head's dimensions, so neither needs a sum across lanes.

use std::marker::PhantomData;

use super::{
    KEY_VECTORS, KEYS,
    head_cache::HeadCache,
    register_tile::{Chains, GROUP, Panels, Tile, Vector, tile_range, with_rows},
    softmax::Softmax,
    task::{KeyTile, Task},
};
use crate::kernels::{
    simd::{Kernel, LANES, Level, Simd},
    store_kv::element::CacheElement,
};

/// Panels of the register tiles, and of those of few rows, which take more so that there are enough chains to hide the
/// latency of a multiply-add.
const PANELS: usize = 2;
const FEW_ROWS: usize = 2;
const PANELS_FEW_ROWS: usize = 4;

/// Buffers of one thread, grown as needed.
#[derive(Default)]
pub(super) struct Scratch {
    /// `[vector][dim][key]`.
    keys: Vec<Vector>,
    /// `[panel][key][dim]`.
    values: Vec<Vector>,
    /// Queries in register tiles, `[dim][query vector]` each.
    pub(super) queries: Vec<f32>,
    /// `[query vector][key]`: scores, then weights.
    pub(super) scores: Vec<[f32; KEYS]>,
    /// `[query vector][panel]`.
    pub(super) sums: Vec<Vector>,
    /// One a query vector.
    pub(super) softmax: Vec<Softmax>,
}

impl Scratch {
    /// Makes room for the scores and sums of a task.
    pub(super) fn make_room(&mut self, task: &Task<'_>) {
        let vectors = task.vectors();
        let panels = task.config.head_dim.div_ceil(LANES);
        self.scores.resize(self.scores.len().max(vectors), [0.0; KEYS]);
        self.sums.clear();
        self.sums.resize(vectors * panels, [0.0; LANES]);
        let sums = &mut self.sums;
        task.begin(&mut self.softmax, |vector, summed| sums[vector * panels..][..panels].copy_from_slice(summed));
    }

    /// Turns a query vector's scores into weights, and rescales what it summed where its maximum rises.
    #[inline(always)]
    pub(super) fn weigh<S: Simd, E: CacheElement>(&mut self, simd: S, task: &Task<'_>, vector: usize, start: usize) {
        let visible = task.visible_in_tile(vector, start);
        if visible.is_empty() {
            self.scores[vector].fill(0.0);
            return;
        }
        let scores = self.scores[vector].as_chunks_mut::<LANES>().0;
        let mut vectors = [simd.zero(); KEY_VECTORS];
        for (vector, scores) in vectors.iter_mut().zip(scores.iter()) {
            *vector = simd.load(scores);
        }
        let (weights, decay) = if const { E::ROUNDED } {
            self.softmax[vector].weigh::<S, true>(simd, task.scoring, visible, vectors)
        } else {
            self.softmax[vector].weigh::<S, false>(simd, task.scoring, visible, vectors)
        };
        for (&weights, scores) in weights.iter().zip(scores) {
            simd.store(if const { E::ROUNDED } { simd.round_bf16(weights) } else { weights }, scores);
        }
        if let Some(decay) = decay {
            let panels = task.config.head_dim.div_ceil(LANES);
            for sum in &mut self.sums[vector * panels..(vector + 1) * panels] {
                simd.store(simd.mul(simd.load(sum), decay), sum);
            }
        }
    }
}

/// Makes room for a task and takes its query vectors, in register tiles of at most `tile_rows`.
pub(super) struct Begin<'a, E> {
    pub(super) task: &'a Task<'a>,
    pub(super) tile_rows: usize,
    pub(super) scratch: &'a mut Scratch,
    pub(super) element: PhantomData<E>,
}

impl<E: CacheElement> Kernel for Begin<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { task, tile_rows, scratch, .. } = self;
        let (vectors, head_dim) = (task.vectors(), task.config.head_dim);
        scratch.make_room(task);
        scratch.queries.resize(scratch.queries.len().max(vectors * head_dim), 0.0);
        for tile in 0..vectors.div_ceil(tile_rows) {
            let range = tile_range(vectors, tile_rows, tile);
            let to = &mut scratch.queries[range.start * head_dim..range.end * head_dim];
            for (column, vector) in range.clone().enumerate() {
                for (to, from) in to.chunks_mut(LANES * range.len()).zip(task.query(vector).chunks(LANES)) {
                    let x = simd.load_partial(from, 0.0);
                    let x = simd.to_array(if const { E::ROUNDED } { simd.round_bf16_or_nan(x) } else { x });
                    for (to, x) in to[column..].iter_mut().step_by(range.len()).zip(x) {
                        *to = x;
                    }
                }
            }
        }
    }
}

/// Divides a task's sums by its weights.
pub(super) struct Finish<'a>(pub(super) &'a Task<'a>, pub(super) &'a Scratch);

impl Kernel for Finish<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self(task, scratch) = self;
        let panels = task.config.head_dim.div_ceil(LANES);
        for (vector, &softmax) in scratch.softmax.iter().enumerate() {
            let sums = &scratch.sums[vector * panels..(vector + 1) * panels];
            task.finish(simd, vector, sums.iter(), softmax);
        }
    }
}

/// Computes a task.
pub(super) fn run<E: CacheElement>(level: Level, task: &Task<'_>, cache: &HeadCache<'_, E>, scratch: &mut Scratch) {
    let head_dim = task.config.head_dim;
    let tile_rows = level.tile_rows();
    level.run(Begin::<E> { task, tile_rows, scratch, element: PhantomData });
    scratch.keys.resize(scratch.keys.len().max(KEY_VECTORS * head_dim), [0.0; LANES]);
    scratch.values.resize(scratch.values.len().max(head_dim.div_ceil(LANES) * KEYS), [0.0; LANES]);
    for tile in task.key_tiles() {
        level.run(Widen { cache, tile: &tile, scratch });
        level.run(Widened::<E> { task, tile_rows, tile: &tile, scratch, element: PhantomData });
    }
    level.run(Finish(task, scratch));
}

/// Widens the keys and values of a tile.
struct Widen<'a, E> {
    cache: &'a HeadCache<'a, E>,
    tile: &'a KeyTile,
    scratch: &'a mut Scratch,
}

impl<E: CacheElement> Kernel for Widen<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        self.cache.widen_keys(simd, self.tile, &mut self.scratch.keys);
        self.cache.widen_values(simd, self.tile, &mut self.scratch.values);
    }
}

/// Takes a task's query vectors over a widened tile.
struct Widened<'a, E> {
    task: &'a Task<'a>,
    /// Query vectors a register tile, at most.
    tile_rows: usize,
    tile: &'a KeyTile,
    scratch: &'a mut Scratch,
    element: PhantomData<E>,
}

impl<E: CacheElement> Kernel for Widened<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { task, tile_rows, tile, scratch, .. } = self;
        let (vectors, keys) = (task.vectors(), tile.positions.end - tile.start);
        for register_tile in 0..vectors.div_ceil(tile_rows) {
            let vectors = tile_range(vectors, tile_rows, register_tile);
            with_rows!(S, vectors.len(), R => scratch.score::<S, R>(simd, task.config.head_dim, vectors.start, keys));
            for vector in vectors.clone() {
                scratch.weigh::<S, E>(simd, task, vector, tile.start);
            }
            with_rows!(S, vectors.len(), R => scratch.sum::<S, R>(simd, task.config.head_dim, vectors.start, keys));
        }
    }
}

impl Scratch {
    /// Scores of `R` query vectors with the first `keys` keys of the tile (rounded up to whole vectors).
    #[inline(always)]
    fn score<S: Simd, const R: usize>(&mut self, simd: S, head_dim: usize, first: usize, keys: usize) {
        if const { R <= FEW_ROWS } {
            self.score_panels::<S, R, PANELS_FEW_ROWS>(simd, head_dim, first, keys);
        } else {
            self.score_panels::<S, R, PANELS>(simd, head_dim, first, keys);
        }
    }

    #[inline(always)]
    fn score_panels<S: Simd, const R: usize, const P: usize>(
        &mut self,
        simd: S,
        head_dim: usize,
        first: usize,
        keys: usize,
    ) {
        for vector in (0..keys.div_ceil(LANES)).step_by(P) {
            let panels: [&[Vector]; P] =
                std::array::from_fn(|p| &self.keys[(vector + p) * head_dim..(vector + p + 1) * head_dim]);
            let queries = self.queries[first * head_dim..(first + R) * head_dim].as_chunks::<R>().0;
            score_vectors::<S, R, P>(simd, queries, panels, &mut self.scores[first..first + R], vector);
        }
    }

    /// Adds the tile's weighted values, of which the first `keys` are needed, to the sums of `R` query vectors.
    #[inline(always)]
    fn sum<S: Simd, const R: usize>(&mut self, simd: S, head_dim: usize, first: usize, keys: usize) {
        let panels = head_dim.div_ceil(LANES);
        let Self { values, scores, sums, .. } = self;
        let Some(scores) = scores[first..].first_chunk::<R>() else { return };
        let values = values.as_chunks::<KEYS>().0;
        let sums = &mut sums[first * panels..(first + R) * panels];
        let mut panel = 0;
        if const { R <= FEW_ROWS } {
            while panel + PANELS_FEW_ROWS <= panels {
                sum_panels::<S, R, PANELS_FEW_ROWS>(simd, keys, scores, &values[panel..], sums, panel);
                panel += PANELS_FEW_ROWS;
            }
        }
        while panel + PANELS <= panels {
            sum_panels::<S, R, PANELS>(simd, keys, scores, &values[panel..], sums, panel);
            panel += PANELS;
        }
        if panel < panels {
            sum_panels::<S, R, 1>(simd, keys, scores, &values[panel..], sums, panel);
        }
    }
}

/// Scores of `R` queries, `[dim]` each, with `P` vectors of keys from `vector` on.
#[inline(always)]
pub(super) fn score_vectors<S: Simd, const R: usize, const P: usize>(
    simd: S,
    queries: &[[f32; R]],
    keys: impl Panels<S, P>,
    scores: &mut [[f32; KEYS]],
    vector: usize,
) {
    let mut tile = [[simd.zero(); P]; R];
    for start in (0..queries.len()).step_by(GROUP) {
        let mut chains = Chains::new(simd);
        chains.take(simd, start..queries.len().min(start + GROUP), |r, d| queries[d][r], keys);
        chains.add_to(simd, &mut tile);
    }
    for (row, scores) in tile.iter().zip(scores) {
        for (&score, to) in row.iter().zip(&mut scores.as_chunks_mut::<LANES>().0[vector..]) {
            simd.store(score, to);
        }
    }
}

/// One register tile of weights times values. `values` begins at the first of the `P` panels.
#[inline(always)]
fn sum_panels<S: Simd, const R: usize, const P: usize>(
    simd: S,
    keys: usize,
    weights: &[[f32; KEYS]; R],
    values: &[[Vector; KEYS]],
    sums: &mut [Vector],
    panel: usize,
) {
    let Some(values) = values.first_chunk::<P>() else { return };
    let values = values.each_ref().map(|values| &values[..]);
    let mut tile = sums_of::<S, R, P>(simd, sums, panel);
    for start in (0..keys).step_by(GROUP) {
        let mut chains = Chains::new(simd);
        chains.take(simd, start..keys.min(start + GROUP), |r, key| weights[r][key], values);
        chains.add_to(simd, &mut tile);
    }
    put_sums(simd, sums, panel, &tile);
}

/// `P` panels of the sums of `R` query vectors.
#[inline(always)]
pub(super) fn sums_of<S: Simd, const R: usize, const P: usize>(
    simd: S,
    sums: &[Vector],
    panel: usize,
) -> Tile<S, R, P> {
    let panels = sums.len() / R;
    let mut tile = [[simd.zero(); P]; R];
    for (r, row) in tile.iter_mut().enumerate() {
        for (to, sum) in row.iter_mut().zip(&sums[r * panels + panel..][..P]) {
            *to = simd.load(sum);
        }
    }
    tile
}

/// Puts them back.
#[inline(always)]
pub(super) fn put_sums<S: Simd, const R: usize, const P: usize>(
    simd: S,
    sums: &mut [Vector],
    panel: usize,
    tile: &Tile<S, R, P>,
) {
    let panels = sums.len() / R;
    for (r, row) in tile.iter().enumerate() {
        for (&sum, to) in row.iter().zip(&mut sums[r * panels + panel..][..P]) {
            simd.store(sum, to);
        }
    }
}
