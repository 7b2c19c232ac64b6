//! What the card is asked for around a product, of sizes and addresses alone.

use super::filled;
use crate::kernels::cuda::{Arg, Call, Launch};

/// Blocks of a launch over rows; each takes every so many.
const MOST_ROWS: usize = 32_768;
/// Threads of a block of [`rescale`], and columns that it takes at once.
const THREADS: usize = 256;
/// Columns that a block of [`rescale`] takes.
const COLUMNS: usize = 4 * THREADS;
/// Most blocks in a grid's second dimension.
const MOST_COLUMNS: usize = 65_535;

/// How many rows there are with those that fill up, and how many of them a product has. Where results may not depend on the
/// batch every product is of `invariant` rows: one shape, one algorithm. Else there is one, of as few shapes as are any use.
pub(super) fn rows_of_products(rows: usize, invariant: Option<usize>) -> (usize, usize) {
    match invariant {
        Some(each) => (rows.next_multiple_of(each), each),
        None => (filled(rows), filled(rows)),
    }
}

/// Rows of float32 that are rounded.
pub(super) struct Quantize {
    pub(super) x: u64,
    /// Floats from a row to the next.
    pub(super) stride: usize,
    /// E4M3 `[filled_rows, filled(width)]`.
    pub(super) numbers: u64,
    /// Float32 `[rows]`.
    pub(super) scales: u64,
    pub(super) rows: usize,
    pub(super) width: usize,
    pub(super) filled_rows: usize,
}

impl Quantize {
    pub(super) fn call(&self) -> Call<8> {
        let &Self { x, stride, numbers, scales, rows, width, filled_rows } = self;
        // A maximum is the same in every order, so it may be anybody's; a thread writes four numbers at once.
        let threads = filled(width).div_ceil(4).next_multiple_of(32).min(1024) as u32;
        let grid = [filled_rows.clamp(1, MOST_ROWS) as u32, 1, 1];
        Call {
            kernel: "candlewick_linear_quantize_f8e4m3",
            launch: Launch { grid, block: [threads, 1, 1], shared_bytes: threads / 32 * size_of::<f32>() as u32 },
            args: [
                Arg::Ptr(x),
                Arg::U64(stride as u64),
                Arg::Ptr(numbers),
                Arg::Ptr(scales),
                Arg::U64(rows as u64),
                Arg::U64(width as u64),
                Arg::U64(filled_rows as u64),
                Arg::U64(filled(width) as u64),
            ],
        }
    }
}

/// Sums that become a result: times both scales, plus what is added, where addresses are 0 for none.
pub(super) struct Rescale {
    /// Float32 `[rows, filled(width)]`.
    pub(super) sums: u64,
    /// Float32 `[rows]`.
    pub(super) row_scales: u64,
    /// Float32 `[width]`.
    pub(super) scales: u64,
    /// Float32 `[width]`.
    pub(super) bias: u64,
    pub(super) onto: u64,
    /// Floats from a row of it to the next.
    pub(super) onto_stride: usize,
    /// Float32 `[rows, width]`; `sums` where that is as wide.
    pub(super) out: u64,
    pub(super) rows: usize,
    pub(super) width: usize,
}

impl Rescale {
    pub(super) fn call(&self) -> Call<10> {
        let &Self { sums, row_scales, scales, bias, onto, onto_stride, out, rows, width } = self;
        let columns = width.div_ceil(COLUMNS).clamp(1, MOST_COLUMNS);
        Call {
            kernel: "candlewick_linear_rescale",
            launch: Launch {
                grid: [rows.clamp(1, MOST_ROWS) as u32, columns as u32, 1],
                block: [THREADS as u32, 1, 1],
                shared_bytes: 0,
            },
            args: [
                Arg::Ptr(sums),
                Arg::U64(filled(width) as u64),
                Arg::Ptr(row_scales),
                Arg::Ptr(scales),
                Arg::Ptr(bias),
                Arg::Ptr(onto),
                Arg::U64(onto_stride as u64),
                Arg::Ptr(out),
                Arg::U64(rows as u64),
                Arg::U64(width as u64),
            ],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::FILLED, *};

    #[test]
    fn products_that_may_not_depend_on_the_batch_have_one_shape() {
        for rows in 1..300 {
            let (filled, each) = rows_of_products(rows, Some(64));
            assert_eq!(each, 64);
            assert!(filled >= rows && filled < rows + 64 && filled.is_multiple_of(each), "{rows}: {filled}");
        }
    }

    #[test]
    fn other_products_are_one_of_a_multiple_of_what_the_library_takes() {
        for rows in 1..300 {
            let (filled, each) = rows_of_products(rows, None);
            assert_eq!(filled, each);
            assert!(filled >= rows && filled < rows + FILLED && filled.is_multiple_of(FILLED), "{rows}: {filled}");
        }
    }
}
