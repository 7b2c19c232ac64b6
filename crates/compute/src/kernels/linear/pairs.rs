//! Linear by products of pairs of bfloat16.
//!
//! Two links of a chain are two inputs apart ([`super::arithmetic`]), so pairs are made of four neighbours: the first and the
//! third are of the even chain, the second and the fourth of the odd one. Weights are paired a few steps of two panels at a
//! time, into the first-level cache, and all tiles of rows are taken over them, with the sums put aside in between; meanwhile
//! the next steps' weights are asked for.

use std::{cell::Cell, ops::Range};

use super::{
    Terms,
    ahead::Ahead,
    inputs::Source,
    outputs::{Outputs, WRITTEN},
    packed::{PAIR, PANEL_GROUP, Packed, Panels},
    panel::{Float, QUADS, Quad, STEP, with_float},
};
use crate::kernels::{
    cpu_tensor::{SharedMatrix, for_each_row_range},
    simd::{Kernel, LANES, Level, Simd, bf16::Bf16},
};

/// Rows whose sums of two panels stay in registers.
const TILE_ROWS: usize = 4;
/// Steps whose paired weights of two panels are half of the first-level cache.
const CHUNK_STEPS: usize = 8;
/// Neighbouring inputs of which a pair of each chain is made.
const FOUR: usize = 4;
/// Chains of a step: of its even inputs, and of its odd ones.
const CHAINS: usize = 2;
/// Tiles for which weights are taken as they lie.
const FEW_TILES: usize = 8;
/// Bytes of rows that stay in the second-level cache while the weights pass by.
const ROW_BLOCK_BYTES: usize = 1024 * 1024;
/// Most rows whose sums are put aside.
const ROW_BLOCK: usize = 512;

/// A step's inputs of `R` rows, or what rounding lost of them: pairs, the first in the high half.
type Step<const R: usize> = [[[u32; R]; CHAINS]; QUADS];
/// A step's weights of two panels.
type Weights = [[[Quad; PAIR]; CHAINS]; QUADS];
/// The sums of `R` rows and two panels.
type Sums<const R: usize> = [[[f32; LANES]; R]; PAIR];

/// Paired weights.
#[repr(C, align(64))]
struct Chunk([Weights; CHUNK_STEPS]);

/// A row's sums of a panel.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
struct Lanes([f32; LANES]);

thread_local! {
    /// What the last rows were kept in, for the next.
    static PAIRED: Cell<Vec<u32>> = const { Cell::new(Vec::new()) };
    /// Where the last sums were put aside, for the next.
    static SUMS: Cell<Vec<Lanes>> = const { Cell::new(Vec::new()) };
}

/// Rows as pairs, `[chunk of steps][tile][step][term]` times [`Step`]s of a tile's height: inputs are filled up with zeros to
/// whole steps, the last tile with whatever was there before.
pub(super) struct Rows {
    paired: Vec<u32>,
    count: usize,
    /// Of a tile.
    height: usize,
    steps: usize,
    terms: usize,
}

impl Drop for Rows {
    fn drop(&mut self) {
        PAIRED.set(std::mem::take(&mut self.paired));
    }
}

impl Rows {
    pub(super) fn new(level: Level, x: &Source<'_>, terms: Terms) -> Self {
        let height = if x.count() == 1 { 1 } else { TILE_ROWS };
        let steps = x.width().div_ceil(STEP);
        let mut rows = Self { paired: PAIRED.take(), count: x.count(), height, steps, terms: terms.count() };
        // What is not written is of rows that there are not, whose sums nobody reads.
        let mut paired = std::mem::take(&mut rows.paired);
        paired.resize(paired.len().max(rows.tiles() * rows.tile_words()), 0);
        let shared = SharedMatrix::new(&mut paired);
        for_each_row_range(rows.tiles(), height * x.width(), |tiles| {
            for tile in tiles {
                x.with_room(|room| level.run(Round { x, tile, rows: &rows, room, to: &shared }));
            }
        });
        rows.paired = paired;
        rows
    }

    fn tiles(&self) -> usize {
        self.count.div_ceil(self.height)
    }

    fn rows_of(&self, tile: usize) -> Range<usize> {
        tile * self.height..self.count.min((tile + 1) * self.height)
    }

    /// Words of a step of a tile.
    fn step_words(&self) -> usize {
        self.terms * STEP / 2 * self.height
    }

    fn tile_words(&self) -> usize {
        self.steps * self.step_words()
    }

    /// Where the steps of a chunk of a tile lie.
    fn place(&self, tile: usize, chunk: usize) -> Range<usize> {
        let first = chunk * CHUNK_STEPS;
        let steps = CHUNK_STEPS.min(self.steps - first);
        let start = (first * self.tiles() + steps * tile) * self.step_words();
        start..start + steps * self.step_words()
    }

    /// A chunk of a tile of `R` rows, which must be the height.
    #[inline(always)]
    fn chunk<const R: usize>(&self, tile: usize, chunk: usize) -> &[Step<R>] {
        assert_eq!(R, self.height);
        self.paired[self.place(tile, chunk)].as_chunks::<R>().0.as_chunks::<CHAINS>().0.as_chunks::<QUADS>().0
    }
}

/// Rounds the rows of a tile into their place.
struct Round<'a> {
    x: &'a Source<'a>,
    tile: usize,
    rows: &'a Rows,
    room: &'a mut [f32],
    to: &'a SharedMatrix<'a, u32>,
}

impl Kernel for Round<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { x, tile, rows, room, to } = self;
        for (column, row) in rows.rows_of(tile).enumerate() {
            for (chunk, inputs) in x.row(simd, row, room).chunks(CHUNK_STEPS * STEP).enumerate() {
                let place = rows.place(tile, chunk);
                // SAFETY: a tile's places are its own, and each tile is one task's, which holds one such slice at a time.
                let to = unsafe { to.slice_mut(place.start, place.len()) };
                for (to, inputs) in to.chunks_exact_mut(rows.step_words()).zip(inputs.chunks(STEP)) {
                    put_step(simd, inputs, rows.height, &mut to[column..]);
                }
            }
        }
    }
}

/// Writes all terms of a row's step, or of what there is of one, among those of `height` rows.
#[inline(always)]
fn put_step<S: Simd>(simd: S, inputs: &[f32], height: usize, to: &mut [u32]) {
    let mut filled = [0.0; STEP];
    let step = inputs.try_into().unwrap_or_else(|_| {
        filled[..inputs.len()].copy_from_slice(inputs);
        &filled
    });
    for (half, x) in step.as_chunks::<LANES>().0.iter().enumerate() {
        let mut x = simd.load(x);
        for to in to.chunks_mut(STEP / 2 * height) {
            let rounded = round(simd, x);
            let pairs = simd.to_integers(simd.pairs_of_fours(rounded));
            for (four, pairs) in pairs.as_chunks::<FOUR>().0.iter().enumerate() {
                let at = (half * LANES / FOUR + four) * CHAINS * height;
                to[at] = pairs[0] as u32;
                to[at + height] = pairs[1] as u32;
            }
            x = simd.sub(x, rounded);
        }
    }
}

/// The nearest bfloat16, or what is no number.
#[inline(always)]
fn round<S: Simd>(simd: S, x: S::F) -> S::F {
    // Rounding makes infinity, or a zero, of some that are no numbers. Those less themselves are quiet ones, whose high half is
    // none either; all else less itself, once it is finite, is nothing.
    let finite = simd.min(simd.splat(f32::MAX), simd.max(simd.splat(f32::MIN), x));
    let most = simd.add(simd.splat(f32::INFINITY), simd.sub(finite, finite));
    let rounded = simd.min(simd.round_bf16(x), most);
    simd.as_floats(simd.and(simd.as_integers(rounded), -0x1_0000))
}

/// Writes `x Wᵀ + bias` of some groups of panels.
pub(super) fn linear(bf16: Bf16, x: &Rows, weight: &Packed, groups: Range<usize>, out: &Outputs<'_>) {
    with_float!(weight.format, F => {
        bf16.run(Task::<F> { x, panels: weight.panels::<F>(), groups, out });
    });
}

struct Task<'a, F: Float> {
    x: &'a Rows,
    panels: Panels<'a, F>,
    groups: Range<usize>,
    out: &'a Outputs<'a>,
}

impl<F: Float> Kernel for Task<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        match self.x.height {
            1 => self.blocks::<S, 1>(simd),
            TILE_ROWS => self.blocks::<S, TILE_ROWS>(simd),
            height => unreachable!("a tile of {height} rows"),
        }
    }
}

impl<F: Float> Task<'_, F> {
    /// All rows, in blocks of tiles of `R`.
    #[inline(always)]
    fn blocks<S: Simd, const R: usize>(&self, simd: S) {
        let count = self.x.tiles();
        let fit = ROW_BLOCK_BYTES / (self.x.tile_words() * size_of::<u32>()).max(1);
        // Blocks of about the same size.
        let block = count.div_ceil(count.div_ceil(fit.clamp(1, ROW_BLOCK / R)));
        let mut kept = SUMS.take();
        // `[pair][tile]`.
        kept.resize(kept.len().max(WRITTEN * block * PAIR * R), Lanes([0.0; LANES]));
        let sums: &mut [[f32; LANES]] = bytemuck::cast_slice_mut(&mut kept);
        let sums: &mut [Sums<R>] = sums.as_chunks_mut::<R>().0.as_chunks_mut().0;
        let mut weights = Chunk([[[[[[0; 4]; LANES]; PAIR]; CHAINS]; QUADS]; CHUNK_STEPS]);
        let pairs = self.groups.start * PANEL_GROUP / PAIR..self.groups.end * PANEL_GROUP / PAIR;
        for first in (0..count).step_by(block) {
            let tiles = first..count.min(first + block);
            for begin in pairs.clone().step_by(WRITTEN) {
                let some = begin..pairs.end.min(begin + WRITTEN);
                self.some(simd, some, tiles.clone(), &mut weights, sums);
            }
        }
        SUMS.set(kept);
    }

    /// Some tiles of rows over some pairs of panels, which are written together: each tile when it has its last sums, to lines
    /// that were asked for before.
    #[inline(always)]
    fn some<S: Simd, const R: usize>(
        &self,
        simd: S,
        some: Range<usize>,
        tiles: Range<usize>,
        weights: &mut Chunk,
        sums: &mut [Sums<R>],
    ) {
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
            let steps = self.panels.pair(some.start + pair).steps;
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
fn add_chunk<S: Simd, const R: usize>(
    simd: S,
    weights: &[Weights],
    x: &[Step<R>],
    terms: usize,
    ahead: &mut Ahead,
    (has_sums, sums): (bool, &mut Sums<R>),
) {
    let mut now = [[simd.zero(); R]; PAIR];
    if has_sums {
        for p in 0..PAIR {
            for r in 0..R {
                now[p][r] = simd.load(&sums[p][r]);
            }
        }
    }
    // One loop over steps and terms: in two the compiler loads a step's weights before the inner one, for which there is no room.
    for (index, x) in x.iter().enumerate() {
        let weights = &weights[index / terms];
        ahead.ask(simd);
        let mut chains = [[[simd.zero(); R]; PAIR]; CHAINS];
        for four in 0..QUADS {
            for chain in 0..CHAINS {
                let [first, second] = &weights[four][chain];
                let (first, second) = (simd.load_bytes(first), simd.load_bytes(second));
                for r in 0..R {
                    let x = x[four][chain][r];
                    chains[chain][0][r] = simd.dot_pairs(chains[chain][0][r], first, x);
                    chains[chain][1][r] = simd.dot_pairs(chains[chain][1][r], second, x);
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
