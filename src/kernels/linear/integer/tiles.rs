//! Products of bytes with Intel's tiles.
//!
//! Sixteen rows are multiplied with a step of a panel at a time; the sums of that are stored, converted, scaled and added to
//! sums in vector registers two products later, when they are near. Some steps of a pair of panels at a time are made
//! signed bytes and float32 scales, which stay in the first-level cache, and all tiles of rows are taken over them, with the
//! sums put aside in between; meanwhile the next steps' weights are asked for.

use std::{cell::Cell, ops::Range};

use super::{
    super::{
        outputs::Outputs,
        packed::{PAIR, PANEL_GROUP, Panels},
        panel::{QUADS, Quad, Quantized, STEP},
    },
    inputs::{Rows, Step},
};
use crate::kernels::simd::{
    LANES, Simd,
    amx::TILE_ROWS,
    amx_integers::{IntegerSums, IntegerTileKernel, IntegerTiles},
    avx512::Avx512,
};

/// Rows a tile.
pub(super) const HEIGHT: usize = TILE_ROWS;
/// Bytes of rows that stay in the second-level cache while the weights pass by.
const ROW_BLOCK_BYTES: usize = 1024 * 1024;
/// Most tiles of rows a block.
const ROW_BLOCK_TILES: usize = 64;
/// Steps whose weights stay in the first-level cache: a whole number of blocks of every format.
const CHUNK_STEPS: usize = 16;
/// Products between one and the addition of its sums.
const LAG: usize = 2;
/// Places for sums; more than [`LAG`].
const RING: usize = 4;
/// Bytes of a cache line.
const LINE: usize = 64;

/// Sixteen rows' running sums of a panel.
type Sums = [[f32; LANES]; HEIGHT];

thread_local! {
    /// Where the last sums were put aside, for the next: `[row tile][panel]`.
    static SUMS: Cell<Vec<[Sums; PAIR]>> = const { Cell::new(Vec::new()) };
}

/// Some groups of panels, all rows.
pub(super) struct Task<'a, F: Quantized> {
    pub(super) rows: &'a Rows,
    pub(super) panels: Panels<'a, F>,
    pub(super) groups: Range<usize>,
    pub(super) out: &'a Outputs<'a>,
}

/// Some steps of a panel as they are multiplied.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Chunk {
    /// Signed bytes, where they do not lie so in the block.
    quants: [[Quad; QUADS]; CHUNK_STEPS],
    scales: [[[f32; LANES]; 2]; CHUNK_STEPS],
    mins: [[f32; LANES]; CHUNK_STEPS],
}

impl Chunk {
    const ZERO: Self = Self {
        quants: [[[[0; 4]; LANES]; QUADS]; CHUNK_STEPS],
        scales: [[[0.0; LANES]; 2]; CHUNK_STEPS],
        mins: [[0.0; LANES]; CHUNK_STEPS],
    };

    /// Takes a panel's weights of some blocks.
    #[inline(always)]
    #[expect(clippy::needless_range_loop, reason = "iterators over arrays of vectors end up in memory")]
    fn fill<F: Quantized>(&mut self, simd: Avx512, blocks: &[F::Block], panel: usize) {
        for (index, block) in blocks.iter().enumerate() {
            for step in 0..F::STEPS {
                let to = index * F::STEPS + step;
                for group in 0..const { STEP / F::GROUP } {
                    simd.store(F::scales(simd, block, panel, step, group), &mut self.scales[to][group]);
                }
                if const { F::HAS_MINS } {
                    simd.store(F::mins(simd, block, panel, step), &mut self.mins[to]);
                }
                if F::tile(block, panel).is_none() {
                    let weights = F::unsigned(simd, block, panel, step);
                    for k in 0..QUADS {
                        let quad = bytemuck::cast_mut(&mut self.quants[to][k]);
                        simd.store(simd.as_floats(simd.sub_bytes(weights[k], F::OFFSET)), quad);
                    }
                }
            }
        }
    }
}

/// What is to be asked for, in equal parts.
struct Ahead {
    next: *const u8,
    lines: usize,
}

impl Ahead {
    #[inline(always)]
    fn ask(&mut self, simd: Avx512) {
        for _ in 0..self.lines {
            simd.prefetch_far_line(self.next);
            self.next = self.next.wrapping_add(LINE);
        }
    }
}

impl<F: Quantized> IntegerTileKernel for Task<'_, F> {
    const QUADS: usize = F::GROUP / 4;

    fn rows(&self) -> usize {
        self.rows.count
    }

    #[inline(always)]
    fn run(self, simd: Avx512, tiles: &mut IntegerTiles) {
        let tile_bytes = self.rows.steps * HEIGHT * size_of::<Step>();
        let block = (ROW_BLOCK_BYTES / tile_bytes.max(1)).clamp(1, ROW_BLOCK_TILES);
        let count = self.rows.tiles();
        let mut sums = SUMS.take();
        sums.resize(sums.len().max(count.min(block)), [[[0.0; LANES]; HEIGHT]; PAIR]);
        let mut chunks = [Chunk::ZERO; PAIR];
        for first in (0..count).step_by(block) {
            for pair in self.groups.start * PANEL_GROUP / PAIR..self.groups.end * PANEL_GROUP / PAIR {
                self.pair(simd, tiles, pair, first..count.min(first + block), &mut chunks, &mut sums);
            }
        }
        SUMS.set(sums);
    }
}

impl<F: Quantized> Task<'_, F> {
    /// Some tiles of rows over a pair of panels.
    #[inline(always)]
    fn pair(
        &self,
        simd: Avx512,
        tiles: &mut IntegerTiles,
        pair: usize,
        rows: Range<usize>,
        chunks: &mut [Chunk; PAIR],
        sums: &mut [[Sums; PAIR]],
    ) {
        let steps = self.rows.steps;
        let blocks = self.panels.pair(pair);
        for start in (0..steps).step_by(CHUNK_STEPS) {
            let end = steps.min(start + CHUNK_STEPS);
            let blocks = &blocks[start / F::STEPS..end.div_ceil(F::STEPS)];
            for (panel, chunk) in chunks.iter_mut().enumerate() {
                chunk.fill::<F>(simd, blocks, panel);
            }
            let products = rows.len() * PAIR * (end - start) * (STEP / F::GROUP);
            let lines = size_of_val(blocks).div_ceil(LINE).div_ceil(products);
            let mut ahead = Ahead { next: blocks.as_ptr().cast::<u8>().wrapping_add(size_of_val(blocks)), lines };
            for (tile, sums) in rows.clone().zip(sums.iter_mut()) {
                let x = &self.rows.tile::<HEIGHT>(tile)[start..end];
                for panel in 0..PAIR {
                    if start == 0 {
                        sums[panel] = [[0.0; LANES]; HEIGHT];
                    }
                    self.pass(simd, tiles, (blocks, panel), &chunks[panel], x, &mut sums[panel], &mut ahead);
                }
                if end == steps {
                    self.out.store_pair(simd, self.rows.rows_of(tile), pair * PAIR, sums.each_ref());
                }
            }
        }
    }

    /// A tile of rows over a chunk of a panel.
    #[inline(always)]
    fn pass(
        &self,
        simd: Avx512,
        tiles: &mut IntegerTiles,
        (blocks, panel): (&[F::Block], usize),
        chunk: &Chunk,
        x: &[[Step; HEIGHT]],
        kept: &mut Sums,
        ahead: &mut Ahead,
    ) {
        let groups = const { STEP / F::GROUP };
        let quads = const { F::GROUP / 4 };
        let mut sums = [simd.zero(); HEIGHT];
        for r in 0..HEIGHT {
            sums[r] = simd.load(&kept[r]);
        }
        let mut ring = [IntegerSums::ZERO; RING];
        let products = x.len() * groups;
        for product in 0..products + LAG {
            if product < products {
                let (step, group) = (product / groups, product % groups);
                let weights = match F::tile(&blocks[step / F::STEPS], panel) {
                    Some(weights) => weights,
                    None => &chunk.quants[step],
                };
                let weights = &weights[group * quads..(group + 1) * quads];
                let (rows, to) = (bytemuck::cast_ref(&x[step]), &mut ring[product % RING]);
                if product % 2 == 0 {
                    tiles.product::<false>(rows, group * quads, weights, to);
                } else {
                    tiles.product::<true>(rows, group * quads, weights, to);
                }
                ahead.ask(simd);
            }
            if let Some(product) = product.checked_sub(LAG) {
                let (step, group) = (product / groups, product % groups);
                let (dots, x) = (&ring[product % RING].0, &x[step]);
                let scales = simd.load(&chunk.scales[step][group]);
                for r in 0..HEIGHT {
                    let dot = simd.to_f32(simd.as_integers(simd.load(bytemuck::cast_ref(&dots[r]))));
                    sums[r] = simd.fma(simd.mul(dot, scales), simd.splat(x[r].scale), sums[r]);
                }
                if const { F::HAS_MINS } {
                    let mins = simd.load(&chunk.mins[step]);
                    for r in 0..HEIGHT {
                        sums[r] = simd.fma(mins, simd.splat(x[r].minus_sum), sums[r]);
                    }
                }
            }
        }
        for r in 0..HEIGHT {
            simd.store(sums[r], &mut kept[r]);
        }
    }
}
