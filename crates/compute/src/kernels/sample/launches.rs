//! How the kernel of sample.cu is launched.

use crate::kernels::cuda::{Arg, Call, Launch};

const THREADS: u32 = 1024;
/// What the kernel calls Shared.
const SHARED_BYTES: u32 = 256 * (4 + 8) + 32 * (8 + 4) + 3 * 8;

/// Addresses on the card, and sizes.
pub(super) struct SampleLaunch {
    /// Float32, and the numbers between two rows.
    pub(super) logits: (u64, usize),
    pub(super) rows: usize,
    pub(super) width: usize,
    /// Float32 `[rows]`.
    pub(super) temperatures: u64,
    /// Float32 `[rows]`.
    pub(super) min_ps: u64,
    /// `[rows]`.
    pub(super) top_ks: u64,
    /// Float32 `[rows]`.
    pub(super) top_ps: u64,
    /// Float64 `[rows]`.
    pub(super) uniforms: u64,
    /// `[rows]`.
    pub(super) tokens: u64,
}

impl SampleLaunch {
    /// A block a row, at least one.
    pub(super) fn call(&self) -> Call<9> {
        Call {
            kernel: "candlewick_sample",
            launch: Launch { grid: [self.rows as u32, 1, 1], block: [THREADS, 1, 1], shared_bytes: SHARED_BYTES },
            args: [
                Arg::Ptr(self.logits.0),
                Arg::U64(self.logits.1 as u64),
                Arg::U32(self.width as u32),
                Arg::Ptr(self.temperatures),
                Arg::Ptr(self.min_ps),
                Arg::Ptr(self.top_ks),
                Arg::Ptr(self.top_ps),
                Arg::Ptr(self.uniforms),
                Arg::Ptr(self.tokens),
            ],
        }
    }
}
