//! The vectors that ggml's IQ formats choose from. Each grid is a set of vectors over a few values in ascending order,
//! the first element counting least, so that a bit for each possible vector says all of it: `grids.bin`, written by
//! `tests/fixtures/ggml_blocks/make.py`.

use std::sync::LazyLock;

static BITS: &[u8; 4 * 821 + 2 * 512] = include_bytes!("grids.bin");

/// The vectors of one format.
pub(super) struct Grid {
    elements: usize,
    vectors: LazyLock<Vec<i8>>,
}

impl Grid {
    /// Vector `index`, of those that the format has bits for.
    pub(super) fn vector(&self, index: usize) -> &[i8] {
        &self.vectors[index * self.elements..][..self.elements]
    }
}

/// The grid of vectors of `elements` out of `values` whose bits start at `START`.
fn decode<const START: usize>(values: &[i8], elements: usize) -> Vec<i8> {
    let possible = values.len().pow(elements as u32);
    let is_in = |number: &usize| BITS[START + number / 8] >> (number % 8) & 1 == 1;
    let vector = |number: usize| (0..elements).map(move |k| values[number / values.len().pow(k as u32) % values.len()]);
    (0..possible).filter(is_in).flat_map(vector).collect()
}

const IQ2: &[i8] = &[8, 25, 43];

pub(super) static GRID_IQ2_XXS: Grid = Grid { elements: 8, vectors: LazyLock::new(|| decode::<0>(IQ2, 8)) };
pub(super) static GRID_IQ2_XS: Grid = Grid { elements: 8, vectors: LazyLock::new(|| decode::<821>(IQ2, 8)) };
pub(super) static GRID_IQ2_S: Grid = Grid { elements: 8, vectors: LazyLock::new(|| decode::<1642>(IQ2, 8)) };
pub(super) static GRID_IQ1_S: Grid = Grid { elements: 8, vectors: LazyLock::new(|| decode::<2463>(&[-1, 0, 1], 8)) };
pub(super) static GRID_IQ3_XXS: Grid =
    Grid { elements: 4, vectors: LazyLock::new(|| decode::<3284>(&[4, 12, 20, 28, 36, 44, 52, 62], 4)) };
pub(super) static GRID_IQ3_S: Grid =
    Grid { elements: 4, vectors: LazyLock::new(|| decode::<3796>(&[1, 3, 5, 7, 9, 11, 13, 15], 4)) };

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_grid_has_a_vector_for_every_index() {
        for (grid, vectors) in [
            (&GRID_IQ2_XXS, 256),
            (&GRID_IQ2_XS, 512),
            (&GRID_IQ2_S, 1024),
            (&GRID_IQ1_S, 2048),
            (&GRID_IQ3_XXS, 256),
            (&GRID_IQ3_S, 512),
        ] {
            assert_eq!(grid.vectors.len(), vectors * grid.elements);
        }
    }
}
