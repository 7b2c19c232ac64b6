//! Products of bytes of many rows with vectors.
//!
//! All tiles of rows are taken over a superblock of a pair of panels while it is in the first-level cache, with the sums put
//! aside in between; meanwhile the next superblock's weights are asked for. Where there are more than a few tiles the superblock
//! is unpacked once before, bytes and factors, so that most of what is left to do are the products themselves.

use std::{cell::Cell, ops::Range};

use super::{
    super::{
        ahead::Ahead,
        outputs::{Outputs, WRITTEN},
        packed::{PAIR, PANEL_GROUP, Panels, Superblock as Block},
        panel::{QUADS, Quad, Quantized, STEP, SUPER_STEPS},
    },
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
/// Tiles for which weights are unpacked anew: to keep them unpacked pays for more.
const FEW_TILES: usize = 6;

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

/// A superblock of a panel as products take it.
trait Weights {
    /// Whether a step's groups are taken in turns of their own, as steps are, so that a turn's sums stay in registers. Where
    /// steps are unpacked first this is done for all groups at once.
    const GROUP_BY_GROUP: bool;
    /// The fours of inputs of a group of a step that has so many; what is behind them has no meaning.
    fn quads<D: Integers>(&self, integers: D, step: usize, group: usize, groups: usize) -> [<D::S as Simd>::I; QUADS];
    /// The factors of a group of a step.
    fn factors<S: Simd>(&self, simd: S, step: usize, group: usize) -> S::I;
    /// The factors of the minima of a pair of steps, as the steps' sums lie.
    fn min_factors<S: Simd>(&self, simd: S, pair: usize) -> S::I;
    /// Units, and those of the minima with the other sign.
    fn units<S: Simd>(&self, simd: S) -> (S::F, S::F);
}

/// As it lies in memory: unpacked whenever it is taken.
struct Packed<'a, F: Quantized> {
    block: Block<'a, F>,
    panel: usize,
}

impl<F: Quantized> Weights for Packed<'_, F> {
    const GROUP_BY_GROUP: bool = false;

    #[inline(always)]
    fn quads<D: Integers>(&self, integers: D, step: usize, group: usize, groups: usize) -> [<D::S as Simd>::I; QUADS] {
        let step = unpacked::<D, F>(integers, &self.block.steps[step], self.panel);
        std::array::from_fn(
            #[inline(always)]
            |k| step[(group * QUADS / groups + k) % QUADS],
        )
    }

    #[inline(always)]
    fn factors<S: Simd>(&self, simd: S, step: usize, group: usize) -> S::I {
        F::factors(simd, &self.block.steps[step], self.panel, group)
    }

    #[inline(always)]
    fn min_factors<S: Simd>(&self, simd: S, pair: usize) -> S::I {
        min_factors::<S, F>(simd, &self.block.steps.as_chunks().0[pair], self.panel)
    }

    #[inline(always)]
    fn units<S: Simd>(&self, simd: S) -> (S::F, S::F) {
        let minus = if const { F::HAS_MINS } {
            simd.sub(simd.zero(), F::min_units(simd, self.block.head, self.panel))
        } else {
            simd.zero()
        };
        (F::units(simd, self.block.head, self.panel), minus)
    }
}

/// Unpacked once.
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

    /// Unpacks a superblock of a panel. Behind its last step stays what was there, which nobody reads.
    #[inline(always)]
    #[expect(clippy::needless_range_loop, reason = "iterators over arrays of vectors end up in memory")]
    fn fill<D: Integers, F: Quantized>(&mut self, integers: D, from: &Packed<'_, F>) {
        let simd = integers.simd();
        let (units, minus) = from.units(simd);
        simd.store(units, &mut self.units);
        simd.store(minus, &mut self.minus_min_units);
        for step in 0..from.block.steps.len() {
            let weights = from.quads(integers, step, 0, 1);
            for k in 0..QUADS {
                simd.store_bytes(weights[k], &mut self.weights[step][k]);
            }
            for group in 0..const { STEP / F::GROUP } {
                simd.store_bytes(from.factors(simd, step, group), &mut self.factors[step][group]);
            }
        }
        if const { F::HAS_MINS } {
            for (pair, factors) in self.min_factors.iter_mut().enumerate() {
                simd.store_bytes(from.min_factors(simd, pair), factors);
            }
        }
    }
}

impl Weights for Chunk {
    const GROUP_BY_GROUP: bool = true;

    #[inline(always)]
    #[expect(clippy::needless_range_loop, reason = "iterators over arrays of vectors end up in memory")]
    fn quads<D: Integers>(&self, integers: D, step: usize, group: usize, groups: usize) -> [<D::S as Simd>::I; QUADS] {
        let simd = integers.simd();
        let mut quads = [simd.splat_i32(0); QUADS];
        for k in 0..QUADS / groups {
            quads[k] = simd.load_bytes(&self.weights[step][group * QUADS / groups + k]);
        }
        quads
    }

    #[inline(always)]
    fn factors<S: Simd>(&self, simd: S, step: usize, group: usize) -> S::I {
        simd.load_bytes(&self.factors[step][group])
    }

    #[inline(always)]
    fn min_factors<S: Simd>(&self, simd: S, pair: usize) -> S::I {
        simd.load_bytes(&self.min_factors[pair])
    }

    #[inline(always)]
    fn units<S: Simd>(&self, simd: S) -> (S::F, S::F) {
        (simd.load(&self.units), simd.load(&self.minus_min_units))
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
        let tile_bytes = self.rows.superblocks() * R * PARTS * PART;
        let count = self.rows.tiles();
        if tile_bytes == 0 {
            // Nothing to add up: zeros, to which there may be something to add.
            let panels = self.groups.start * PANEL_GROUP..self.groups.end * PANEL_GROUP;
            for tile in 0..count {
                let rows = self.rows.rows_of(tile);
                self.out.store_panels(integers.simd(), rows, panels.start, panels.len(), |_| &[[0.0; LANES]; R]);
            }
            return;
        }
        let most = (ROW_BLOCK_BYTES / tile_bytes).clamp(1, ROW_BLOCK / R);
        // Blocks of about the same size.
        let block = count.div_ceil(count.div_ceil(most).max(1)).max(1);
        let mut kept = SUMS.take();
        // `[pair][tile][panel][row]`.
        let len = count.min(block) * WRITTEN * PAIR * R;
        kept.resize(kept.len().max(len), Lanes([0.0; LANES]));
        let sums: &mut [[[f32; LANES]; R]] = bytemuck::cast_slice_mut::<_, [f32; LANES]>(&mut kept).as_chunks_mut().0;
        let mut chunks = [Chunk::ZERO; PAIR];
        let pairs = self.groups.start * PANEL_GROUP / PAIR..self.groups.end * PANEL_GROUP / PAIR;
        for first in (0..count).step_by(block) {
            let tiles = first..count.min(first + block);
            for begin in pairs.clone().step_by(WRITTEN) {
                let some = begin..pairs.end.min(begin + WRITTEN);
                for pair in some.clone() {
                    self.pair::<D, R>(integers, pair, some.clone(), tiles.clone(), &mut chunks, sums);
                }
            }
        }
        SUMS.set(kept);
    }

    /// Some tiles of rows over a pair of panels, one of `some` that are written together: each tile when it has its last sums,
    /// to lines that were asked for before, so that the next tile does not wait for memory.
    #[inline(always)]
    fn pair<D: Integers, const R: usize>(
        &self,
        integers: D,
        pair: usize,
        some: Range<usize>,
        tiles: Range<usize>,
        chunks: &mut [Chunk; PAIR],
        sums: &mut [[[f32; LANES]; R]],
    ) {
        let simd = integers.simd();
        let panels = self.panels.pair(pair);
        let is_unpacked = tiles.len() > FEW_TILES;
        let sums_at = |pair: usize, tile: usize| ((pair - some.start) * tiles.len() + tile) * PAIR;
        let superblocks = panels.superblocks();
        let last = superblocks.len() - 1;
        for (index, block) in superblocks.enumerate() {
            let steps = block.steps;
            let packed = |panel: usize| Packed::<F> { block, panel };
            if is_unpacked {
                for (panel, chunk) in chunks.iter_mut().enumerate() {
                    chunk.fill(integers, &packed(panel));
                }
            }
            let is_last = pair + 1 == some.end && index == last;
            let parts = tiles.len() * PAIR * steps.len() * if is_unpacked { STEP / F::GROUP } else { 1 };
            let (next, bytes) = block.coming();
            let mut ahead = Ahead::new(next, bytes, parts);
            for (which, tile) in tiles.clone().enumerate() {
                let x = self.rows.superblock::<R>(tile, index);
                for panel in 0..PAIR {
                    if is_last {
                        let rows = self.rows.rows_of(tile);
                        let [begin, end] = [panel, panel + 1].map(|part| rows.end.min(rows.start + part * R / PAIR));
                        self.out.prefetch_panels(simd, begin..end, some.start * PAIR, some.len() * PAIR);
                    }
                    let sums = (index > 0, &mut sums[sums_at(pair, which) + panel]);
                    if is_unpacked {
                        add_superblock::<D, F, _, R>(integers, &chunks[panel], steps.len(), x, &mut ahead, sums);
                    } else {
                        add_superblock::<D, F, _, R>(integers, &packed(panel), steps.len(), x, &mut ahead, sums);
                    }
                }
                if is_last {
                    let sums_of = |panel: usize| &sums[sums_at(some.start + panel / PAIR, which) + panel % PAIR];
                    let rows = self.rows.rows_of(tile);
                    self.out.store_panels(simd, rows, some.start * PAIR, some.len() * PAIR, sums_of);
                }
            }
        }
    }
}

/// Adds the products of some steps of a superblock of some rows with a panel to the sums, or to zeros where there are none
/// yet.
#[inline(always)]
#[expect(clippy::needless_range_loop, reason = "iterators over arrays of vectors end up in memory")]
fn add_superblock<D: Integers, F: Quantized, W: Weights, const R: usize>(
    integers: D,
    weights: &W,
    steps: usize,
    x: Superblock<'_, R>,
    ahead: &mut Ahead,
    (has_sums, sums): (bool, &mut [[f32; LANES]; R]),
) {
    let simd = integers.simd();
    let (quads, groups) = const { (F::GROUP / 4, STEP / F::GROUP) };
    let at_once = if const { W::GROUP_BY_GROUP } { 1 } else { groups };
    let mut products = [simd.splat_i32(0); R];
    for turn in 0..steps * groups / at_once {
        ahead.ask(simd);
        for some in 0..at_once {
            let (step, group) = (turn * at_once / groups, turn * at_once % groups + some);
            let weights_of_group = weights.quads(integers, step, group, groups);
            let bytes: &[Line; R] = &x.bytes[step / (SUPER_STEPS / PARTS)];
            let first = step % (SUPER_STEPS / PARTS) * QUADS + group * quads;
            let mut dots = [simd.splat_i32(0); R];
            if const { D::UNSIGNED && F::OFFSET > 0 } {
                for r in 0..R {
                    dots[r] = simd.splat_i32(x.sums[step * groups + group][r]);
                }
            }
            // The rows' sums do not wait for each other.
            for k in 0..quads {
                for r in 0..R {
                    let x = bytemuck::cast_ref::<_, [[i8; 4]; LANES]>(&bytes[r])[first + k];
                    dots[r] = integers.dot(dots[r], weights_of_group[k], x);
                }
            }
            let factors = weights.factors(simd, step, group);
            for r in 0..R {
                products[r] = simd.add_integers(products[r], simd.mul_integers(dots[r], factors));
            }
        }
    }
    let mut minima = [simd.splat_i32(0); R];
    if const { F::HAS_MINS } {
        for pair in 0..SUPER_STEPS / 2 {
            let factors = weights.min_factors(simd, pair);
            for r in 0..R {
                minima[r] = integers.dot_words(minima[r], factors, bytemuck::cast(x.sums[pair][r]));
            }
        }
    }
    let mut before = [simd.zero(); R];
    if has_sums {
        for r in 0..R {
            before[r] = simd.load(&sums[r]);
        }
    }
    let (units, minus) = weights.units(simd);
    for r in 0..R {
        let product = scaled::<D::S, F>(simd, (products[r], units), (minima[r], minus));
        simd.store(simd.fma(product, simd.splat(x.scales[r]), before[r]), &mut sums[r]);
    }
}
