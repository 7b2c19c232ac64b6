//! How the kernel of follow.cu is launched.

use crate::kernels::cuda::{Arg, Call, Launch};

const THREADS: u32 = 256;

/// Of u32 `[count]`, at least one, all but `chosen`.
pub(super) fn follow([ids, places, chosen, out]: [u64; 4], count: usize) -> Call<5> {
    let count = count as u32;
    Call {
        kernel: "candlewick_follow",
        launch: Launch { grid: [count.div_ceil(THREADS), 1, 1], block: [THREADS, 1, 1], shared_bytes: 0 },
        args: [Arg::Ptr(ids), Arg::Ptr(places), Arg::Ptr(chosen), Arg::Ptr(out), Arg::U32(count)],
    }
}
