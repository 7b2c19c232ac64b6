//! The register tile: the one loop of multiply-adds under Linear and attention.

use std::ops::Range;

use super::simd::{LANES, Simd};

/// Sixteen neighbouring outputs.
pub(crate) type Vector = [f32; LANES];

/// Where a tile's vectors of weights come from.
pub(crate) trait Panels<S: Simd, const P: usize>: Copy {
    /// Entry `k` of a panel. Implementations are `#[inline(always)]`, which a closure cannot be.
    fn get(self, simd: S, panel: usize, k: usize) -> S::F;
}

impl<S: Simd, const P: usize> Panels<S, P> for [&[Vector]; P] {
    #[inline(always)]
    fn get(self, simd: S, panel: usize, k: usize) -> S::F {
        simd.load(&self[panel][k])
    }
}

/// Adds `Σ_k x(row, k) * w[panel][k]` to a tile of `R` rows by `P` panels, `k` ascending.
///
/// Each output is one chain of fused multiply-adds, so its value depends on nothing but its row and its weights:
/// not on `R`, on `P` or on how the range of `k` is cut. While the loop runs the tile stays in registers.
#[inline(always)]
#[expect(clippy::needless_range_loop, reason = "iterators over arrays of vectors end up in memory")]
pub(crate) fn multiply_add<S: Simd, const R: usize, const P: usize>(
    simd: S,
    k: Range<usize>,
    x: impl Fn(usize, usize) -> f32,
    w: impl Panels<S, P>,
    tile: &mut [[Vector; P]; R],
) {
    let mut sums = [[simd.zero(); P]; R];
    for row in 0..R {
        for panel in 0..P {
            sums[row][panel] = simd.load(&tile[row][panel]);
        }
    }
    for k in k {
        let mut weights = [simd.zero(); P];
        for panel in 0..P {
            weights[panel] = w.get(simd, panel, k);
        }
        for row in 0..R {
            let x = simd.splat(x(row, k));
            for panel in 0..P {
                sums[row][panel] = simd.fma(x, weights[panel], sums[row][panel]);
            }
        }
    }
    for row in 0..R {
        for panel in 0..P {
            simd.store(sums[row][panel], &mut tile[row][panel]);
        }
    }
}

/// Evaluates an expression with a number of rows, at most `$S::TILE_ROWS`, as a constant.
macro_rules! with_rows {
    ($S:ident, $rows:expr, $R:ident => $body:expr) => {
        $crate::kernels::tile::with_rows!(@ $S, $rows, $R => $body; 1 2 3 4 5 6 7 8 9 10 11 12)
    };
    (@ $S:ident, $rows:expr, $R:ident => $body:expr; $($n:literal)*) => {
        match $rows {
            $($n if const { $n <= $S::TILE_ROWS } => { const $R: usize = $n; $body })*
            rows => unreachable!("a tile of {rows} rows"),
        }
    };
}
pub(crate) use with_rows;

/// Splits `count` rows evenly into tiles of at most `most`: the rows of tile `index`.
pub(crate) fn tile_range(count: usize, most: usize, index: usize) -> Range<usize> {
    let tiles = count.div_ceil(most);
    count * index / tiles..count * (index + 1) / tiles
}
