//! Few rows in pairs: weights are paired and multiplied at once, one pair of panels after another, as they lie in memory.
//!
//! Of one stream the processor fetches by itself what comes, up to some distance. A tile of few rows is done before more is
//! needed than that, and further requests only come in between; over more rows the processor stops to look ahead, and is asked.

use super::{
    super::{
        packed::PAIR,
        panel::{Float, QUADS},
    },
    CHAINS, Step, Task,
    rows::{CHUNK_STEPS, FEW_TILES, FULL_TILE},
};
use crate::kernels::simd::{LANES, Simd};

/// How far ahead of the products of full tiles weights are asked for.
const AHEAD_BYTES: usize = 8 * 1024;

impl<F: Float> Task<'_, F> {
    /// A tile of `R` rows in `T` terms, or a few full ones.
    #[inline(always)]
    pub(super) fn few<S: Simd, const R: usize, const T: usize>(&self, simd: S) {
        let tiles = self.x.tiles();
        for pair in self.pairs.clone() {
            let mut sums = [[[[0.0; LANES]; R]; PAIR]; FEW_TILES];
            for (chunk, steps) in self.panels.pair(pair).steps().chunks(CHUNK_STEPS).enumerate() {
                let mut x = [&[] as &[[Step<R>; T]]; FEW_TILES];
                for (tile, x) in x[..tiles].iter_mut().enumerate() {
                    *x = self.x.chunk::<R>(tile, chunk).as_chunks().0;
                }
                // One loop over steps and panels: of two the compiler makes one of both panels, for which there are too few
                // registers.
                for (index, packed) in steps.as_flattened().iter().enumerate() {
                    if const { R == FULL_TILE } {
                        simd.prefetch_far(std::ptr::from_ref(packed).wrapping_byte_add(AHEAD_BYTES));
                    }
                    for (x, sums) in x[..tiles].iter().zip(&mut sums) {
                        add::<S, F, R, T>(simd, packed, &x[index / PAIR], &mut sums[index % PAIR]);
                    }
                }
            }
            for (tile, sums) in sums[..tiles].iter().enumerate() {
                for (r, row) in self.x.rows_of(tile).enumerate() {
                    for (panel, sums) in sums.iter().enumerate() {
                        self.out.store(simd, row, pair * PAIR + panel, &sums[r]);
                    }
                }
            }
        }
    }
}

/// Adds the products of a tile's step with a panel's weights, which are paired on the way: out of registers is faster than for all
/// tiles at once, by way of the first-level cache.
#[inline(always)]
#[expect(clippy::needless_range_loop, reason = "inputs lie by term, then by four, and are taken by four, then by term")]
fn add<S: Simd, F: Float, const R: usize, const T: usize>(
    simd: S,
    packed: &F::Panel,
    x: &[Step<R>; T],
    sums: &mut [[f32; LANES]; R],
) {
    let mut chains = [[[simd.zero(); R]; CHAINS]; T];
    for four in 0..QUADS {
        let weights = F::pairs(simd, packed, four);
        for t in 0..T {
            for chain in 0..CHAINS {
                for r in 0..R {
                    chains[t][chain][r] = simd.dot_pairs(chains[t][chain][r], weights[chain], x[t][four][chain][r]);
                }
            }
        }
    }
    for [evens, odds] in chains {
        for r in 0..R {
            let sum = simd.load(&sums[r]);
            simd.store(simd.add(simd.add(evens[r], odds[r]), sum), &mut sums[r]);
        }
    }
}
