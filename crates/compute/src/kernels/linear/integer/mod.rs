//! Linear for weights that are small integers under scales.
//!
//! Inputs become integers too: 256 of them at a time, a superblock, [rounded](inputs) to -127 to 127 times a float32. The
//! products with the weights' integers times their groups' factors, and of the groups' sums with the factors of minima where
//! there are any, are summed exactly in 32 bits, so it does not matter in what order or with which instructions; and
//! superblocks are added in the order of the inputs:
//!
//! `sum = fma(fma(minima, -min_unit, products · unit), input_scale, sum)`, without the inner `fma` where there are no minima,
//! each operation rounded to float32 once.
//!
//! Thus a row has the same bits in every batch and on every instruction set. Formats that have a scale for each 32 weights
//! alone get their factors and units when they are packed ([`units`](super::panel)).

mod inputs;
mod many;
#[cfg(test)]
mod tests;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod tiles;
mod vector;

use std::ops::Range;

use super::{inputs::Source, outputs::Outputs, packed::Packed, panel::with_quantized};
use crate::kernels::simd::Level;
use inputs::{Rows, Wanted};

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
    pub(super) fn new(level: Level, x: &Source<'_>, weight: &Packed) -> Self {
        let level = match level {
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            Level::Amx(amx) if x.count() <= FEW_ROWS => amx.vnni().level(),
            level => level,
        };
        let (height, in_tiles) = match level {
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            Level::Amx(_) => (tiles::HEIGHT, true),
            _ => (vector::height(level, x.count()), false),
        };
        let wanted = with_quantized!(weight.format, F => Wanted::of::<F>(in_tiles));
        Self { rows: Rows::new(level, x, height, wanted), level }
    }

    /// Writes the products with some groups of panels.
    pub(super) fn linear(&self, weight: &Packed, groups: Range<usize>, out: &Outputs<'_>) {
        let rows = &self.rows;
        with_quantized!(weight.format, F => {
            let panels = weight.panels::<F>();
            match self.level {
                #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
                Level::Amx(amx) => amx.run_integers(tiles::Task::<F> { rows, panels, groups, out }),
                level if rows.count > vector::MOST_ROWS => level.run_integers(many::Task::<F> { rows, panels, groups, out }),
                level => level.run_integers(vector::Task::<F> { rows, panels, groups, out }),
            }
        });
    }
}
