//! Products of bytes of many rows with vectors.
//!
//! A superblock of a pair of panels is unpacked once, bytes and factors, into the first-level cache, and all tiles of rows are
//! taken over it, with the sums put aside in between; meanwhile the next superblock's weights are asked for. So most of what is
//! left to do are the products themselves.

use std::{cell::Cell, ops::Range};

use super::{
    super::{
        outputs::{Outputs, WRITTEN},
        packed::{PAIR, PANEL_GROUP, Panels},
        panel::{QUADS, Quad, Quantized, STEP, SUPER_STEPS, Scales},
    },
    ahead::Ahead,
    inputs::{Line, PART, PARTS, Rows, Superblock},
    vector::{MANY_SUMS, min_factors, scaled, unpacked},
};
use crate::kernels::simd::{
    LANES, Simd,
    integers::{IntegerKernel, Integers},
};

/// Bytes of rows that stay in the second-level cache while the weights pass by.
const ROW_BLOCK_BYTES: usize = 1024 * 1024;
/// Most rows whose sums are put aside.
const ROW_BLOCK: usize = 512;
/// Most groups of a step.
const GROUPS: usize = 2;

thread_local! {
    /// Where the last sums were put aside, for the next.
    static SUMS: Cell<Vec<Lanes>> = const { Cell::new(Vec::new()) };
}

/// A row's sums of a panel.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
struct Lanes([f32; LANES]);

/// Some groups of panels, all rows.
pub(super) struct Task<'a, F: Quantized> {
    pub(super) rows: &'a Rows,
    pub(super) panels: Panels<'a, F>,
    pub(super) groups: Range<usize>,
    pub(super) out: &'a Outputs<'a>,
}

/// A superblock of a panel as it is multiplied.
#[repr(C, align(64))]
struct Chunk {
    weights: [[Quad; QUADS]; SUPER_STEPS],
    factors: [[Quad; GROUPS]; SUPER_STEPS],
    min_factors: [Quad; SUPER_STEPS / 2],
    units: [f32; LANES],
    minus_min_units: [f32; LANES],
}

impl Chunk {
    const ZERO_QUAD: Quad = [[0; 4]; LANES];
    const ZERO: Self = Self {
        weights: [[Self::ZERO_QUAD; QUADS]; SUPER_STEPS],
        factors: [[Self::ZERO_QUAD; GROUPS]; SUPER_STEPS],
        min_factors: [Self::ZERO_QUAD; SUPER_STEPS / 2],
        units: [0.0; LANES],
        minus_min_units: [0.0; LANES],
    };

    /// Takes a superblock of a panel. Behind its last step stays what was there, which nobody reads.
    #[inline(always)]
    #[expect(clippy::needless_range_loop, reason = "iterators over arrays of vectors end up in memory")]
    fn fill<D: Integers, F: Quantized>(&mut self, integers: D, head: &F::Head, steps: &[F::Step], panel: usize) {
        let (simd, scales) = (integers.simd(), &head[panel]);
        simd.store(scales.units(simd), &mut self.units);
        for (step, from) in steps.iter().enumerate() {
            let weights = unpacked::<D, F>(integers, from, panel);
            for k in 0..QUADS {
                simd.store_bytes(weights[k], &mut self.weights[step][k]);
            }
            for group in 0..const { STEP / F::GROUP } {
                simd.store_bytes(scales.factors(simd, step, group), &mut self.factors[step][group]);
            }
        }
        if const { F::HAS_MINS } {
            simd.store(simd.sub(simd.zero(), scales.min_units(simd)), &mut self.minus_min_units);
            for (pair, factors) in self.min_factors.iter_mut().enumerate() {
                simd.store_bytes(min_factors(simd, scales, pair), factors);
            }
        }
    }
}

impl<F: Quantized> IntegerKernel for Task<'_, F> {
    #[inline(always)]
    fn run<D: Integers>(self, integers: D) {
        // A height that the instruction set does not have is not compiled for it.
        match self.rows.height {
            8 if const { D::S::SUMS >= MANY_SUMS } => self.blocks::<D, 8>(integers),
            4 if const { D::S::SUMS < MANY_SUMS } => self.blocks::<D, 4>(integers),
            height => unreachable!("many tiles of {height} rows"),
        }
    }
}

impl<F: Quantized> Task<'_, F> {
    /// All rows, in blocks of tiles of `R`.
    #[inline(always)]
    fn blocks<D: Integers, const R: usize>(&self, integers: D) {
        let simd = integers.simd();
        let tile_bytes = self.rows.superblocks() * R * PARTS * PART;
        let count = self.rows.tiles();
        let most = (ROW_BLOCK_BYTES / tile_bytes.max(1)).clamp(1, ROW_BLOCK / R);
        // Blocks of about the same size.
        let block = count.div_ceil(count.div_ceil(most).max(1)).max(1);
        let mut kept = SUMS.take();
        // `[tile][panel][row]`.
        let len = count.min(block) * WRITTEN * PAIR * R;
        kept.resize(kept.len().max(len), Lanes([0.0; LANES]));
        let sums: &mut [[[f32; LANES]; R]] = bytemuck::cast_slice_mut::<_, [f32; LANES]>(&mut kept).as_chunks_mut().0;
        let mut chunks = [Chunk::ZERO; PAIR];
        let pairs = self.groups.start * PANEL_GROUP / PAIR..self.groups.end * PANEL_GROUP / PAIR;
        for first in (0..count).step_by(block) {
            let tiles = first..count.min(first + block);
            for begin in pairs.clone().step_by(WRITTEN) {
                let some = begin..pairs.end.min(begin + WRITTEN);
                for (which, pair) in some.clone().enumerate() {
                    self.pair::<D, R>(integers, pair, tiles.clone(), &mut chunks, (sums, which));
                }
                for (tile, sums) in tiles.clone().zip(sums.chunks_exact(WRITTEN * PAIR)) {
                    let rows = self.rows.rows_of(tile);
                    self.out.store_panels(simd, rows, begin * PAIR, some.len() * PAIR, |panel| &sums[panel]);
                }
            }
        }
        SUMS.set(kept);
    }

    /// Some tiles of rows over a pair of panels, `which` of those that are written together.
    #[inline(always)]
    fn pair<D: Integers, const R: usize>(
        &self,
        integers: D,
        pair: usize,
        tiles: Range<usize>,
        chunks: &mut [Chunk; PAIR],
        (sums, which): (&mut [[[f32; LANES]; R]], usize),
    ) {
        let panels = self.panels.pair(pair);
        for (index, (head, steps)) in panels.heads.iter().zip(panels.steps.chunks(SUPER_STEPS)).enumerate() {
            for (panel, chunk) in chunks.iter_mut().enumerate() {
                chunk.fill::<D, F>(integers, head, steps, panel);
            }
            let mut ahead = Ahead::new(steps.as_ptr_range().end.cast(), size_of_val(steps), tiles.len());
            for (tile, sums) in tiles.clone().zip(sums.chunks_exact_mut(WRITTEN * PAIR)) {
                ahead.ask(integers.simd());
                let x = self.rows.superblock::<R>(tile, index);
                for (chunk, sums) in chunks.iter().zip(&mut sums[which * PAIR..]) {
                    if index == 0 {
                        *sums = [[0.0; LANES]; R];
                    }
                    add_superblock::<D, F, R>(integers, chunk, steps.len(), x, sums);
                }
            }
        }
    }
}

/// Adds the products of some steps of a superblock of some rows with a panel to the sums.
#[inline(always)]
#[expect(clippy::needless_range_loop, reason = "iterators over arrays of vectors end up in memory")]
fn add_superblock<D: Integers, F: Quantized, const R: usize>(
    integers: D,
    chunk: &Chunk,
    steps: usize,
    x: Superblock<'_, R>,
    sums: &mut [[f32; LANES]; R],
) {
    let simd = integers.simd();
    let (quads, groups) = const { (F::GROUP / 4, STEP / F::GROUP) };
    let mut products = [simd.splat_i32(0); R];
    for step in 0..steps {
        let bytes: &[Line; R] = &x.bytes[step / (SUPER_STEPS / PARTS)];
        let first = step % (SUPER_STEPS / PARTS) * QUADS;
        for group in 0..groups {
            let mut dots = [simd.splat_i32(0); R];
            if const { D::UNSIGNED && F::OFFSET > 0 } {
                for r in 0..R {
                    dots[r] = simd.splat_i32(x.sums[step * groups + group][r]);
                }
            }
            // The rows' sums do not wait for each other.
            for k in group * quads..(group + 1) * quads {
                let weights = simd.load_bytes(&chunk.weights[step][k]);
                for r in 0..R {
                    let x = bytemuck::cast_ref::<_, [[i8; 4]; LANES]>(&bytes[r])[first + k];
                    dots[r] = integers.dot(dots[r], weights, x);
                }
            }
            let factors = simd.load_bytes(&chunk.factors[step][group]);
            for r in 0..R {
                products[r] = simd.add_integers(products[r], simd.mul_integers(dots[r], factors));
            }
        }
    }
    let mut minima = [simd.splat_i32(0); R];
    if const { F::HAS_MINS } {
        for pair in 0..SUPER_STEPS / 2 {
            let factors = simd.load_bytes(&chunk.min_factors[pair]);
            for r in 0..R {
                minima[r] = simd.dot_words(minima[r], factors, bytemuck::cast(x.sums[pair][r]));
            }
        }
    }
    let (units, minus) = (simd.load(&chunk.units), simd.load(&chunk.minus_min_units));
    for r in 0..R {
        let product = scaled::<D::S, F>(simd, (products[r], units), (minima[r], minus));
        simd.store(simd.fma(product, simd.splat(x.scales[r]), simd.load(&sums[r])), &mut sums[r]);
    }
}
