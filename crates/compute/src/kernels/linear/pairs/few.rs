//! Few rows in pairs: weights are paired in registers and multiplied at once, one pair of panels after another, as they lie in
//! memory. Nothing is asked for ahead: of one stream the processor does so by itself, and further requests only come in between.

use super::{
    super::{
        packed::PAIR,
        panel::{Float, QUADS},
    },
    CHAINS, Task,
};
use crate::kernels::simd::{LANES, Simd};

impl<F: Float> Task<'_, F> {
    /// One tile of `R` rows in `T` terms.
    #[inline(always)]
    pub(super) fn few<S: Simd, const R: usize, const T: usize>(&self, simd: S) {
        let x = self.x.only_tile::<R, T>();
        for pair in self.pairs.clone() {
            let mut sums = [[[0.0; LANES]; R]; PAIR];
            // One loop over steps and panels: of two the compiler makes one of both panels, for which there are too few registers.
            for (index, packed) in self.panels.pair(pair).steps.as_flattened().iter().enumerate() {
                let (x, sums) = (&x[index / PAIR], &mut sums[index % PAIR]);
                let mut chains = [[[simd.zero(); R]; CHAINS]; T];
                for four in 0..QUADS {
                    let weights = F::pairs(simd, packed, four);
                    for t in 0..T {
                        for chain in 0..CHAINS {
                            for r in 0..R {
                                let x = x[t][four][chain][r];
                                chains[t][chain][r] = simd.dot_pairs(chains[t][chain][r], weights[chain], x);
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
            for (r, row) in self.x.rows_of(0).enumerate() {
                for (panel, sums) in sums.iter().enumerate() {
                    self.out.store(simd, row, pair * PAIR + panel, &sums[r]);
                }
            }
        }
    }
}
