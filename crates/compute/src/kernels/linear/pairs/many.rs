//! Many rows in pairs: weights are paired a few steps of two panels at a time, into the first-level cache, and all tiles of rows
//! are taken over them, with the sums put aside in between; meanwhile the next steps' weights are asked for.

use std::{cell::Cell, ops::Range};

use super::{
    super::{
        ahead::Ahead,
        outputs::WRITTEN,
        packed::PAIR,
        panel::{Float, QUADS, Quad},
    },
    CHAINS, Step, Task,
    rows::{CHUNK_STEPS, TILE_ROWS as R},
};
use crate::kernels::simd::{LANES, Simd};

/// Tiles for which weights are taken as they lie.
const FEW_TILES: usize = 8;
/// Bytes of rows that stay in the second-level cache while the weights pass by.
const ROW_BLOCK_BYTES: usize = 1024 * 1024;
/// Most rows whose sums are put aside.
const ROW_BLOCK: usize = 512;

/// A step's weights of two panels.
type Weights = [[[Quad; PAIR]; CHAINS]; QUADS];
/// The sums of a tile and two panels.
type Sums = [[[f32; LANES]; R]; PAIR];

/// Paired weights.
#[repr(C, align(64))]
struct Chunk([Weights; CHUNK_STEPS]);

/// A row's sums of a panel.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
struct Lanes([f32; LANES]);

thread_local! {
    /// Where the last sums were put aside, for the next.
    static SUMS: Cell<Vec<Lanes>> = const { Cell::new(Vec::new()) };
}

impl<F: Float> Task<'_, F> {
    /// All rows, in blocks of tiles.
    #[inline(always)]
    pub(super) fn many<S: Simd>(&self, simd: S) {
        let count = self.x.tiles();
        let fit = ROW_BLOCK_BYTES / (self.x.tile_words() * size_of::<u32>()).max(1);
        // Blocks of about the same size.
        let block = count.div_ceil(count.div_ceil(fit.clamp(1, ROW_BLOCK / R)));
        let mut kept = SUMS.take();
        // `[pair][tile]`.
        kept.resize(kept.len().max(WRITTEN * block * PAIR * R), Lanes([0.0; LANES]));
        let sums: &mut [[f32; LANES]] = bytemuck::cast_slice_mut(&mut kept);
        let sums: &mut [Sums] = sums.as_chunks_mut::<R>().0.as_chunks_mut().0;
        let mut weights = Chunk([[[[[[0; 4]; LANES]; PAIR]; CHAINS]; QUADS]; CHUNK_STEPS]);
        for first in (0..count).step_by(block) {
            let tiles = first..count.min(first + block);
            for begin in self.pairs.clone().step_by(WRITTEN) {
                let some = begin..self.pairs.end.min(begin + WRITTEN);
                self.some(simd, some, tiles.clone(), &mut weights, sums);
            }
        }
        SUMS.set(kept);
    }

    /// Some tiles of rows over some pairs of panels, which are written together: each tile when it has its last sums, to lines
    /// that were asked for before.
    #[inline(always)]
    fn some<S: Simd>(&self, simd: S, some: Range<usize>, tiles: Range<usize>, weights: &mut Chunk, sums: &mut [Sums]) {
        let (panel, panels) = (some.start * PAIR, some.len() * PAIR);
        // Without inputs there is one chunk all the same, of no steps: sums of nothing.
        let chunks = self.x.steps.div_ceil(CHUNK_STEPS).max(1);
        // Many rows are taken over the same inputs of all pairs before the next ones, so that these come out of the second-level
        // cache; few rows over one pair after the other, as the weights lie.
        let by_chunk = tiles.len() > FEW_TILES;
        let place = |turn: usize| {
            if by_chunk { (turn / some.len(), turn % some.len()) } else { (turn % chunks, turn / chunks) }
        };
        let weights_of = |(chunk, pair): (usize, usize)| {
            let steps = self.panels.pair(some.start + pair).steps();
            &steps[chunk * CHUNK_STEPS..steps.len().min((chunk + 1) * CHUNK_STEPS)]
        };
        let turns = chunks * some.len();
        for turn in 0..turns {
            let (chunk, pair) = place(turn);
            let steps = weights_of((chunk, pair));
            let is_last = turn + 1 == turns;
            let next = if turn + 1 < turns { weights_of(place(turn + 1)).as_ptr() } else { steps.as_ptr_range().end };
            let mut ahead = Ahead::new(next.cast(), size_of_val(steps), (1 + tiles.len() * self.x.terms) * steps.len());
            for (weights, step) in weights.0.iter_mut().zip(steps) {
                ahead.ask(simd);
                pair_weights::<S, F>(simd, step, weights);
            }
            for (which, tile) in tiles.clone().enumerate() {
                let rows = self.x.rows_of(tile);
                if is_last {
                    self.out.prefetch_panels(simd, rows.clone(), panel, panels);
                }
                let sums_now = (chunk > 0, &mut sums[pair * tiles.len() + which]);
                let x = if steps.is_empty() { &[] } else { self.x.chunk::<R>(tile, chunk) };
                add_chunk(simd, &weights.0[..steps.len()], x, self.x.terms, &mut ahead, sums_now);
                if is_last {
                    let sums_of = |panel: usize| &sums[panel / PAIR * tiles.len() + which][panel % PAIR];
                    self.out.store_panels(simd, rows, panel, panels, sums_of);
                }
            }
        }
    }
}

/// A step's weights in pairs.
#[inline(always)]
fn pair_weights<S: Simd, F: Float>(simd: S, step: &F::Step, weights: &mut Weights) {
    for (panel, packed) in step.iter().enumerate() {
        for (four, weights) in weights.iter_mut().enumerate() {
            let [even, odd] = F::pairs(simd, packed, four);
            simd.store_bytes(even, &mut weights[0][panel]);
            simd.store_bytes(odd, &mut weights[1][panel]);
        }
    }
}

/// Adds the products of some steps of `R` rows with two panels to the sums, or to zeros where there are none yet.
#[inline(always)]
fn add_chunk<S: Simd>(
    simd: S,
    weights: &[Weights],
    x: &[Step<R>],
    terms: usize,
    ahead: &mut Ahead,
    (has_sums, sums): (bool, &mut Sums),
) {
    let mut now = [[simd.zero(); R]; PAIR];
    if has_sums {
        for p in 0..PAIR {
            for r in 0..R {
                now[p][r] = simd.load(&sums[p][r]);
            }
        }
    }
    // Inputs by another name: of one that two products take, the compiler makes a broadcast of its own, which takes a turn where
    // AMD multiplies. With one use it is part of the product and takes none.
    let again = std::hint::black_box(x);
    // One loop over steps and terms: in two the compiler loads a step's weights before the inner one, for which there is no room.
    for (index, (x, again)) in x.iter().zip(again).enumerate() {
        let weights = &weights[index / terms];
        ahead.ask(simd);
        let mut chains = [[[simd.zero(); R]; PAIR]; CHAINS];
        for four in 0..QUADS {
            for chain in 0..CHAINS {
                let [first, second] = &weights[four][chain];
                let (first, second) = (simd.load_bytes(first), simd.load_bytes(second));
                for r in 0..R {
                    chains[chain][0][r] = simd.dot_pairs(chains[chain][0][r], first, x[four][chain][r]);
                    chains[chain][1][r] = simd.dot_pairs(chains[chain][1][r], second, again[four][chain][r]);
                }
            }
        }
        for p in 0..PAIR {
            for r in 0..R {
                now[p][r] = simd.add(simd.add(chains[0][p][r], chains[1][p][r]), now[p][r]);
            }
        }
    }
    for p in 0..PAIR {
        for r in 0..R {
            simd.store(now[p][r], &mut sums[p][r]);
        }
    }
}
