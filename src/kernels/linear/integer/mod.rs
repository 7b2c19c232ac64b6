//! Linear for weights that are small integers under scales.
//!
//! Inputs become integers too: 32 of them at a time, [rounded](inputs) to -127 to 127 times a float32. Of 32 inputs, or 16
//! where a scale of the weight covers no more, the products are summed exactly, in 32 bits, so it does not matter in what
//! order or with which instructions; and blocks are added in the order of the inputs:
//!
//! `sum = fma(dot · weight_scale, input_scale, sum)`, and where weights have a minimum, after each 32 inputs,
//! `sum = fma(minimum, -(input_scale · inputs), sum)`, each product and sum rounded to float32 once.
//!
//! Thus a row has the same bits in every batch and on every instruction set. Inputs in two terms are added one term after
//! the other, block by block.
//!
//! The product of a dot and a scale is made in one of two ways. Where the dot stands in tiles it is converted. Elsewhere its
//! sum begins with the bits of a float from which on a unit is one in the last place, [`MAGIC`], so that they are the float
//! `MAGIC + dot`; `fma(MAGIC + dot, scale, -MAGIC · scale)` is the rounded product, because a scale has so few bits that the
//! last term is exact. They differ in the sign of a zero, which no sum has before it.

mod inputs;
#[cfg(test)]
mod tests;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod tiles;
mod vector;

use std::ops::Range;

use super::{
    Terms,
    inputs::Source,
    outputs::Outputs,
    packed::Packed,
    panel::{Quantized, with_quantized},
};
use crate::kernels::simd::Level;
use inputs::Rows;

/// `1.5 · 2^23`: dots, which are below `2^22`, change the bits of its last places only.
const MAGIC: f32 = 12_582_912.0;
/// Most rows that take less time with vectors than with tiles.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
const FEW_ROWS: usize = 8;

/// Rows as the products take them.
pub(super) struct Inputs {
    rows: Rows,
    level: Level,
}

impl Inputs {
    /// Rounds the rows for products with a weight.
    pub(super) fn new(level: Level, x: &Source<'_>, weight: &Packed, terms: Terms) -> Self {
        let level = match level {
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            Level::Amx(amx) if x.count() <= FEW_ROWS => amx.vnni().level(),
            level => level,
        };
        let height = match level {
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            Level::Amx(_) => tiles::HEIGHT,
            _ => vector::height(level, x.count()),
        };
        let rows = with_quantized!(weight.format, F => Rows::new(level, x, height, terms, F::OFFSET, F::GROUP));
        Self { rows, level }
    }

    /// Writes the products with some groups of panels.
    pub(super) fn linear(&self, weight: &Packed, groups: Range<usize>, out: &Outputs<'_>) {
        let rows = &self.rows;
        with_quantized!(weight.format, F => {
            let panels = weight.panels::<F>();
            match self.level {
                #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
                Level::Amx(amx) => amx.run_integers(tiles::Task::<F> { rows, panels, groups, out }),
                level => level.run_integers(vector::Task::<F> { rows, panels, groups, out }),
            }
        });
    }
}
