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

/// Neighbouring entries that are two pairs: the first and the third, of the even chain, and the others, of the odd one.
pub(super) const FOUR: usize = 4;

/// Where a tile's pairs of weights come from.
pub(super) trait PairPanels<S: Simd, const P: usize>: Copy {
    /// Entries `k` and `k + 2` of a panel, the first in the high halves. Implementations are `#[inline(always)]`.
    fn get(self, simd: S, panel: usize, k: usize) -> S::I;
}

/// Sums of `R` rows by `P` panels, in registers as far as there are some.
pub(super) type Tile<S, const R: usize, const P: usize> = [[<S as Simd>::F; P]; R];

/// Rows times panels whose two chains and sums stay in registers beside each other.
const BOTH_CHAINS: usize = 8;

/// A group's two chains.
pub(super) struct Chains<S: Simd, const R: usize, const P: usize> {
    even: Tile<S, R, P>,
    odd: Tile<S, R, P>,
}

#[expect(clippy::needless_range_loop, reason = "iterators over arrays of vectors end up in memory")]
impl<S: Simd, const R: usize, const P: usize> Chains<S, R, P> {
    #[inline(always)]
    pub(super) fn new(simd: S) -> Self {
        Self { even: [[simd.zero(); P]; R], odd: [[simd.zero(); P]; R] }
    }

    /// Takes some entries of the group, which come after those that it has: adds `x(row, k) * w[panel][k]`.
    ///
    /// Each chain's value depends on nothing but its row and its weights: not on `R`, on `P` or on how entries are cut.
    #[inline(always)]
    pub(super) fn take(&mut self, simd: S, k: Range<usize>, x: impl Fn(usize, usize) -> f32, w: impl Panels<S, P>) {
        if const { R * P <= BOTH_CHAINS } {
            let (mut even, mut odd) = (self.even, self.odd);
            let mut next = k.start;
            if next % 2 == 1 && next < k.end {
                multiply_add(simd, next, &x, w, &mut odd);
                next += 1;
            }
            while next + 1 < k.end {
                multiply_add(simd, next, &x, w, &mut even);
                multiply_add(simd, next + 1, &x, w, &mut odd);
                next += 2;
            }
            if next < k.end {
                multiply_add(simd, next, &x, w, &mut even);
            }
            (self.even, self.odd) = (even, odd);
        } else {
            for (first, chain) in [(k.start.next_multiple_of(2), &mut self.even), (k.start | 1, &mut self.odd)] {
                let mut sums = *chain;
                let mut next = first;
                while next < k.end {
                    multiply_add(simd, next, &x, w, &mut sums);
                    next += 2;
                }
                *chain = sums;
            }
        }
    }

    /// Adds the group to the sums so far.
    #[inline(always)]
    pub(super) fn add_to(&self, simd: S, sums: &mut Tile<S, R, P>) {
        for row in 0..R {
            for panel in 0..P {
                let group = simd.add(self.even[row][panel], self.odd[row][panel]);
                sums[row][panel] = simd.add(group, sums[row][panel]);
            }
        }
    }
}

/// Adds a group's products to the sums so far: those of the pairs `x(row, four, chain)` with those of some panels, of
/// whole fours each, one after another. The same bits as [`Chains`] give.
#[inline(always)]
pub(super) fn add_group<S: Simd, const R: usize, const P: usize, const N: usize>(
    simd: S,
    parts: [(Range<usize>, impl PairPanels<S, P>); N],
    x: impl Fn(usize, usize, usize) -> u32,
    sums: &mut Tile<S, R, P>,
) {
    let mut chains = Chains::new(simd);
    if const { R * P <= BOTH_CHAINS } {
        for (k, w) in parts {
            let mut next = k.start;
            while next < k.end {
                add_pairs(simd, next, 0, &x, w, &mut chains.even);
                add_pairs(simd, next, 1, &x, w, &mut chains.odd);
                next += FOUR;
            }
        }
    } else {
        for (which, chain) in [(0, &mut chains.even), (1, &mut chains.odd)] {
            let mut sums = *chain;
            for (k, w) in &parts {
                let mut next = k.start;
                while next < k.end {
                    add_pairs(simd, next, which, &x, *w, &mut sums);
                    next += FOUR;
                }
            }
            *chain = sums;
        }
    }
    chains.add_to(simd, sums);
}

/// Adds the products of one pair of each row and panel to a tile.
#[inline(always)]
#[expect(clippy::needless_range_loop, reason = "iterators over arrays of vectors end up in memory")]
fn add_pairs<S: Simd, const R: usize, const P: usize>(
    simd: S,
    k: usize,
    chain: usize,
    x: &impl Fn(usize, usize, usize) -> u32,
    w: impl PairPanels<S, P>,
    sums: &mut Tile<S, R, P>,
) {
    let mut weights = [w.get(simd, 0, k + chain); P];
    for panel in 1..P {
        weights[panel] = w.get(simd, panel, k + chain);
    }
    for row in 0..R {
        let x = x(row, k / FOUR, chain);
        for panel in 0..P {
            sums[row][panel] = simd.dot_pairs(sums[row][panel], weights[panel], x);
        }
    }
}

/// Adds `x(row, k) * w[panel][k]` to a tile.
#[inline(always)]
#[expect(clippy::needless_range_loop, reason = "iterators over arrays of vectors end up in memory")]
fn multiply_add<S: Simd, const R: usize, const P: usize>(
    simd: S,
    k: usize,
    x: &impl Fn(usize, usize) -> f32,
    w: impl Panels<S, P>,
    sums: &mut Tile<S, R, P>,
) {
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
