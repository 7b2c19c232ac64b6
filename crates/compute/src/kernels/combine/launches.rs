//! How the kernel of combine.cu is launched.

use crate::kernels::cuda::{Arg, Call, Launch};

/// Addresses on the card, and sizes.
pub(super) struct CombineLaunch {
    /// Float32, and the numbers between two rows.
    pub(super) rows: (u64, usize),
    /// `[count, each]`.
    pub(super) places: u64,
    /// Float32 `[count, each]`.
    pub(super) weights: u64,
    /// Float32, and the numbers between two rows; 0 for none.
    pub(super) onto: (u64, usize),
    /// Float32 `[count, width]`.
    pub(super) out: u64,
    pub(super) count: usize,
    pub(super) each: usize,
    pub(super) width: usize,
}

impl CombineLaunch {
    /// At least one number.
    pub(super) fn call(&self) -> Call<10> {
        const THREADS: u32 = 256;
        const MOST_ROWS: usize = 32_768;
        let grid = [(self.width as u32).div_ceil(THREADS), self.count.min(MOST_ROWS) as u32, 1];
        Call {
            kernel: "candlewick_combine",
            launch: Launch { grid, block: [THREADS, 1, 1], shared_bytes: 0 },
            args: [
                Arg::Ptr(self.rows.0),
                Arg::U64(self.rows.1 as u64),
                Arg::Ptr(self.places),
                Arg::Ptr(self.weights),
                Arg::Ptr(self.onto.0),
                Arg::U64(self.onto.1 as u64),
                Arg::Ptr(self.out),
                Arg::U32(self.count as u32),
                Arg::U32(self.each as u32),
                Arg::U32(self.width as u32),
            ],
        }
    }
}
