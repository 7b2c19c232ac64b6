//! Linear with Intel's tiles.
//!
//! Inputs are rounded to bfloat16 tiles of sixteen rows. A task takes panels of sixteen outputs in pairs: it widens some
//! steps of them into tiles that stay in the first-level cache (weights that are bfloat16 lie as tiles already) and takes
//! all tiles of rows over these, with the sums put aside in between. Few rows read four panels together, because memory
//! gives most to several streams.

use std::ops::Range;

use super::{
    outputs::Outputs,
    panel::{PanelFormat, STEP, with_format},
    weight::{PANEL_GROUP, Packed},
};
use crate::kernels::{
    cpu_tensor::{Rows, SharedMatrix, for_each_row_range},
    simd::{
        LANES, Simd,
        amx::{Amx, Sums, TILE_ROWS, Tile, TileKernel, TileSimd, Tiles},
    },
};

/// Bytes of rows that stay in the second-level cache while the weights pass by.
const ROW_BLOCK_BYTES: usize = 1536 * 1024;
/// Most tiles of rows a block.
const ROW_BLOCK_TILES: usize = 32;
/// Tiles of rows that are few: the weights' way from memory is what takes time.
const FEW_ROW_TILES: usize = 2;
/// Widened tiles of all panels of a pass, half of the first-level cache or more: 32 KiB.
const WIDENED_TILES: usize = 32;
/// Panels that share one load of a tile of rows.
const PAIR: usize = 2;
/// The power of two of inputs whose weights come with one: it keeps products from being taken for zero, and the inputs
/// may be as large as 2^31.
const INPUT_EXPONENT: i32 = 96;
/// How far ahead of the widening its weights are asked for.
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
        let mut widened = [Tile::ZERO; WIDENED_TILES];
        let count = self.x.count();
        let fit = ROW_BLOCK_BYTES / (size_of::<Tile>() * self.x.steps).max(1);
        let block = fit.clamp(FEW_ROW_TILES, ROW_BLOCK_TILES) / 2 * 2;
        let mut sums = vec![Sums::ZERO; count.min(block) * PANEL_GROUP];
        for start in (0..count).step_by(block) {
            let rows = start..count.min(start + block);
            for group in self.groups.clone() {
                let first = group * PANEL_GROUP;
                if rows.len() <= FEW_ROW_TILES {
                    self.pass::<PANEL_GROUP, true>(simd, tiles, first, rows.clone(), &mut widened, &mut sums);
                } else {
                    for first in (first..first + PANEL_GROUP).step_by(PAIR) {
                        self.pass::<PAIR, false>(simd, tiles, first, rows.clone(), &mut widened, &mut sums);
                    }
                }
            }
        }
    }
}

impl<F: PanelFormat> Task<'_, F> {
    /// Some tiles of rows over `P` panels. `sums` is `[pair of panels][row tile][panel of the pair]`.
    #[inline(always)]
    fn pass<const P: usize, const FEW: bool>(
        &self,
        simd: TileSimd,
        tiles: &mut Tiles,
        first: usize,
        rows: Range<usize>,
        widened: &mut [Tile; WIDENED_TILES],
        sums: &mut [Sums],
    ) {
        let chunk = WIDENED_TILES / P;
        let sums = &mut sums[..rows.len() * P];
        for start in (0..self.x.steps).step_by(chunk) {
            let steps = start..self.x.steps.min(start + chunk);
            let as_tiles: [Option<&[Tile]>; P] = std::array::from_fn(|p| self.as_tiles(first + p, &steps));
            if as_tiles[0].is_none() {
                self.widen::<P>(simd, first, steps.clone(), widened);
            }
            let weights: [&[Tile]; P] =
                std::array::from_fn(|p| as_tiles[p].unwrap_or(&widened[p * chunk..][..steps.len()]));
            for (weights, sums) in weights.as_chunks::<PAIR>().0.iter().zip(sums.chunks_exact_mut(rows.len() * PAIR)) {
                for (row_tile, sums) in rows.clone().step_by(2).zip(sums.chunks_mut(2 * PAIR)) {
                    let x = [row_tile, rows.end.min(row_tile + 2) - 1].map(|row_tile| self.x.part(row_tile, &steps));
                    if FEW && as_tiles[0].is_some() {
                        tiles.multiply::<true>(start == 0, x, *weights, sums);
                    } else {
                        tiles.multiply::<false>(start == 0, x, *weights, sums);
                    }
                }
            }
        }
        let undo = const { power_of_two(-F::TILE_EXPONENT - input_exponent::<F>()) };
        for (pair, sums) in sums.chunks_exact(rows.len() * PAIR).enumerate() {
            for (row_tile, sums) in rows.clone().zip(sums.as_chunks::<PAIR>().0) {
                let first_row = row_tile * TILE_ROWS;
                for row in first_row..self.x.rows.min(first_row + TILE_ROWS) {
                    for (p, sums) in sums.iter().enumerate() {
                        let panel = first + pair * PAIR + p;
                        self.out.store(row, panel, &sums.0[row - first_row], self.scales[panel] * undo);
                    }
                }
            }
        }
    }

    /// Blocks a panel.
    #[inline(always)]
    fn blocks(&self) -> usize {
        self.x.steps.div_ceil(F::STEPS)
    }

    /// A panel's steps as they lie in memory, where they are tiles.
    #[inline(always)]
    fn as_tiles(&self, panel: usize, steps: &Range<usize>) -> Option<&[Tile]> {
        let blocks = &self.blocks[panel * self.blocks()..][..self.blocks()];
        F::as_tile(blocks.first()?)?;
        Some(bytemuck::cast_slice(&blocks[steps.clone()]))
    }

    /// Some steps of `P` panels as tiles `[panel][step]`.
    #[inline(always)]
    fn widen<const P: usize>(
        &self,
        simd: TileSimd,
        first: usize,
        steps: Range<usize>,
        widened: &mut [Tile; WIDENED_TILES],
    ) {
        let blocks = self.blocks();
        let ahead = PREFETCH_BYTES.div_ceil(size_of::<F::Block>());
        for step in steps.clone() {
            let (block, step_in_block) = (step / F::STEPS, step % F::STEPS);
            for p in 0..P {
                let index = (first + p) * blocks + block;
                if step_in_block == 0 {
                    // Past a panel's end this is the next pass's, or near it.
                    let next = if block + ahead < blocks { index + ahead } else { index + ahead + (P - 1) * blocks };
                    if let Some(next) = self.blocks.get(next) {
                        simd.avx512().prefetch(next);
                    }
                }
                let tile = &mut widened[p * (WIDENED_TILES / P) + step - steps.start];
                F::write_tile(simd, &self.blocks[index], step_in_block, tile);
            }
        }
    }
}

const _: () = assert!(2 * LANES == STEP);
