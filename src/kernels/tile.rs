//! The register tile: the one loop of multiply-adds under Linear and attention.

use super::simd::{LANES, Simd};

/// Adds `Σ_k x(row, k) * w(panel, k)` to a tile of `R` rows by `P` panels of sixteen outputs, `k` ascending.
///
/// Each output is one chain of fused multiply-adds, so its value depends on nothing but its row and its weights:
/// not on `R`, on `P` or on how the range of `k` is cut.
#[inline(always)]
pub(crate) fn multiply_add<'a, S: Simd, const R: usize, const P: usize>(
    simd: S,
    k: std::ops::Range<usize>,
    x: impl Fn(usize, usize) -> f32,
    w: impl Fn(usize, usize) -> &'a [f32; LANES],
    mut sums: [[S::F; P]; R],
) -> [[S::F; P]; R] {
    for k in k {
        let w: [S::F; P] = std::array::from_fn(|panel| simd.load(w(panel, k)));
        for (row, sums) in sums.iter_mut().enumerate() {
            let x = simd.splat(x(row, k));
            for (sum, &w) in sums.iter_mut().zip(&w) {
                *sum = simd.fma(x, w, *sum);
            }
        }
    }
    sums
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
pub(crate) fn tile_range(count: usize, most: usize, index: usize) -> std::ops::Range<usize> {
    let tiles = count.div_ceil(most);
    count * index / tiles..count * (index + 1) / tiles
}
