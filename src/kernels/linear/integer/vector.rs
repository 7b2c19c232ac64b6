//! Products of bytes with vectors.
//!
//! A pass takes a few rows over some pairs of panels from the first input to the last, sums staying in registers. One row
//! reads four pairs in turn, because memory gives most to several streams.

use std::ops::Range;

use super::{
    super::{
        outputs::Outputs,
        packed::{PAIR, PANEL_GROUP, Panels},
        panel::{QUADS, Quantized, STEP},
    },
    MAGIC,
    inputs::{Rows, Step},
};
use crate::kernels::simd::{
    LANES, Level, Simd,
    integers::{IntegerKernel, Integers},
};

/// Heights that passes are compiled for where many sums stay in registers, and elsewhere.
const HEIGHTS: [&[usize]; 2] = [&[1, 2, 4, 8], &[1, 4]];
/// Sums in registers that are many.
const MANY_SUMS: usize = 24;
/// Bytes of rows that stay in the second-level cache while the weights pass by.
const ROW_BLOCK_BYTES: usize = 1024 * 1024;
/// How far ahead of a pass its weights are asked for.
const PREFETCH_BYTES: usize = 3072;
/// Bytes of a cache line.
const LINE: usize = 64;

/// Rows a tile, if there are so many.
pub(super) fn height(level: Level, rows: usize) -> usize {
    let heights = HEIGHTS[usize::from(level.sums() < MANY_SUMS)];
    heights.iter().copied().find(|&height| height >= rows).unwrap_or(heights[heights.len() - 1])
}

/// Some groups of panels, all rows.
pub(super) struct Task<'a, F: Quantized> {
    pub(super) rows: &'a Rows,
    pub(super) panels: Panels<'a, F>,
    pub(super) groups: Range<usize>,
    pub(super) out: &'a Outputs<'a>,
}

impl<F: Quantized> IntegerKernel for Task<'_, F> {
    #[inline(always)]
    fn run<D: Integers>(self, integers: D) {
        // A height that the instruction set does not have is not compiled for it.
        match self.rows.height {
            1 if const { D::S::SUMS >= MANY_SUMS } => self.passes::<D, 1, 4>(integers),
            2 if const { D::S::SUMS >= MANY_SUMS } => self.passes::<D, 2, 2>(integers),
            4 if const { D::S::SUMS >= MANY_SUMS } => self.passes::<D, 4, 2>(integers),
            8 if const { D::S::SUMS >= MANY_SUMS } => self.passes::<D, 8, 1>(integers),
            1 if const { D::S::SUMS < MANY_SUMS } => self.passes::<D, 1, 1>(integers),
            4 if const { D::S::SUMS < MANY_SUMS } => self.passes::<D, 4, 1>(integers),
            height => unreachable!("a tile of {height} rows"),
        }
    }
}

impl<F: Quantized> Task<'_, F> {
    /// Tiles of `R` rows, `P` pairs of panels at a time.
    #[inline(always)]
    fn passes<D: Integers, const R: usize, const P: usize>(&self, integers: D) {
        let pairs = self.groups.start * PANEL_GROUP / PAIR..self.groups.end * PANEL_GROUP / PAIR;
        let tile_bytes = self.rows.steps * self.rows.terms * R * size_of::<Step>();
        let block = (ROW_BLOCK_BYTES / tile_bytes.max(1)).max(1);
        for first in (0..self.rows.tiles()).step_by(block) {
            let tiles = first..self.rows.tiles().min(first + block);
            let mut pair = pairs.start;
            while pair < pairs.end {
                let many = pair + P <= pairs.end;
                for tile in tiles.clone() {
                    if many {
                        self.pass::<D, R, P>(integers, pair, tile);
                    } else {
                        self.pass::<D, R, 1>(integers, pair, tile);
                    }
                }
                pair += if many { P } else { 1 };
            }
        }
    }

    #[inline(always)]
    #[expect(clippy::needless_range_loop, reason = "iterators over arrays of vectors end up in memory")]
    fn pass<D: Integers, const R: usize, const P: usize>(&self, integers: D, first: usize, tile: usize) {
        let simd = integers.simd();
        let mut sums = [[[simd.zero(); R]; PAIR]; P];
        let terms = self.rows.terms;
        let x = self.rows.tile::<R>(tile);
        let pairs: [&[F::Block]; P] = std::array::from_fn(|p| self.panels.pair(first + p));
        for (index, x) in x.chunks(F::STEPS * terms).enumerate() {
            for (step, x) in x.chunks_exact(terms).enumerate() {
                for p in 0..P {
                    self.prefetch(simd, pairs[p], index, step, P);
                    for panel in 0..PAIR {
                        add_step::<D, F, R>(integers, &pairs[p][index], panel, step, x, &mut sums[p][panel]);
                    }
                }
            }
        }
        for (r, row) in self.rows.rows_of(tile).enumerate() {
            for p in 0..P {
                for panel in 0..PAIR {
                    let sums = simd.to_array(sums[p][panel][r]);
                    self.out.store(simd, row, (first + p) * PAIR + panel, &sums);
                }
            }
        }
    }

    /// Asks for a step's share of what comes some way behind a block: in this pair, or in the one that follows `pairs` later.
    #[inline(always)]
    fn prefetch<S: Simd>(&self, simd: S, pair: &[F::Block], index: usize, step: usize, pairs: usize) {
        let block_bytes = size_of::<F::Block>();
        let share = block_bytes.div_ceil(F::STEPS).next_multiple_of(LINE);
        let at = index * block_bytes + step * share + PREFETCH_BYTES;
        let past = if at >= size_of_val(pair) { (pairs - 1) * size_of_val(pair) } else { 0 };
        let from = pair.as_ptr().cast::<u8>().wrapping_add(at + past);
        for line in 0..share / LINE {
            simd.prefetch_far_line(from.wrapping_add(line * LINE));
        }
    }
}

/// Adds the products of a step, `x` `[term][row]`, with a panel.
#[inline(always)]
#[expect(clippy::needless_range_loop, reason = "iterators over arrays of vectors end up in memory")]
fn add_step<D: Integers, F: Quantized, const R: usize>(
    integers: D,
    block: &F::Block,
    panel: usize,
    step: usize,
    x: &[[Step; R]],
    sums: &mut [<D::S as Simd>::F; R],
) {
    let simd = integers.simd();
    let mut weights = F::unsigned(simd, block, panel, step);
    if const { !D::UNSIGNED && F::OFFSET > 0 } {
        for k in 0..QUADS {
            weights[k] = simd.sub_bytes(weights[k], F::OFFSET);
        }
    }
    let quads = const { F::GROUP / 4 };
    for x in x {
        for group in 0..const { STEP / F::GROUP } {
            let scales = F::scales(simd, block, panel, step, group);
            let minus_magic = simd.mul(scales, simd.splat(-MAGIC));
            for r in 0..R {
                let begin = if const { D::UNSIGNED } { x[r].begins[group] } else { MAGIC.to_bits() as i32 };
                let mut dot = simd.splat_i32(begin);
                for k in group * quads..(group + 1) * quads {
                    dot = integers.dot(dot, weights[k], x[r].quants.as_chunks().0[k]);
                }
                let product = simd.fma(simd.as_floats(dot), scales, minus_magic);
                sums[r] = simd.fma(product, simd.splat(x[r].scale), sums[r]);
            }
        }
        if const { F::HAS_MINS } {
            let mins = F::mins(simd, block, panel, step);
            for r in 0..R {
                sums[r] = simd.fma(mins, simd.splat(x[r].minus_sum), sums[r]);
            }
        }
    }
}

const _: () = assert!(STEP == 2 * LANES);
