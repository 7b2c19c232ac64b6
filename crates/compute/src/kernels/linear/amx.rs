//! Linear with Intel's tiles.
//!
//! Inputs are rounded to bfloat16 tiles of sixteen rows. Two panels are taken together, and what lies in memory is read
//! from its beginning to its end. Few rows stream the weights: each step's are widened into a ring of tiles and multiplied
//! two steps later, the sums staying in registers. Many rows widen some steps into tiles that stay in the first-level
//! cache and take all tiles of rows over them, with the sums put aside in between; meanwhile the next steps' weights are
//! asked for. Weights that are bfloat16 lie as tiles already.

use std::{cell::Cell, ops::Range};

use super::{
    Terms,
    ahead::LINE,
    inputs::Source,
    outputs::{Outputs, WRITTEN},
    packed::{PAIR, PANEL_GROUP, Packed, Panels},
    panel::{Float, STEP, with_float},
};
use crate::kernels::{
    cpu_tensor::{SharedMatrix, for_each_row_range},
    simd::{
        LANES,
        amx::{Amx, Sums, TILE_ROWS, Tile, TileKernel, TileSimd, Tiles},
    },
};

/// Bytes of rows that stay in the second-level cache while the weights pass by.
const ROW_BLOCK_BYTES: usize = 1024 * 1024;
/// Most tiles of rows a block.
const ROW_BLOCK_TILES: usize = 32;
/// Tiles of rows that share one load of a tile of weights.
const ROWS: usize = 2;
/// Steps whose widened weights stay in the first-level cache with many rows: 32 KiB.
const CHUNK_STEPS: usize = 16;
/// Steps that the products are behind the widening with few rows: a tile that was just written takes long to load.
const LAG: usize = 2;
/// Steps of widened tiles with few rows; more than [`LAG`].
const RING: usize = 4;
/// Sums that stay in registers.
const SUMS: usize = ROWS * PAIR;
/// How far ahead of the products its weights are asked for.
const PREFETCH_BYTES: usize = 4096;

thread_local! {
    /// What the last rows were kept in, for the next.
    static TILES: Cell<Vec<[Tile; ROWS]>> = const { Cell::new(Vec::new()) };
    /// Where the last sums were put aside, for the next: `[pair of row tiles]`.
    static PUT_ASIDE: Cell<Vec<PairSums>> = const { Cell::new(Vec::new()) };
}

/// A pair of row tiles' sums `[pair of panels][row tile][panel]` of the panels that are written together.
type PairSums = [[Sums; SUMS]; WRITTEN];

impl Drop for RowTiles {
    fn drop(&mut self) {
        TILES.set(std::mem::take(&mut self.tiles));
    }
}

/// The rows of a batch as tiles `[pair of row tiles][step][term][2]`: inputs are filled up with zeros to whole steps, rows
/// with whatever was there before.
pub(super) struct RowTiles {
    tiles: Vec<[Tile; ROWS]>,
    rows: usize,
    steps: usize,
    terms: usize,
}

impl RowTiles {
    pub(super) fn new(amx: Amx, x: &Source<'_>, terms: Terms) -> Self {
        let terms = terms.count();
        let (rows, width) = (x.count(), x.width());
        let steps = width.div_ceil(STEP);
        let pairs = rows.div_ceil(TILE_ROWS * ROWS);
        let mut tiles = TILES.take();
        // What is not written is of rows that there are not, whose sums nobody reads.
        tiles.resize(tiles.len().max(pairs * steps * terms), [Tile::ZERO; ROWS]);
        let shared = SharedMatrix::new(&mut tiles);
        for_each_row_range(pairs, width * TILE_ROWS * ROWS, |range| {
            // SAFETY: the ranges do not overlap.
            let tiles = unsafe { shared.slice_mut(range.start * steps * terms, range.len() * steps * terms) };
            let first = range.start * TILE_ROWS * ROWS;
            x.with_room(|room| amx.run(Round { x, first, steps, terms, room, tiles }));
        });
        Self { tiles, rows, steps, terms }
    }

    /// Some steps of a pair of row tiles.
    #[inline(always)]
    fn part(&self, pair: usize, steps: Range<usize>) -> &[[Tile; ROWS]] {
        &self.tiles[pair * self.steps * self.terms..][steps.start * self.terms..steps.end * self.terms]
    }

    /// Tiles of rows.
    fn count(&self) -> usize {
        self.rows.div_ceil(TILE_ROWS)
    }
}

/// Rounds rows from `first` on into their tiles.
struct Round<'a> {
    x: &'a Source<'a>,
    first: usize,
    steps: usize,
    terms: usize,
    room: &'a mut [f32],
    tiles: &'a mut [[Tile; ROWS]],
}

impl TileKernel for Round<'_> {
    #[inline(always)]
    fn run(self, simd: TileSimd, _: &mut Tiles) {
        for (pair, tiles) in self.tiles.chunks_exact_mut((self.steps * self.terms).max(1)).enumerate() {
            let first = self.first + pair * TILE_ROWS * ROWS;
            for row in first..self.x.count().min(first + TILE_ROWS * ROWS) {
                let (whole, rest) = self.x.row(simd.avx512(), row, self.room).as_chunks::<STEP>();
                let mut last = [0.0; STEP];
                last[..rest.len()].copy_from_slice(rest);
                let (which, row) = ((row - first) / TILE_ROWS, (row - first) % TILE_ROWS);
                for (terms, inputs) in tiles.chunks_exact_mut(self.terms).zip(whole.iter().chain([&last])) {
                    let (rounded, lost) = terms.split_at_mut(1);
                    rounded.iter_mut().for_each(|both| simd.store_row(inputs, &mut both[which].0[row]));
                    lost.iter_mut().for_each(|both| simd.store_lost(inputs, &mut both[which].0[row]));
                }
            }
        }
    }
}

/// Writes `x Wᵀ + bias` of some groups of panels.
pub(super) fn linear(amx: Amx, x: &RowTiles, weight: &Packed, groups: Range<usize>, out: &Outputs<'_>) {
    with_float!(weight.format, F => {
        amx.run(Task::<F> { x, panels: weight.panels::<F>(), groups, out });
    });
}

struct Task<'a, F: Float> {
    x: &'a RowTiles,
    panels: Panels<'a, F>,
    groups: Range<usize>,
    out: &'a Outputs<'a>,
}

impl<F: Float> TileKernel for Task<'_, F> {
    fn rows(&self) -> usize {
        self.x.rows
    }

    #[inline(always)]
    fn run(self, simd: TileSimd, tiles: &mut Tiles) {
        let pairs = self.groups.start * PANEL_GROUP / PAIR..self.groups.end * PANEL_GROUP / PAIR;
        match self.x.count() {
            1 => pairs.step_by(2).for_each(|pair| self.one(simd, tiles, pair)),
            2 => pairs.for_each(|pair| self.two(simd, tiles, pair)),
            count => self.many(simd, tiles, pairs, count),
        }
    }
}

impl<F: Float> Task<'_, F> {
    /// One tile of rows, which is all there are, over two pairs of panels.
    #[inline(always)]
    fn one(&self, simd: TileSimd, tiles: &mut Tiles, pair: usize) {
        let (steps, blocks) = (self.x.steps, [pair, pair + 1].map(|pair| self.panels.pair(pair).steps()));
        let x = |step: usize| self.x.part(0, step..step + 1);
        tiles.begin();
        if let [Some(first), Some(second)] = blocks.map(as_tiles::<F>) {
            for (step, (first, second)) in first.iter().zip(second).enumerate() {
                prefetch(simd, first);
                prefetch(simd, second);
                x(step).iter().for_each(|x| tiles.multiply_add_one(&x[0], [first, second]));
            }
        } else {
            let mut ring = [[[Tile::ZERO; PAIR]; 2]; RING];
            for step in 0..steps + LAG {
                if step < steps {
                    for (blocks, tiles) in blocks.iter().zip(&mut ring[step % RING]) {
                        widen::<F>(simd, blocks, step, tiles);
                    }
                }
                if let Some(step) = step.checked_sub(LAG) {
                    let [first, second] = &ring[step % RING];
                    x(step).iter().for_each(|x| tiles.multiply_add_one(&x[0], [first, second]));
                }
            }
        }
        let mut sums = [Sums::ZERO; SUMS];
        tiles.end(&mut sums);
        for (pair, sums) in (pair..).zip(sums.as_chunks::<PAIR>().0) {
            self.store(simd, 0, pair, PAIR, |panel| &sums[panel].0);
        }
    }

    /// Two tiles of rows, which are all there are, over a pair of panels.
    #[inline(always)]
    fn two(&self, simd: TileSimd, tiles: &mut Tiles, pair: usize) {
        let (steps, blocks) = (self.x.steps, self.panels.pair(pair).steps());
        let x = |step: usize| self.x.part(0, step..step + 1);
        tiles.begin();
        if let Some(weights) = as_tiles::<F>(blocks) {
            for (step, weights) in weights.iter().enumerate() {
                prefetch(simd, weights);
                x(step).iter().for_each(|x| tiles.multiply_add_two(x, weights));
            }
        } else {
            let mut ring = [[Tile::ZERO; PAIR]; RING];
            for step in 0..steps + LAG {
                if step < steps {
                    // The rows come out of the second-level cache: asked for now, they are near when they are multiplied.
                    simd.prefetch_near(x((step + 1).saturating_sub(LAG)));
                    widen::<F>(simd, blocks, step, &mut ring[step % RING]);
                }
                if let Some(step) = step.checked_sub(LAG) {
                    x(step).iter().for_each(|x| tiles.multiply_add_two(x, &ring[step % RING]));
                }
            }
        }
        let mut sums = [Sums::ZERO; SUMS];
        tiles.end(&mut sums);
        for (row_tile, sums) in sums.as_chunks::<PAIR>().0.iter().enumerate() {
            self.store(simd, row_tile, pair, PAIR, |panel| &sums[panel].0);
        }
    }

    /// Any number of tiles of rows, in blocks, over pairs of panels.
    #[inline(always)]
    fn many(&self, simd: TileSimd, tiles: &mut Tiles, pairs: Range<usize>, count: usize) {
        let fit = ROW_BLOCK_BYTES / (size_of::<[Tile; ROWS]>() * self.x.steps * self.x.terms).max(1);
        let count = count.div_ceil(ROWS);
        // Blocks of about the same size.
        let block = count.div_ceil(count.div_ceil(fit.clamp(1, ROW_BLOCK_TILES / ROWS)));
        let mut widened = [[Tile::ZERO; PAIR]; CHUNK_STEPS];
        let mut sums = PUT_ASIDE.take();
        sums.resize(sums.len().max(count.min(block)), [[Sums::ZERO; SUMS]; WRITTEN]);
        for start in (0..count).step_by(block) {
            let rows = start..count.min(start + block);
            for begin in pairs.clone().step_by(WRITTEN) {
                let some = begin..pairs.end.min(begin + WRITTEN);
                for (which, pair) in some.clone().enumerate() {
                    self.pair(simd, tiles, pair, rows.clone(), &mut widened, (&mut sums, which));
                }
                for (row_pair, sums) in rows.clone().zip(&sums) {
                    for which in 0..ROWS {
                        let panel = |panel: usize| &sums[panel / PAIR][which * PAIR + panel % PAIR].0;
                        self.store(simd, row_pair * ROWS + which, begin, some.len() * PAIR, panel);
                    }
                }
            }
        }
        PUT_ASIDE.set(sums);
    }

    /// Some pairs of row tiles over a pair of panels, `which` of those that are written together.
    #[inline(always)]
    fn pair(
        &self,
        simd: TileSimd,
        tiles: &mut Tiles,
        pair: usize,
        rows: Range<usize>,
        widened: &mut [[Tile; PAIR]; CHUNK_STEPS],
        (sums, which): (&mut [PairSums], usize),
    ) {
        let blocks = self.panels.pair(pair).steps();
        let whole = as_tiles::<F>(blocks);
        let chunk_bytes = size_of::<F::Step>() * CHUNK_STEPS;
        for start in (0..self.x.steps).step_by(CHUNK_STEPS) {
            let steps = start..self.x.steps.min(start + CHUNK_STEPS);
            let weights = match whole {
                Some(tiles) => &tiles[steps.clone()],
                None => {
                    for step in steps.clone() {
                        widen_only::<F>(simd, blocks, step, &mut widened[step - start]);
                    }
                    &widened[..steps.len()]
                }
            };
            // The next steps' weights, which lie behind these, are asked for in equal parts by all pairs of row tiles.
            let next = blocks.as_ptr().cast::<u8>().wrapping_add(chunk_bytes * (start / CHUNK_STEPS + 1));
            let share = chunk_bytes.div_ceil(LINE * rows.len() * steps.len());
            for (index, row_pair) in rows.clone().enumerate() {
                let x = self.x.part(row_pair, steps.clone());
                let ahead = |lines: usize| next.wrapping_add(index * steps.len() * lines * LINE);
                let (first, sums_now) = (start == 0, &mut sums[index][which]);
                match (self.x.terms, share) {
                    (1, 0..=1) => tiles.multiply::<1, 1>(first, x, weights, sums_now, ahead(1)),
                    (1, 2) => tiles.multiply::<1, 2>(first, x, weights, sums_now, ahead(2)),
                    (1, 3..=4) => tiles.multiply::<1, 4>(first, x, weights, sums_now, ahead(4)),
                    (1, _) => tiles.multiply::<1, 8>(first, x, weights, sums_now, ahead(8)),
                    (_, 0..=1) => tiles.multiply::<2, 1>(first, x, weights, sums_now, ahead(1)),
                    (_, 2) => tiles.multiply::<2, 2>(first, x, weights, sums_now, ahead(2)),
                    (_, 3..=4) => tiles.multiply::<2, 4>(first, x, weights, sums_now, ahead(4)),
                    _ => tiles.multiply::<2, 8>(first, x, weights, sums_now, ahead(8)),
                }
            }
        }
    }

    /// Writes what a tile of rows gives with some panels from a pair on.
    #[inline(always)]
    fn store<'s>(
        &self,
        simd: TileSimd,
        row_tile: usize,
        pair: usize,
        panels: usize,
        sums: impl Fn(usize) -> &'s [[f32; LANES]; TILE_ROWS],
    ) {
        let first_row = row_tile * TILE_ROWS;
        let rows = first_row..self.x.rows.min(first_row + TILE_ROWS);
        self.out.store_panels(simd.avx512(), rows, pair * PAIR, panels, sums);
    }
}

/// A pair of panels as the tiles that it is, where it is.
#[inline(always)]
fn as_tiles<F: Float>(blocks: &[F::Step]) -> Option<&[[Tile; PAIR]]> {
    const { F::IS_TILE }.then(|| bytemuck::cast_slice(blocks))
}

/// Widens a step of a pair of panels into tiles, and asks for what is to be widened next.
#[inline(always)]
fn widen<F: Float>(simd: TileSimd, blocks: &[F::Step], step: usize, tiles: &mut [Tile; PAIR]) {
    prefetch(simd, &blocks[step]);
    widen_only::<F>(simd, blocks, step, tiles);
}

/// As [`widen`], asking for nothing.
#[inline(always)]
fn widen_only<F: Float>(simd: TileSimd, blocks: &[F::Step], step: usize, tiles: &mut [Tile; PAIR]) {
    for (panel, tile) in blocks[step].iter().zip(tiles) {
        F::write_tile(simd, panel, tile);
    }
}

/// Asks for what comes as far behind `now` as memory takes.
#[inline(always)]
fn prefetch<T>(simd: TileSimd, now: &T) {
    simd.prefetch_bytes(std::ptr::from_ref(now).cast::<u8>().wrapping_add(PREFETCH_BYTES), size_of::<T>());
}

const _: () = assert!(2 * LANES == STEP);
