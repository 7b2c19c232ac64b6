//! Linear with Intel's tiles.
//!
//! Inputs are rounded to bfloat16 tiles of sixteen rows. Few rows stream the weights: each step's are widened into a
//! ring of tiles and multiplied two steps later, four sums staying in registers. Many rows widen some steps of two panels
//! into tiles that stay in the first-level cache and take all tiles of rows over them, with the sums put aside in between.
//! Weights that are bfloat16 lie as tiles already.

use std::ops::Range;

use super::{
    outputs::Outputs,
    packed::{PANEL_GROUP, Packed},
    panel::{PanelFormat, STEP, with_format},
};
use crate::kernels::{
    cpu_tensor::{Rows, SharedMatrix, for_each_row_range},
    simd::{
        LANES,
        amx::{Amx, Sums, TILE_ROWS, Tile, TileKernel, TileSimd, Tiles},
    },
};

/// Bytes of rows that stay in the second-level cache while the weights pass by.
const ROW_BLOCK_BYTES: usize = 1024 * 1024;
/// Most tiles of rows a block.
const ROW_BLOCK_TILES: usize = 32;
/// Panels that share one load of a tile of rows.
const PAIR: usize = 2;
/// Steps whose widened weights stay in the first-level cache with many rows: 32 KiB.
const CHUNK_STEPS: usize = 16;
/// Steps that the products are behind the widening with few rows: a tile that was just written takes long to load.
const LAG: usize = 2;
/// Steps of widened tiles with few rows; more than [`LAG`].
const RING: usize = 4;
/// Sums that stay in registers.
const SUMS: usize = 4;
/// The power of two of inputs whose weights come with one: it keeps products from being taken for zero, and the inputs
/// may be as large as 2^31.
const INPUT_EXPONENT: i32 = 96;
/// How far ahead of the products its weights are asked for.
const PREFETCH_BYTES: usize = 2560;

/// The rows of a batch as tiles `[row tile][step]`, filled up with zeros.
pub(super) struct RowTiles {
    tiles: Vec<Tile>,
    rows: usize,
    steps: usize,
}

impl RowTiles {
    pub(super) fn new(amx: Amx, x: Rows<'_>, weight: &Packed) -> Self {
        let scale = with_format!(weight.format, F => power_of_two(input_exponent::<F>()));
        let steps = x.width.div_ceil(STEP);
        let count = x.count.div_ceil(TILE_ROWS);
        let mut tiles = vec![Tile::ZERO; count * steps];
        let shared = SharedMatrix::new(&mut tiles);
        for_each_row_range(count, x.width * TILE_ROWS, |range| {
            // SAFETY: the ranges do not overlap.
            let tiles = unsafe { shared.slice_mut(range.start * steps, range.len() * steps) };
            amx.run(Round { x, scale, first: range.start * TILE_ROWS, steps, tiles });
        });
        Self { tiles, rows: x.count, steps }
    }

    /// Some steps of a tile of rows.
    fn part(&self, row_tile: usize, steps: &Range<usize>) -> &[Tile] {
        &self.tiles[row_tile * self.steps..][steps.clone()]
    }

    fn count(&self) -> usize {
        self.rows.div_ceil(TILE_ROWS)
    }
}

/// For exponents of normal numbers.
const fn power_of_two(exponent: i32) -> f32 {
    f32::from_bits(((127 + exponent) as u32) << 23)
}

const fn input_exponent<F: PanelFormat>() -> i32 {
    if F::TILE_EXPONENT == 0 { 0 } else { INPUT_EXPONENT }
}

/// Rounds rows from `first` on into their tiles.
struct Round<'a> {
    x: Rows<'a>,
    scale: f32,
    first: usize,
    steps: usize,
    tiles: &'a mut [Tile],
}

impl TileKernel for Round<'_> {
    #[inline(always)]
    fn run(self, simd: TileSimd, _: &mut Tiles) {
        for (row_tile, tiles) in self.tiles.chunks_exact_mut(self.steps.max(1)).enumerate() {
            let first = self.first + row_tile * TILE_ROWS;
            for row in first..self.x.count.min(first + TILE_ROWS) {
                let (whole, rest) = self.x.row(row).as_chunks::<STEP>();
                let mut last = [0.0; STEP];
                last[..rest.len()].copy_from_slice(rest);
                for (tile, inputs) in tiles.iter_mut().zip(whole.iter().chain([&last])) {
                    simd.store_row(inputs, self.scale, &mut tile.0[row - first]);
                }
            }
        }
    }
}

/// Writes `x Wᵀ + bias` of some groups of panels.
pub(super) fn linear(amx: Amx, x: &RowTiles, weight: &Packed, groups: Range<usize>, out: &Outputs<'_>) {
    with_format!(weight.format, F => {
        let blocks = weight.panels::<F>();
        amx.run(Task::<F> { x, blocks, scales: &weight.scales, groups, out });
    });
}

struct Task<'a, F: PanelFormat> {
    x: &'a RowTiles,
    blocks: &'a [F::Block],
    scales: &'a [f32],
    groups: Range<usize>,
    out: &'a Outputs<'a>,
}

impl<F: PanelFormat> TileKernel for Task<'_, F> {
    #[inline(always)]
    fn run(self, simd: TileSimd, tiles: &mut Tiles) {
        let count = self.x.count();
        match count {
            1 => self.groups.clone().for_each(|group| self.few::<1, PANEL_GROUP>(simd, tiles, group * PANEL_GROUP)),
            2 => {
                let first = self.groups.start * PANEL_GROUP;
                let panels = (first..self.groups.end * PANEL_GROUP).step_by(PAIR);
                panels.for_each(|first| self.few::<2, PAIR>(simd, tiles, first));
            }
            _ => self.many(simd, tiles),
        }
    }
}

impl<F: PanelFormat> Task<'_, F> {
    /// `R` tiles of rows, which are all there are, over `P` panels.
    #[inline(always)]
    fn few<const R: usize, const P: usize>(&self, simd: TileSimd, tiles: &mut Tiles, first: usize) {
        const { assert!(R * P == SUMS) };
        let steps = self.x.steps;
        let mut ring = [[Tile::ZERO; RING]; P];
        tiles.begin();
        for step in 0..steps + LAG {
            if let Some(step) = step.checked_sub(LAG) {
                tiles.load_rows::<R>(std::array::from_fn(|row_tile| &self.x.part(row_tile, &(step..step + 1))[0]));
            }
            for (p, ring) in ring.iter_mut().enumerate() {
                if step < steps {
                    self.prefetch(simd, first + p, step);
                    if !self.are_tiles() {
                        self.widen(simd, first + p, step, &mut ring[step % RING]);
                    }
                }
                if let Some(step) = step.checked_sub(LAG) {
                    let weights = match self.as_tiles(first + p, &(step..step + 1)) {
                        Some([tile]) => tile,
                        _ => &ring[step % RING],
                    };
                    tiles.multiply_add::<R>(p, weights);
                }
            }
        }
        let mut sums = [Sums::ZERO; SUMS];
        tiles.end(&mut sums);
        for (row_tile, sums) in sums.as_chunks::<P>().0.iter().enumerate() {
            self.store(row_tile, first, sums);
        }
    }

    /// Any number of tiles of rows, in blocks, over pairs of panels.
    #[inline(always)]
    fn many(&self, simd: TileSimd, tiles: &mut Tiles) {
        let count = self.x.count();
        let fit = ROW_BLOCK_BYTES / (size_of::<Tile>() * self.x.steps).max(1);
        let block = fit.clamp(2, ROW_BLOCK_TILES) / 2 * 2;
        let mut widened = [[Tile::ZERO; CHUNK_STEPS]; PAIR];
        // `[pair of row tiles][row tile][panel]`; an odd last row tile is taken twice.
        let mut sums = vec![[Sums::ZERO; SUMS]; count.min(block).div_ceil(2)];
        for start in (0..count).step_by(block) {
            let rows = start..count.min(start + block);
            for first in (self.groups.start * PANEL_GROUP..self.groups.end * PANEL_GROUP).step_by(PAIR) {
                self.pair(simd, tiles, first, rows.clone(), &mut widened, &mut sums);
            }
        }
    }

    /// Some tiles of rows over two panels.
    #[inline(always)]
    fn pair(
        &self,
        simd: TileSimd,
        tiles: &mut Tiles,
        first: usize,
        rows: Range<usize>,
        widened: &mut [[Tile; CHUNK_STEPS]; PAIR],
        sums: &mut [[Sums; SUMS]],
    ) {
        for start in (0..self.x.steps).step_by(CHUNK_STEPS) {
            let steps = start..self.x.steps.min(start + CHUNK_STEPS);
            if !self.are_tiles() {
                for step in steps.clone() {
                    for (p, widened) in widened.iter_mut().enumerate() {
                        self.prefetch(simd, first + p, step);
                        self.widen(simd, first + p, step, &mut widened[step - start]);
                    }
                }
            }
            let weights = std::array::from_fn(|p| match self.as_tiles(first + p, &steps) {
                Some(tiles) => tiles,
                None => &widened[p][..steps.len()],
            });
            for (row_tile, sums) in rows.clone().step_by(2).zip(sums.iter_mut()) {
                let x = [row_tile, rows.end.min(row_tile + 2) - 1].map(|row_tile| self.x.part(row_tile, &steps));
                tiles.multiply(start == 0, x, weights, sums);
            }
        }
        let sums = sums.iter().flat_map(|sums| sums.as_chunks::<PAIR>().0);
        for (row_tile, sums) in rows.zip(sums) {
            self.store(row_tile, first, sums);
        }
    }

    /// Writes what a tile of rows gives with some panels.
    #[inline(always)]
    fn store<const P: usize>(&self, row_tile: usize, first: usize, sums: &[Sums; P]) {
        let undo = const { power_of_two(-F::TILE_EXPONENT - input_exponent::<F>()) };
        let first_row = row_tile * TILE_ROWS;
        for row in first_row..self.x.rows.min(first_row + TILE_ROWS) {
            for (panel, sums) in (first..).zip(sums) {
                self.out.store(row, panel, &sums.0[row - first_row], self.scales[panel] * undo);
            }
        }
    }

    /// A panel's blocks.
    #[inline(always)]
    fn panel(&self, panel: usize) -> &[F::Block] {
        let blocks = self.x.steps.div_ceil(F::STEPS);
        &self.blocks[panel * blocks..][..blocks]
    }

    /// Whether blocks lie as tiles.
    #[inline(always)]
    fn are_tiles(&self) -> bool {
        self.blocks.first().is_some_and(|block| F::as_tile(block).is_some())
    }

    /// Some steps of a panel as they lie in memory, where they are tiles.
    #[inline(always)]
    fn as_tiles(&self, panel: usize, steps: &Range<usize>) -> Option<&[Tile]> {
        self.are_tiles().then(|| bytemuck::cast_slice(&self.panel(panel)[steps.clone()]))
    }

    /// Widens a step of a panel into a tile.
    #[inline(always)]
    fn widen(&self, simd: TileSimd, panel: usize, step: usize, tile: &mut Tile) {
        F::write_tile(simd, &self.panel(panel)[step / F::STEPS], step % F::STEPS, tile);
    }

    /// Asks for a step's share of the block that is to come.
    #[inline(always)]
    fn prefetch(&self, simd: TileSimd, panel: usize, step: usize) {
        let share = size_of::<F::Block>().div_ceil(F::STEPS);
        let at = self.panel(panel).as_ptr().cast::<u8>().wrapping_add(step * share + PREFETCH_BYTES);
        simd.prefetch_bytes(at, share);
    }
}

const _: () = assert!(2 * LANES == STEP);
