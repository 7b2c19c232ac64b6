//! How the kernels of argmax.cu are launched.

use crate::kernels::cuda::{Arg, Call, Launch};

/// Blocks that a row is shared out to.
pub(super) const PARTS: usize = 16;
const THREADS: u32 = 256;

/// The most likely of each part of `rows`, at least one and less than 2^16, of `width` float32 logits, `stride` apart: u64
/// `[rows, PARTS]`.
pub(super) fn parts(logits: u64, stride: usize, best: u64, [rows, width]: [usize; 2]) -> Call<4> {
    Call {
        kernel: "candlewick_argmax_parts",
        launch: Launch { grid: [PARTS as u32, rows as u32, 1], block: [THREADS, 1, 1], shared_bytes: THREADS / 32 * 8 },
        args: [Arg::Ptr(logits), Arg::U64(stride as u64), Arg::Ptr(best), Arg::U32(width as u32)],
    }
}

/// Which they are: u32 `[rows]`.
pub(super) fn argmax(best: u64, places: u64, rows: usize) -> Call<3> {
    Call {
        kernel: "candlewick_argmax",
        launch: Launch { grid: [rows as u32, 1, 1], block: [32, 1, 1], shared_bytes: 0 },
        args: [Arg::Ptr(best), Arg::U32(PARTS as u32), Arg::Ptr(places)],
    }
}
