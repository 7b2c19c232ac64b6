//! Rows of inputs as products of pairs take them.

use std::{cell::Cell, ops::Range};

use super::{
    super::{
        Terms,
        format::WeightFormat,
        inputs::Source,
        panel::{QUADS, STEP},
    },
    CHAINS, Step,
};
use crate::kernels::{
    cpu_tensor::{SharedMatrix, for_each_row_range},
    simd::{Kernel, LANES, Level, Simd},
};

/// Steps that lie together, whose paired weights of two panels are half of the first-level cache.
pub(super) const CHUNK_STEPS: usize = 8;
/// Rows of a tile that is one of many: the chains of two panels stay in registers.
pub(super) const TILE_ROWS: usize = 4;
/// Rows of a tile that is one of few, or all there is: the chains of one panel stay in registers.
pub(super) const FULL_TILE: usize = 8;
/// Most full tiles over which weights are taken as they come.
pub(super) const FEW_TILES: usize = 4;
/// Neighbouring inputs of which a pair of each chain is made.
const FOUR: usize = 4;

thread_local! {
    /// What the last rows were kept in, for the next.
    static PAIRED: Cell<Vec<u32>> = const { Cell::new(Vec::new()) };
}

/// Rows of a tile: few enough rows are one or a few, as far as the chains of a panel stay in registers.
fn height(count: usize, terms: Terms, format: WeightFormat) -> usize {
    // Each tile pairs the weights anew, which is little where they are not widened first.
    let most = if format == WeightFormat::BF16 { FEW_TILES * FULL_TILE } else { FULL_TILE };
    match (count, terms) {
        (1, _) => 1,
        (2, _) => 2,
        (5.., Terms::One) if count <= most => FULL_TILE,
        _ => TILE_ROWS,
    }
}

/// Rows as pairs, `[chunk of steps][tile][step][term]` times [`Step`]s of a tile's height: inputs are filled up with zeros to
/// whole steps, the last tile with whatever was there before.
pub(in super::super) struct Rows {
    paired: Vec<u32>,
    count: usize,
    /// Of a tile.
    height: usize,
    pub(super) steps: usize,
    pub(super) terms: usize,
}

impl Drop for Rows {
    fn drop(&mut self) {
        PAIRED.set(std::mem::take(&mut self.paired));
    }
}

impl Rows {
    pub(in super::super) fn new(level: Level, x: &Source<'_>, terms: Terms, format: WeightFormat) -> Self {
        let height = height(x.count(), terms, format);
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

    /// Rows of a tile, where it is the only one or one of a few that are taken over weights as they come.
    pub(super) fn few(&self) -> Option<usize> {
        (self.tiles() == 1 || self.height == FULL_TILE).then_some(self.height)
    }

    pub(super) fn tiles(&self) -> usize {
        self.count.div_ceil(self.height)
    }

    pub(super) fn rows_of(&self, tile: usize) -> Range<usize> {
        tile * self.height..self.count.min((tile + 1) * self.height)
    }

    /// Words of a step of a tile.
    fn step_words(&self) -> usize {
        self.terms * STEP / 2 * self.height
    }

    pub(super) fn tile_words(&self) -> usize {
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
    pub(super) fn chunk<const R: usize>(&self, tile: usize, chunk: usize) -> &[Step<R>] {
        assert_eq!(R, self.height);
        steps(&self.paired[self.place(tile, chunk)])
    }
}

/// Words of whole steps of `R` rows as such.
#[inline(always)]
fn steps<const R: usize>(words: &[u32]) -> &[Step<R>] {
    words.as_chunks::<R>().0.as_chunks::<CHAINS>().0.as_chunks::<QUADS>().0
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
