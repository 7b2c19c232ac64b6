//! Linear with vector instructions.
//!
//! A pass takes a tile of up to 24 rows over a panel, or fewer rows over several panels: weights are widened in registers
//! and used at once, the sums stay in registers. Where a tile's inputs do not fit the first-level cache they are taken in
//! chunks, each over all panels of a group, with the sums put aside in between. One row reads four panels together,
//! because memory gives most to several streams. Whatever the tile and the chunk, each output is summed in the same order.

use std::{marker::PhantomData, ops::Range};

use super::{
    Terms, arithmetic,
    inputs::Source,
    outputs::Outputs,
    packed::{PAIR, PANEL_GROUP, Packed, Panels},
    panel::{Float, STEP, with_float},
};
use crate::kernels::{
    cpu_tensor::{SharedMatrix, for_each_row_range},
    simd::{Kernel, LANES, Level, Simd},
};

/// Bytes of `x` that stay in the second-level cache while the weights pass by.
const ROW_BLOCK_BYTES: usize = 768 * 1024;
/// Bytes of a tile's inputs that stay in the first-level cache, with the weights and sums that pass by.
const CHUNK_BYTES: usize = 24 * 1024;
/// Steps a chunk is a multiple of.
const CHUNK_STEPS: usize = 8;
/// Heights that tiles are compiled for, as far as the sums stay in registers.
const HEIGHTS: [usize; 6] = [1, 2, 4, 8, 16, 24];
/// Rows of the tallest tile.
const MAX_HEIGHT: usize = HEIGHTS[HEIGHTS.len() - 1];
/// How far ahead of a pass its weights are asked for.
const PREFETCH_BYTES: usize = 2560;

/// Writes `x Wᵀ + bias` of some groups of panels.
pub(super) fn linear(level: Level, tiles: &Tiles, weight: &Packed, groups: Range<usize>, out: &Outputs<'_>) {
    with_float!(weight.format, F => {
        level.run(Task::<F> { tiles, panels: weight.panels::<F>(), groups, out });
    });
}

/// The rows of `x` in tiles, each `[step][term][input of the step][row]`, so that a pass reads one stream. Inputs are
/// rounded as the format's arithmetic has it, and filled up with zeros to whole steps, the last tile to its height.
pub(super) struct Tiles {
    data: Vec<f32>,
    rows: usize,
    /// With the zeros, and all terms.
    inputs: usize,
    terms: usize,
    /// Rows of all tiles but the last, and of the last one.
    height: usize,
    last_height: usize,
}

impl Tiles {
    pub(super) fn new(level: Level, x: &Source<'_>, weight: &Packed, terms: Terms) -> Self {
        with_float!(weight.format, F => Self::rounded::<F>(level, x, terms.count()))
    }

    fn rounded<F: Float>(level: Level, x: &Source<'_>, terms: usize) -> Self {
        let (rows, inputs) = (x.count(), x.width().next_multiple_of(STEP) * terms);
        let heights =
            || HEIGHTS.into_iter().filter(|&height| height <= (level.sums() / arithmetic::chains::<F>()).max(1));
        let height = heights().max().unwrap_or(1);
        let rest = (rows - 1) % height + 1;
        let last_height = heights().find(|&height| height >= rest).unwrap_or(height);
        let mut tiles = Self { data: Vec::new(), rows, inputs, terms, height, last_height };
        let mut data = vec![0.0; ((tiles.count() - 1) * height + last_height) * inputs];
        let shared = SharedMatrix::new(&mut data);
        for_each_row_range(tiles.count(), inputs * height, |range| {
            for tile in range {
                let (rows, height) = (tiles.rows_of(tile), tiles.height_of(tile));
                // SAFETY: tiles do not overlap, and each is one task's.
                let to = unsafe { shared.slice_mut(rows.start * inputs, height * inputs) };
                x.with_room(|room| level.run(Round::<F> { x, rows, height, terms, room, to, format: PhantomData }));
            }
        });
        tiles.data = data;
        tiles
    }

    fn count(&self) -> usize {
        self.rows.div_ceil(self.height)
    }

    fn height_of(&self, tile: usize) -> usize {
        if tile + 1 == self.count() { self.last_height } else { self.height }
    }

    fn rows_of(&self, tile: usize) -> Range<usize> {
        tile * self.height..self.rows.min((tile + 1) * self.height)
    }

    fn data_of(&self, tile: usize) -> &[f32] {
        &self.data[tile * self.height * self.inputs..][..self.height_of(tile) * self.inputs]
    }
}

/// Rounds some rows into their tile.
struct Round<'a, F> {
    x: &'a Source<'a>,
    rows: Range<usize>,
    height: usize,
    terms: usize,
    room: &'a mut [f32],
    to: &'a mut [f32],
    format: PhantomData<F>,
}

impl<F: Float> Kernel for Round<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { x, rows, height, terms, room, to, .. } = self;
        for (column, row) in rows.enumerate() {
            let steps = x.row(simd, row, room).chunks(STEP);
            for (to, x) in to.chunks_exact_mut(STEP * height * terms).zip(steps) {
                let (rounded, lost) = to.split_at_mut(STEP * height);
                let inputs = rounded[column..].iter_mut().step_by(height).zip(x);
                inputs.for_each(|(to, &x)| *to = arithmetic::round::<F>(x));
                let inputs = lost.iter_mut().skip(column).step_by(height).zip(x);
                inputs.for_each(|(to, &x)| *to = arithmetic::round::<F>(x - arithmetic::round::<F>(x)));
            }
        }
    }
}

/// Some groups of panels, all rows.
struct Task<'a, F: Float> {
    tiles: &'a Tiles,
    panels: Panels<'a, F>,
    groups: Range<usize>,
    out: &'a Outputs<'a>,
}

impl<F: Float> Kernel for Task<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let count = self.tiles.count();
        let tiles_a_block =
            (ROW_BLOCK_BYTES / (size_of::<f32>() * self.tiles.inputs * self.tiles.height).max(1)).max(1);
        for tile in (0..count).step_by(tiles_a_block) {
            let tiles = tile..count.min(tile + tiles_a_block);
            for group in self.groups.clone() {
                self.group(simd, group * PANEL_GROUP, tiles.clone());
            }
        }
    }
}

impl<F: Float> Task<'_, F> {
    /// All tiles over a group of panels; those that are alike pass over a panel one after another.
    #[inline(always)]
    fn group<S: Simd>(&self, simd: S, first: usize, tiles: Range<usize>) {
        let height = self.tiles.height_of(tiles.start);
        let alike = if self.tiles.height_of(tiles.end - 1) == height { tiles.end } else { tiles.end - 1 };
        for tiles in [tiles.start..alike, alike..tiles.end] {
            if tiles.is_empty() {
                continue;
            }
            // As many panels as leave registers for the weights. A height that the instruction set does not have is
            // not compiled for it.
            match self.tiles.height_of(tiles.start) {
                24 if const { Self::sums::<S>() >= 24 } => self.passes::<S, 24, 1>(simd, first, tiles),
                16 if const { Self::sums::<S>() >= 24 } => self.passes::<S, 16, 1>(simd, first, tiles),
                8 if const { Self::sums::<S>() >= 24 } => self.passes::<S, 8, 2>(simd, first, tiles),
                4 if const { Self::sums::<S>() >= 24 } => self.passes::<S, 4, 4>(simd, first, tiles),
                8 if const { Self::sums::<S>() == 12 } => self.passes::<S, 8, 1>(simd, first, tiles),
                4 if const { Self::sums::<S>() == 12 } => self.passes::<S, 4, 2>(simd, first, tiles),
                4 if const { Self::sums::<S>() == 4 } => self.passes::<S, 4, 1>(simd, first, tiles),
                2 if const { Self::sums::<S>() >= 12 } => self.passes::<S, 2, 4>(simd, first, tiles),
                2 if const { Self::sums::<S>() == 4 } => self.passes::<S, 2, 2>(simd, first, tiles),
                2 if const { Self::sums::<S>() == 2 } => self.passes::<S, 2, 1>(simd, first, tiles),
                1 => self.passes::<S, 1, 4>(simd, first, tiles),
                height => unreachable!("a tile of {height} rows"),
            }
        }
    }

    /// Sums of rows times panels that stay in registers.
    const fn sums<S: Simd>() -> usize {
        S::SUMS / arithmetic::chains::<F>()
    }

    #[inline(always)]
    fn passes<S: Simd, const R: usize, const P: usize>(&self, simd: S, first: usize, tiles: Range<usize>) {
        let terms = self.tiles.terms;
        let steps = self.tiles.inputs / (STEP * terms);
        let fits = CHUNK_BYTES / (size_of::<f32>() * STEP * R * terms) / CHUNK_STEPS * CHUNK_STEPS;
        let chunk = if R == 1 { steps.max(1) } else { fits.max(CHUNK_STEPS) };
        for tile in tiles {
            let mut sums = [[[0.0; LANES]; MAX_HEIGHT]; PANEL_GROUP];
            for start in (0..steps).step_by(chunk) {
                let steps = start..steps.min(start + chunk);
                for panel in (0..PANEL_GROUP).step_by(P) {
                    self.pass::<S, R, P>(simd, first + panel, tile, steps.clone(), &mut sums[panel..panel + P]);
                }
            }
            for (r, row) in self.tiles.rows_of(tile).enumerate() {
                for (panel, sums) in sums.iter().enumerate() {
                    self.out.store(simd, row, first + panel, &sums[r]);
                }
            }
        }
    }

    /// `R` rows over `P` panels and some of their steps.
    #[inline(always)]
    fn pass<S: Simd, const R: usize, const P: usize>(
        &self,
        simd: S,
        first: usize,
        tile: usize,
        steps: Range<usize>,
        kept: &mut [[[f32; LANES]; MAX_HEIGHT]],
    ) {
        let ahead = PREFETCH_BYTES.div_ceil(size_of::<F::Step>());
        let mut sums = [[simd.zero(); R]; P];
        if steps.start > 0 {
            for p in 0..P {
                for r in 0..R {
                    sums[p][r] = simd.load(&kept[p][r]);
                }
            }
        }
        let step_len = STEP * R * self.tiles.terms;
        let x = &self.tiles.data_of(tile)[steps.start * step_len..steps.end * step_len];
        for (step, x) in steps.zip(x.chunks_exact(step_len)) {
            for p in 0..P {
                let pair = self.panels.pair((first + p) / PAIR).steps();
                let weights = &pair[step][(first + p) % PAIR];
                // Behind a pair's last step: in the one that a pass takes in the same turn, next time.
                let next = if step + ahead < pair.len() { 0 } else { (P / PAIR).saturating_sub(1) * pair.len() };
                simd.prefetch_far(std::ptr::from_ref(weights).wrapping_add((ahead + next) * PAIR));
                for x in x.chunks_exact(STEP * R) {
                    arithmetic::step::<S, F, R>(simd, weights, x, &mut sums[p]);
                }
            }
        }
        for p in 0..P {
            for r in 0..R {
                simd.store(sums[p][r], &mut kept[p][r]);
            }
        }
    }
}
