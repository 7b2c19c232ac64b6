//! Linear on the CPU.
//!
//! A pass takes a tile of up to 24 rows over a panel, or fewer rows over several panels: weights are widened in registers
//! and used at once, the sums stay in registers. Where a tile's inputs do not fit the first-level cache they are taken in
//! chunks, each over all panels of a group, with the sums put aside in between. One row reads four panels together,
//! because memory gives most to several streams. Whatever the tile and the chunk, each output is the same chain of
//! multiply-adds.

use std::ops::Range;

use super::{
    panel::{PanelFormat, Sink, with_format},
    weight::{PANEL_GROUP, Packed},
};
use crate::{
    ids::TokenId,
    kernels::{
        cpu_tensor::{Rows, SharedMatrix, for_each_row_range, for_each_task},
        simd::{Kernel, LANES, Level, Simd},
    },
};

/// Multiply-adds that pay for waking another thread.
const WORTH_SHARING: usize = 64 * 1024;
/// Bytes of `x` that stay in the second-level cache while the weights pass by.
const ROW_BLOCK_BYTES: usize = 768 * 1024;
/// Bytes of a tile's inputs that stay in the first-level cache, with the weights and sums that pass by.
const CHUNK_BYTES: usize = 24 * 1024;
/// Inputs a chunk is a multiple of: a whole number of blocks of every format.
const CHUNK_STEP: usize = 256;
/// Rows of the tallest tile.
const MAX_HEIGHT: usize = 24;
/// How far ahead of a pass its weights are asked for.
const PREFETCH_BYTES: usize = 2560;

/// `x Wᵀ + bias`, `[x.count, out_features]`.
pub(super) fn linear(level: Level, x: Rows<'_>, weight: &Packed, bias: Option<&[f32]>) -> Vec<f32> {
    let mut out = vec![0.0; x.count * weight.out_features];
    if x.count > 0 && weight.out_features > 0 {
        let tiles = Tiles::new(level, x);
        let outputs = Outputs { data: SharedMatrix::new(&mut out), width: weight.out_features, bias };
        let groups = weight.out_features.div_ceil(PANEL_GROUP * LANES);
        let tasks = groups.min(rayon::current_num_threads() * 4);
        let parallel = x.count * weight.out_features * weight.in_features >= WORTH_SHARING;
        for_each_task(tasks, parallel, |task| {
            let groups = groups * task / tasks..groups * (task + 1) / tasks;
            with_format!(weight.format, F => {
                let (blocks, inputs) = (weight.panels::<F>(), weight.in_features);
                level.run(Task::<F> { tiles: &tiles, blocks, inputs, groups, out: &outputs });
            });
        });
    }
    out
}

/// The rows of `x` in tiles, each `[input][row]`, so that a pass reads one stream. The last tile is padded with zeros.
struct Tiles<'a> {
    data: std::borrow::Cow<'a, [f32]>,
    rows: usize,
    inputs: usize,
    /// Rows of all tiles but the last, and of the last one.
    height: usize,
    last_height: usize,
}

impl<'a> Tiles<'a> {
    fn new(level: Level, x: Rows<'a>) -> Self {
        let (rows, inputs) = (x.count, x.width);
        let heights = level.tile_heights();
        let height = heights[heights.len() - 1];
        let rest = (rows - 1) % height + 1;
        let last_height = heights.iter().copied().find(|&height| height >= rest).unwrap_or(height);
        let mut tiles = Self { data: Default::default(), rows, inputs, height, last_height };
        if rows == 1 {
            tiles.data = x.row(0).into();
            return tiles;
        }
        let mut data = vec![0.0; ((tiles.count() - 1) * height + last_height) * inputs];
        let shared = SharedMatrix::new(&mut data);
        for_each_row_range(tiles.count(), inputs * height, |range| {
            for tile in range {
                let (rows, height) = (tiles.rows_of(tile), tiles.height_of(tile));
                // SAFETY: tiles do not overlap, and each is one task's.
                let to = unsafe { shared.slice_mut(rows.start * inputs, height * inputs) };
                for (column, row) in rows.enumerate() {
                    for (to, &x) in to[column..].iter_mut().step_by(height).zip(x.row(row)) {
                        *to = x;
                    }
                }
            }
        });
        tiles.data = data.into();
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

/// Some groups of panels, all rows.
struct Task<'a, F: PanelFormat> {
    tiles: &'a Tiles<'a>,
    blocks: &'a [F::Block],
    inputs: usize,
    groups: Range<usize>,
    out: &'a Outputs<'a>,
}

impl<F: PanelFormat> Kernel for Task<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let count = self.tiles.count();
        let tiles_a_block = (ROW_BLOCK_BYTES / (size_of::<f32>() * self.inputs * self.tiles.height).max(1)).max(1);
        for tile in (0..count).step_by(tiles_a_block) {
            let tiles = tile..count.min(tile + tiles_a_block);
            for group in self.groups.clone() {
                self.group(simd, group * PANEL_GROUP, tiles.clone());
            }
        }
    }
}

impl<F: PanelFormat> Task<'_, F> {
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
                24 if const { S::SUMS >= 24 } => self.passes::<S, 24, 1>(simd, first, tiles),
                16 if const { S::SUMS >= 24 } => self.passes::<S, 16, 1>(simd, first, tiles),
                8 if const { S::SUMS >= 24 } => self.passes::<S, 8, 2>(simd, first, tiles),
                4 if const { S::SUMS >= 24 } => self.passes::<S, 4, 4>(simd, first, tiles),
                2 if const { S::SUMS >= 24 } => self.passes::<S, 2, 4>(simd, first, tiles),
                4 if const { S::SUMS < 24 } => self.passes::<S, 4, 1>(simd, first, tiles),
                2 if const { S::SUMS < 24 } => self.passes::<S, 2, 2>(simd, first, tiles),
                _ => self.passes::<S, 1, 4>(simd, first, tiles),
            }
        }
    }

    #[inline(always)]
    fn passes<S: Simd, const R: usize, const P: usize>(&self, simd: S, first: usize, tiles: Range<usize>) {
        let fits = CHUNK_BYTES / (size_of::<f32>() * R) / CHUNK_STEP * CHUNK_STEP;
        let chunk = if R == 1 { self.inputs } else { fits.max(CHUNK_STEP) };
        for tile in tiles {
            let mut sums = [[[0.0; LANES]; MAX_HEIGHT]; PANEL_GROUP];
            for start in (0..self.inputs).step_by(chunk.max(1)) {
                let inputs = start..self.inputs.min(start + chunk);
                for panel in (0..PANEL_GROUP).step_by(P) {
                    self.pass::<S, R, P>(simd, first + panel, tile, inputs.clone(), &mut sums[panel..panel + P]);
                }
            }
            for (r, row) in self.tiles.rows_of(tile).enumerate() {
                for (panel, sums) in sums.iter().enumerate() {
                    self.out.store(row, first + panel, &sums[r]);
                }
            }
        }
    }

    /// `R` rows over `P` panels and some of their inputs.
    #[inline(always)]
    #[expect(clippy::needless_range_loop, reason = "iterators over arrays of vectors end up in memory")]
    fn pass<S: Simd, const R: usize, const P: usize>(
        &self,
        simd: S,
        first: usize,
        tile: usize,
        inputs: Range<usize>,
        kept: &mut [[[f32; LANES]; MAX_HEIGHT]],
    ) {
        let len = F::FORMAT.block_len();
        let blocks = self.inputs / len;
        let ahead = PREFETCH_BYTES.div_ceil(size_of::<F::Block>());
        let panels = &self.blocks[first * blocks..(first + P) * blocks];
        let mut sums = [[simd.zero(); R]; P];
        if inputs.start > 0 {
            for p in 0..P {
                for r in 0..R {
                    sums[p][r] = simd.load(&kept[p][r]);
                }
            }
        }
        let x = &self.tiles.data_of(tile)[inputs.start * R..inputs.end * R];
        for (block, x) in (inputs.start / len..).zip(x.chunks_exact(R * len)) {
            for p in 0..P {
                let index = p * blocks + block;
                // Past a panel's end this is the next pass's, or near it.
                let next = if block + ahead < blocks { index + ahead } else { index + ahead + (P - 1) * blocks };
                if let Some(next) = self.blocks.get(first * blocks + next) {
                    simd.prefetch(next);
                }
                F::unpack(simd, &panels[index], &mut MultiplyAdd { simd, x, sums: &mut sums[p] });
            }
        }
        for p in 0..P {
            for r in 0..R {
                simd.store(sums[p][r], &mut kept[p][r]);
            }
        }
    }
}

/// Adds widened weights times a tile's rows, `[input][row]`, to the rows' sums.
struct MultiplyAdd<'a, S: Simd, const R: usize> {
    simd: S,
    x: &'a [f32],
    sums: &'a mut [S::F; R],
}

impl<S: Simd, const R: usize> Sink<S> for MultiplyAdd<'_, S, R> {
    #[inline(always)]
    #[expect(clippy::needless_range_loop, reason = "iterators over arrays of vectors end up in memory")]
    fn put(&mut self, k: usize, weights: S::F) {
        let x = &self.x[k * R..(k + 1) * R];
        // Two loops, because the compiler does not unroll one of 24 steps.
        for r in 0..R / 2 {
            self.sums[r] = self.simd.fma(self.simd.splat(x[r]), weights, self.sums[r]);
        }
        for r in R / 2..R {
            self.sums[r] = self.simd.fma(self.simd.splat(x[r]), weights, self.sums[r]);
        }
    }
}

/// The result, `[rows, width]`, of which each task writes its panels' columns.
struct Outputs<'a> {
    data: SharedMatrix<'a, f32>,
    width: usize,
    bias: Option<&'a [f32]>,
}

impl Outputs<'_> {
    /// Writes the sums of neighbouring panels in a row, as far as there are outputs, with the bias.
    fn store(&self, row: usize, panel: usize, sums: &[f32]) {
        let columns = self.width.min(panel * LANES)..self.width.min(panel * LANES + sums.len());
        // SAFETY: each panel is one task's, which holds one such slice at a time.
        let out = unsafe { self.data.slice_mut(row * self.width + columns.start, columns.len()) };
        match self.bias {
            None => out.copy_from_slice(&sums[..out.len()]),
            Some(bias) => {
                for ((out, sum), bias) in out.iter_mut().zip(sums).zip(&bias[columns]) {
                    *out = sum + bias;
                }
            }
        }
    }
}

/// The rows of these tokens, `[ids.len(), in_features]`.
pub(super) fn gather_rows(level: Level, weight: &Packed, ids: &[TokenId]) -> Vec<f32> {
    let width = weight.in_features;
    let mut out = vec![0.0; ids.len() * width];
    let shared = SharedMatrix::new(&mut out);
    for_each_row_range(ids.len(), width * LANES, |rows| {
        // SAFETY: the ranges of rows do not overlap.
        let out = unsafe { shared.slice_mut(rows.start * width, rows.len() * width) };
        with_format!(weight.format, F => {
            level.run(Gather::<F> { blocks: weight.panels::<F>(), ids: &ids[rows.clone()], width, out });
        });
    });
    out
}

struct Gather<'a, F: PanelFormat> {
    blocks: &'a [F::Block],
    ids: &'a [TokenId],
    width: usize,
    out: &'a mut [f32],
}

impl<F: PanelFormat> Kernel for Gather<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let blocks = self.width / F::FORMAT.block_len();
        for (id, out) in self.ids.iter().zip(self.out.chunks_exact_mut(self.width.max(1))) {
            let (panel, lane) = (id.index() / LANES, id.index() % LANES);
            let panel = &self.blocks[panel * blocks..(panel + 1) * blocks];
            for (block, out) in panel.iter().zip(out.chunks_exact_mut(F::FORMAT.block_len())) {
                F::unpack(simd, block, &mut Lane { simd, lane, out });
            }
        }
    }
}

/// Keeps one output's weights.
struct Lane<'a, S> {
    simd: S,
    lane: usize,
    out: &'a mut [f32],
}

impl<S: Simd> Sink<S> for Lane<'_, S> {
    #[inline(always)]
    fn put(&mut self, k: usize, weights: S::F) {
        self.out[k] = self.simd.to_array(weights)[self.lane];
    }
}
