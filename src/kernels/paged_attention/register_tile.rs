//! The register tile: the loop of multiply-adds under attention where there are no tiles of the machine's own.
//!
//! Products are summed as [`tdpbf16ps`](crate::kernels::linear) sums them: entries are taken in groups of 32, of which
//! the even ones are one chain of fused multiply-adds, the odd ones another, both from zero; the sum of the two is added
//! to the sum so far.

use std::ops::Range;

use crate::kernels::simd::{LANES, Simd};

/// Sixteen neighbouring outputs.
pub(super) type Vector = [f32; LANES];

/// Entries whose products are summed before they are added to others; groups begin at multiples of it.
pub(super) const GROUP: usize = 32;

/// Where a tile's vectors of weights come from.
pub(super) trait Panels<S: Simd, const P: usize>: Copy {
    /// Entry `k` of a panel. Implementations are `#[inline(always)]`, which a closure cannot be.
    fn get(self, simd: S, panel: usize, k: usize) -> S::F;
}

impl<S: Simd, const P: usize> Panels<S, P> for [&[Vector]; P] {
    #[inline(always)]
    fn get(self, simd: S, panel: usize, k: usize) -> S::F {
        simd.load(&self[panel][k])
    }
}

/// A group's two chains for `R` rows by `P` panels.
pub(super) struct Chains<const R: usize, const P: usize>([[[Vector; P]; R]; 2]);

impl<const R: usize, const P: usize> Chains<R, P> {
    pub(super) const ZERO: Self = Self([[[[0.0; LANES]; P]; R]; 2]);

    /// Takes some entries of the group, which come after those that it has.
    #[inline(always)]
    pub(super) fn take<S: Simd>(
        &mut self,
        simd: S,
        k: Range<usize>,
        x: impl Fn(usize, usize) -> f32,
        w: impl Panels<S, P>,
    ) {
        let [even, odd] = &mut self.0;
        multiply_add(simd, k.start.next_multiple_of(2)..k.end, &x, w, even);
        multiply_add(simd, (k.start | 1)..k.end, &x, w, odd);
    }

    /// Adds the group to the sums so far.
    #[inline(always)]
    pub(super) fn add_to<S: Simd>(&self, simd: S, sums: &mut [[Vector; P]; R]) {
        let [even, odd] = &self.0;
        for ((sums, even), odd) in sums.iter_mut().zip(even).zip(odd) {
            for ((sum, even), odd) in sums.iter_mut().zip(even).zip(odd) {
                simd.store(simd.add(simd.add(simd.load(even), simd.load(odd)), simd.load(sum)), sum);
            }
        }
    }
}

/// Adds `x(row, k) * w[panel][k]` for every other `k` to a tile of `R` rows by `P` panels, `k` ascending.
///
/// Each output is one chain, so its value depends on nothing but its row and its weights: not on `R` or on `P`. While the
/// loop runs the tile stays in registers.
#[inline(always)]
#[expect(clippy::needless_range_loop, reason = "iterators over arrays of vectors end up in memory")]
fn multiply_add<S: Simd, const R: usize, const P: usize>(
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
    for k in k.step_by(2) {
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
        $crate::kernels::paged_attention::register_tile::with_rows!(@ $S, $rows, $R => $body; 1 2 3 4 5 6 7 8 9 10 11 12)
    };
    (@ $S:ident, $rows:expr, $R:ident => $body:expr; $($n:literal)*) => {
        match $rows {
            $($n if const { $n <= $S::TILE_ROWS } => { const $R: usize = $n; $body })*
            rows => unreachable!("a tile of {rows} rows"),
        }
    };
}
pub(super) use with_rows;

/// Splits `count` rows evenly into tiles of at most `most`: the rows of tile `index`.
pub(super) fn tile_range(count: usize, most: usize, index: usize) -> Range<usize> {
    let tiles = count.div_ceil(most);
    count * index / tiles..count * (index + 1) / tiles
}
