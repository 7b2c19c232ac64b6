//! Linear by products of pairs of bfloat16.
//!
//! Two links of a chain are two inputs apart ([`super::arithmetic`]), so pairs are made of four neighbours: the first and the
//! third are of the even chain, the second and the fourth of the odd one. [`few`] rows take the weights as they come, [`many`]
//! share what was paired once.

mod few;
mod many;
mod rows;

use std::ops::Range;

pub(super) use rows::Rows;

use super::{
    outputs::Outputs,
    packed::{PAIR, PANEL_GROUP, Packed, Panels},
    panel::{Float, QUADS, with_float},
};
use crate::kernels::simd::{Kernel, Simd, bf16::Bf16};

/// Chains of a step: of its even inputs, and of its odd ones.
const CHAINS: usize = 2;
/// A step's inputs of `R` rows, or what rounding lost of them: pairs, the first in the high half.
type Step<const R: usize> = [[[u32; R]; CHAINS]; QUADS];

/// Writes `x Wᵀ + bias` of some groups of panels.
pub(super) fn linear(bf16: Bf16, x: &Rows, weight: &Packed, groups: Range<usize>, out: &Outputs<'_>) {
    let pairs = groups.start * PANEL_GROUP / PAIR..groups.end * PANEL_GROUP / PAIR;
    with_float!(weight.format, F => {
        bf16.run(Task::<F> { x, panels: weight.panels::<F>(), pairs, out });
    });
}

/// Some pairs of panels, all rows.
struct Task<'a, F: Float> {
    x: &'a Rows,
    panels: Panels<'a, F>,
    pairs: Range<usize>,
    out: &'a Outputs<'a>,
}

impl<F: Float> Kernel for Task<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        match (self.x.few(), self.x.terms) {
            (Some(1), 1) => self.few::<S, 1, 1>(simd),
            (Some(1), 2) => self.few::<S, 1, 2>(simd),
            (Some(2), 1) => self.few::<S, 2, 1>(simd),
            (Some(2), 2) => self.few::<S, 2, 2>(simd),
            (Some(4), 1) => self.few::<S, 4, 1>(simd),
            (Some(4), 2) => self.few::<S, 4, 2>(simd),
            (Some(8), 1) => self.few::<S, 8, 1>(simd),
            (None, _) => self.many(simd),
            (Some(rows), terms) => unreachable!("a tile of {rows} rows in {terms} terms"),
        }
    }
}
