//! Linear on the CPU.
//!
//! One row runs through four panels at once, weights widened in registers: four streams are what memory gives most for.
//! More rows go over pairs of panels: 256 inputs of a pair are widened into the first-level cache, then every tile of
//! rows passes over them. Both add up in the same order, so they give the same bits.

use std::ops::Range;

use super::{
    panel::{PanelFormat, with_format},
    weight::Packed,
};
use crate::{
    ids::TokenId,
    kernels::{
        cpu_tensor::{Rows, SharedMatrix, for_each_row_range, for_each_task},
        simd::{Kernel, LANES, Level, Simd},
        tile::{Vector, multiply_add, tile_range, with_rows},
    },
};

/// Inputs widened at once: a whole number of blocks of every format.
const CHUNK: usize = 256;
/// Panels a pass: for one row, and for more.
const PANELS_ONE_ROW: usize = 4;
const PANELS: usize = 2;
/// Multiply-adds that pay for waking another thread.
const WORTH_SHARING: usize = 64 * 1024;

/// `x Wᵀ + bias`, `[x.count, out_features]`.
pub(super) fn linear(level: Level, x: Rows<'_>, weight: &Packed, bias: Option<&[f32]>) -> Vec<f32> {
    let mut out = vec![0.0; x.count * weight.out_features];
    if x.count > 0 && weight.out_features > 0 && weight.in_features > 0 {
        let tiles = Tiles::new(level, x);
        let outputs = Outputs { data: SharedMatrix::new(&mut out), width: weight.out_features, bias };
        let panels = weight.out_features.div_ceil(LANES);
        let groups = panels.div_ceil(PANELS_ONE_ROW);
        let tasks = groups.min(rayon::current_num_threads() * 4);
        let parallel = x.count * weight.out_features * weight.in_features >= WORTH_SHARING;
        for_each_task(tasks, parallel, |task| {
            let end = (groups * (task + 1) / tasks * PANELS_ONE_ROW).min(panels);
            let panels = groups * task / tasks * PANELS_ONE_ROW..end;
            with_format!(weight.format, F => {
                let blocks = weight.panels::<F>();
                level.run(Task::<F> { level, tiles: &tiles, weight, blocks, panels, out: &outputs });
            });
        });
    } else if let Some(bias) = bias {
        out.chunks_exact_mut(bias.len().max(1)).for_each(|row| row.copy_from_slice(bias));
    }
    out
}

/// The rows of `x` in tiles, each `[input][row]`, so that a tile is read in one stream.
struct Tiles<'a> {
    data: std::borrow::Cow<'a, [f32]>,
    rows: usize,
    tile_rows: usize,
    width: usize,
}

impl<'a> Tiles<'a> {
    fn new(level: Level, x: Rows<'a>) -> Self {
        let (rows, width, tile_rows) = (x.count, x.width, level.tile_rows());
        if rows == 1 {
            return Self { data: x.row(0).into(), rows, tile_rows, width };
        }
        let mut data = vec![0.0; rows * width];
        let tiles = rows.div_ceil(tile_rows);
        let shared = SharedMatrix::new(&mut data);
        for_each_row_range(tiles, width * tile_rows, |range| {
            for tile in range {
                let range = tile_range(rows, tile_rows, tile);
                // SAFETY: the tiles' ranges of rows do not overlap, and each tile is one task's.
                let to = unsafe { shared.slice_mut(range.start * width, range.len() * width) };
                for (column, row) in range.clone().enumerate() {
                    for (to, &x) in to[column..].iter_mut().step_by(range.len()).zip(x.row(row)) {
                        *to = x;
                    }
                }
            }
        });
        Self { data: data.into(), rows, tile_rows, width }
    }

    fn count(&self) -> usize {
        self.rows.div_ceil(self.tile_rows)
    }

    /// The rows of a tile, and their inputs in the range `[input][row]`.
    #[inline(always)]
    fn tile(&self, index: usize, inputs: Range<usize>) -> (Range<usize>, &[f32]) {
        let rows = tile_range(self.rows, self.tile_rows, index);
        let start = rows.start * self.width;
        (rows.clone(), &self.data[start + inputs.start * rows.len()..start + inputs.end * rows.len()])
    }
}

/// Some panels, all rows.
struct Task<'a, F: PanelFormat> {
    level: Level,
    tiles: &'a Tiles<'a>,
    weight: &'a Packed,
    blocks: &'a [F::Block],
    panels: Range<usize>,
    out: &'a Outputs<'a>,
}

/// A pair of panels, widened: `[panel][input][output]`.
#[repr(align(64))]
struct Widened([[[f32; LANES]; CHUNK]; PANELS]);

impl<F: PanelFormat> Kernel for Task<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Range { mut start, end } = self.panels;
        if self.tiles.rows == 1 {
            while start + PANELS_ONE_ROW <= end {
                self.one_row::<S, PANELS_ONE_ROW>(simd, start);
                start += PANELS_ONE_ROW;
            }
            (start..end).for_each(|panel| self.one_row::<S, 1>(simd, panel));
        } else {
            let mut widened = Widened([[[0.0; LANES]; CHUNK]; PANELS]);
            (start..end).step_by(PANELS).for_each(|panel| self.many_rows(simd, panel, &mut widened));
        }
    }
}

impl<F: PanelFormat> Task<'_, F> {
    #[inline(always)]
    fn panel(&self, panel: usize) -> &[F::Block] {
        let blocks = self.weight.in_features / F::FORMAT.block_len();
        &self.blocks[panel * blocks..(panel + 1) * blocks]
    }

    #[inline(always)]
    fn one_row<S: Simd, const P: usize>(&self, simd: S, first: usize) {
        let panels: [&[F::Block]; P] = std::array::from_fn(|p| self.panel(first + p));
        let mut sums = [simd.zero(); P];
        for (block, x) in self.tiles.data.chunks_exact(F::FORMAT.block_len()).enumerate() {
            for p in 0..P {
                let mut sum = sums[p];
                F::unpack(simd, &panels[p][block], |k, w| sum = simd.fma(simd.splat(x[k]), w, sum));
                sums[p] = sum;
            }
        }
        let mut out = [[0.0; LANES]; P];
        for p in 0..P {
            simd.store(sums[p], &mut out[p]);
        }
        self.out.store(0, first, &out, true);
    }

    #[inline(always)]
    fn many_rows<S: Simd>(&self, simd: S, first: usize, widened: &mut Widened) {
        let inputs = self.weight.in_features;
        for start in (0..inputs).step_by(CHUNK) {
            let chunk = start..inputs.min(start + CHUNK);
            for (panel, widened) in widened.0[..self.out.panels_from(first)].iter_mut().enumerate() {
                let len = F::FORMAT.block_len();
                let blocks = &self.panel(first + panel)[chunk.start / len..chunk.end / len];
                for (block, widened) in blocks.iter().zip(widened.chunks_exact_mut(len)) {
                    F::unpack(simd, block, |k, w| simd.store(w, &mut widened[k]));
                }
            }
            let last = chunk.end == inputs;
            self.level.run(Pass { tiles: self.tiles, out: self.out, first, widened, chunk, last });
        }
    }
}

/// Takes all rows over a widened chunk of a pair of panels.
struct Pass<'a> {
    tiles: &'a Tiles<'a>,
    out: &'a Outputs<'a>,
    first: usize,
    widened: &'a Widened,
    chunk: Range<usize>,
    last: bool,
}

impl Kernel for Pass<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        for tile in 0..self.tiles.count() {
            let (rows, x) = self.tiles.tile(tile, self.chunk.clone());
            with_rows!(S, rows.len(), R => self.tile::<S, R>(simd, rows.start, x));
        }
    }
}

impl Pass<'_> {
    #[inline(always)]
    fn tile<S: Simd, const R: usize>(&self, simd: S, row: usize, x: &[f32]) {
        let x = x.as_chunks::<R>().0;
        let mut tile = [[[0.0; LANES]; PANELS]; R];
        if self.chunk.start > 0 {
            for (r, sums) in tile.iter_mut().enumerate() {
                self.out.load(row + r, self.first, sums);
            }
        }
        let [w0, w1] = &self.widened.0;
        multiply_add(simd, 0..x.len(), |r, k| x[k][r], [w0, w1], &mut tile);
        for (r, sums) in tile.iter().enumerate() {
            self.out.store(row + r, self.first, sums, self.last);
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
    /// Panels of a pair that begins at `first`.
    fn panels_from(&self, first: usize) -> usize {
        PANELS.min(self.width.div_ceil(LANES) - first)
    }

    /// The columns of `panels` panels from `first`, as far as there are.
    fn columns(&self, first: usize, panels: usize) -> Range<usize> {
        first * LANES..self.width.min((first + panels) * LANES)
    }

    /// Reads what is summed so far.
    fn load(&self, row: usize, first: usize, sums: &mut [Vector]) {
        let columns = self.columns(first, sums.len());
        // SAFETY: each panel is one task's, which holds one such slice at a time.
        let part = unsafe { self.data.slice_mut(row * self.width + columns.start, columns.len()) };
        sums.as_flattened_mut()[..part.len()].copy_from_slice(part);
    }

    /// Writes the sums of neighbouring panels in a row, with the bias where they are complete.
    fn store(&self, row: usize, first: usize, sums: &[Vector], complete: bool) {
        let columns = self.columns(first, sums.len());
        // SAFETY: each panel is one task's, which holds one such slice at a time.
        let part = unsafe { self.data.slice_mut(row * self.width + columns.start, columns.len()) };
        part.copy_from_slice(&sums.as_flattened()[..part.len()]);
        if let Some(bias) = self.bias.filter(|_| complete) {
            for (out, bias) in part.iter_mut().zip(&bias[columns]) {
                *out += bias;
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
                F::unpack(simd, block, |k, w| out[k] = simd.to_array(w)[lane]);
            }
        }
    }
}
