//! How the kernel of gated_delta.cu is launched.

use super::{DeltaHeads, Sharing};
use crate::kernels::cuda::{Arg, Call, Launch};

/// Warps of a block, each with one number of a value.
const WARPS: usize = 8;

/// Addresses on the card, and sizes.
pub(super) struct GatedDeltaLaunch {
    /// Float32, and the numbers between two tokens.
    pub(super) qkv: (u64, usize),
    /// Float32, and the numbers between two tokens.
    pub(super) gating: (u64, usize),
    /// Float32 `[value_heads]`.
    pub(super) rates: u64,
    /// Float32 `[value_heads]`.
    pub(super) biases: u64,
    /// Float32 `[slots, value_heads, strips, key_dim, 16]`.
    pub(super) states: u64,
    /// As [`numbers`](crate::kernels::recurrent::numbers) of at least one row.
    pub(super) rows: u64,
    /// Float32 `[tokens, value_heads * value_dim]`.
    pub(super) out: u64,
    pub(super) num_rows: usize,
    pub(super) heads: DeltaHeads,
}

impl GatedDeltaLaunch {
    /// A warp for each number of a value, for each head and row.
    pub(super) fn call(&self) -> Call<14> {
        let DeltaHeads { key_heads, value_heads, key_dim, value_dim, sharing } = self.heads;
        let grid = [self.num_rows as u32, value_heads as u32, value_dim.div_ceil(WARPS) as u32];
        Call {
            kernel: "candlewick_gated_delta",
            launch: Launch { grid, block: [32 * WARPS as u32, 1, 1], shared_bytes: 0 },
            args: [
                Arg::Ptr(self.qkv.0),
                Arg::U64(self.qkv.1 as u64),
                Arg::Ptr(self.gating.0),
                Arg::U64(self.gating.1 as u64),
                Arg::Ptr(self.rates),
                Arg::Ptr(self.biases),
                Arg::Ptr(self.states),
                Arg::Ptr(self.rows),
                Arg::Ptr(self.out),
                Arg::U32(key_heads as u32),
                Arg::U32(value_heads as u32),
                Arg::U32(key_dim as u32),
                Arg::U32(value_dim as u32),
                Arg::U32((sharing == Sharing::Strided).into()),
            ],
        }
    }
}
