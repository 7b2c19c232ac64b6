//! Products of bytes of a few rows with vectors.
//!
//! A pass takes a few rows over a pair of panels from the first input to the last, sums staying in registers: one stream, each of
//! whose lines is touched for the first time behind the one before it. Processors fetch ahead of that by themselves, and give up
//! where it is not so.

use std::{
    ops::Range,
    sync::atomic::{Ordering, compiler_fence},
};

use super::{
    super::{
        ahead::Ahead,
        outputs::Outputs,
        packed::{PAIR, PANEL_GROUP, Panels, Superblock as Block},
        panel::{QUADS, Quantized, STEP, SUPER_STEPS},
    },
    inputs::{Line, PART, PARTS, Rows, Superblock},
};
use crate::kernels::simd::{
    LANES, Level, Simd,
    integers::{IntegerKernel, Integers},
};

/// Heights that passes are compiled for where many sums stay in registers, and elsewhere.
const HEIGHTS: [&[usize]; 2] = [&[1, 2, 4, 8], &[1, 4]];
/// Most rows that passes take.
pub(super) const MOST_ROWS: usize = 4;
/// Sums in registers that are many.
pub(super) const MANY_SUMS: usize = 24;

/// Rows a tile, if there are so many.
pub(super) fn height(level: Level, rows: usize) -> usize {
    let heights = HEIGHTS[usize::from(level.sums() < MANY_SUMS)];
    heights.iter().copied().find(|&height| height >= rows).unwrap_or(heights[heights.len() - 1])
}

/// Some groups of panels, all rows: one tile of at most [`MOST_ROWS`].
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
            1 if const { D::S::SUMS >= MANY_SUMS } => self.passes::<D, 1>(integers),
            2 if const { D::S::SUMS >= MANY_SUMS } => self.passes::<D, 2>(integers),
            4 if const { D::S::SUMS >= MANY_SUMS } => self.passes::<D, 4>(integers),
            1 if const { D::S::SUMS < MANY_SUMS } => self.passes::<D, 1>(integers),
            4 if const { D::S::SUMS < MANY_SUMS } => self.passes::<D, 4>(integers),
            height => unreachable!("a tile of {height} rows"),
        }
    }
}

impl<F: Quantized> Task<'_, F> {
    /// The tile of `R` rows, a pair of panels after the other.
    #[inline(always)]
    fn passes<D: Integers, const R: usize>(&self, integers: D) {
        for pair in self.groups.start * PANEL_GROUP / PAIR..self.groups.end * PANEL_GROUP / PAIR {
            self.pass::<D, R>(integers, pair);
        }
    }

    #[inline(always)]
    #[expect(clippy::needless_range_loop, reason = "iterators over arrays of vectors end up in memory")]
    fn pass<D: Integers, const R: usize>(&self, integers: D, pair: usize) {
        let simd = integers.simd();
        let mut sums = [[simd.zero(); R]; PAIR];
        for (index, block) in self.panels.pair(pair).superblocks().enumerate() {
            let x = self.rows.superblock::<R>(0, index);
            let mut products = [[simd.splat_i32(0); R]; PAIR];
            let mut ahead = Ahead::of_stream(block.coming(), PAIR * block.steps.len());
            for step in block.steps.iter().enumerate() {
                for panel in 0..PAIR {
                    ahead.ask(simd);
                    // Of two panels the compiler makes one loop, which goes to and fro between them.
                    compiler_fence(Ordering::SeqCst);
                    add_step::<D, F, R>(integers, step, panel, x, &mut products[panel]);
                }
            }
            for panel in 0..PAIR {
                add_superblock::<D, F, R>(integers, block, panel, x, &products[panel], &mut sums[panel]);
            }
        }
        for (r, row) in self.rows.rows_of(0).enumerate() {
            for panel in 0..PAIR {
                let sums = simd.to_array(sums[panel][r]);
                self.out.store(simd, row, pair * PAIR + panel, &sums);
            }
        }
    }
}

/// A step's weights as products take them.
#[inline(always)]
#[expect(clippy::needless_range_loop, reason = "iterators over arrays of vectors end up in memory")]
pub(super) fn unpacked<D: Integers, F: Quantized>(
    integers: D,
    step: &F::Step,
    panel: usize,
) -> [<D::S as Simd>::I; QUADS] {
    let simd = integers.simd();
    let mut weights = F::unsigned(simd, step, panel);
    if const { !D::UNSIGNED && F::OFFSET > 0 } {
        for k in 0..QUADS {
            weights[k] = simd.sub_bytes(weights[k], F::OFFSET);
        }
    }
    weights
}

/// A panel's factors of the minima of a pair of steps, as the steps' sums lie.
#[inline(always)]
pub(super) fn min_factors<S: Simd, F: Quantized>(simd: S, [first, second]: &[F::Step; 2], panel: usize) -> S::I {
    let [first, second] = [first, second].map(|step| F::min_factors(simd, step, panel));
    simd.or(first, simd.shl::<16>(second))
}

/// Adds the products of a step of some rows with a panel, times their factors.
#[inline(always)]
#[expect(clippy::needless_range_loop, reason = "iterators over arrays of vectors end up in memory")]
fn add_step<D: Integers, F: Quantized, const R: usize>(
    integers: D,
    (index, step): (usize, &F::Step),
    panel: usize,
    x: Superblock<'_, R>,
    products: &mut [<D::S as Simd>::I; R],
) {
    let simd = integers.simd();
    let weights = unpacked::<D, F>(integers, step, panel);
    let (quads, groups) = const { (F::GROUP / 4, STEP / F::GROUP) };
    let bytes: &[Line; R] = &x.bytes[index / (SUPER_STEPS / PARTS)];
    let first = index % (SUPER_STEPS / PARTS) * QUADS;
    for group in 0..groups {
        let factors = F::factors(simd, step, panel, group);
        for r in 0..R {
            let begin = if const { D::UNSIGNED && F::OFFSET > 0 } { x.sums[index * groups + group][r] } else { 0 };
            let mut dot = simd.splat_i32(begin);
            for k in group * quads..(group + 1) * quads {
                dot = integers.dot(dot, weights[k], bytemuck::cast_ref::<_, [[i8; 4]; LANES]>(&bytes[r])[first + k]);
            }
            products[r] = simd.add_integers(products[r], simd.mul_integers(dot, factors));
        }
    }
}

/// Adds a superblock's products of some rows with a panel to the sums.
#[inline(always)]
#[expect(clippy::needless_range_loop, reason = "iterators over arrays of vectors end up in memory")]
fn add_superblock<D: Integers, F: Quantized, const R: usize>(
    integers: D,
    Block { head, steps }: Block<'_, F>,
    panel: usize,
    x: Superblock<'_, R>,
    products: &[<D::S as Simd>::I; R],
    sums: &mut [<D::S as Simd>::F; R],
) {
    let simd = integers.simd();
    let units = F::units(simd, head, panel);
    let mut minima = [simd.splat_i32(0); R];
    if const { F::HAS_MINS } {
        for (pair, steps) in steps.as_chunks().0.iter().enumerate() {
            let factors = min_factors::<D::S, F>(simd, steps, panel);
            for r in 0..R {
                minima[r] = integers.dot_words(minima[r], factors, bytemuck::cast(x.sums[pair][r]));
            }
        }
    }
    let minus = simd.sub(simd.zero(), F::min_units(simd, head, panel));
    for r in 0..R {
        let product = scaled::<D::S, F>(simd, (products[r], units), (minima[r], minus));
        sums[r] = simd.fma(product, simd.splat(x.scales[r]), sums[r]);
    }
}

/// Products times their units, less minima times theirs.
#[inline(always)]
pub(super) fn scaled<S: Simd, F: Quantized>(
    simd: S,
    (products, units): (S::I, S::F),
    (minima, minus_units): (S::I, S::F),
) -> S::F {
    let products = simd.mul(simd.to_f32(products), units);
    if const { F::HAS_MINS } { simd.fma(simd.to_f32(minima), minus_units, products) } else { products }
}

const _: () = assert!(STEP == 2 * LANES && PART == 4 * LANES);
