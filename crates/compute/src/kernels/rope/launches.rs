//! How the kernel of rope.cu is launched.

use super::RopeStyle;
use crate::kernels::cuda::{Arg, Call, Launch};

/// Heads that a block takes, a warp each.
pub(in crate::kernels) const HEADS_A_BLOCK: usize = 4;

/// Addresses on the card, and sizes.
pub(super) struct RopeLaunch {
    /// Float32, `rows` of `heads * head_dim`, `stride` numbers apart.
    pub(super) x: u64,
    pub(super) stride: usize,
    /// `[rows]`.
    pub(super) positions: u64,
    /// `[positions, 2, pairs]`.
    pub(super) table: u64,
    /// Float32 `[head_dim]` and what is added to the mean of squares; 0 for no norm.
    pub(super) norm: (u64, f64),
    /// Float32 `[rows, heads, head_dim]`.
    pub(super) out: u64,
    pub(super) rows: usize,
    pub(super) heads: usize,
    pub(super) head_dim: usize,
    pub(super) pairs: usize,
    pub(super) style: RopeStyle,
}

impl RopeLaunch {
    /// A warp a head, at least one.
    pub(super) fn call(&self) -> Call<12> {
        Call {
            kernel: "candlewick_rope_f32",
            launch: a_warp_each(self.rows * self.heads),
            args: [
                Arg::Ptr(self.x),
                Arg::U64(self.stride as u64),
                Arg::Ptr(self.positions),
                Arg::Ptr(self.table),
                Arg::Ptr(self.norm.0),
                Arg::F32(self.norm.1 as f32),
                Arg::Ptr(self.out),
                Arg::U32(self.rows as u32),
                Arg::U32(self.heads as u32),
                Arg::U32(self.head_dim as u32),
                Arg::U32(self.pairs as u32),
                Arg::U32(u32::from(self.style == RopeStyle::Interleaved)),
            ],
        }
    }
}

/// Blocks for so many heads.
pub(in crate::kernels) fn a_warp_each(heads: usize) -> Launch {
    let grid = [heads.div_ceil(HEADS_A_BLOCK) as u32, 1, 1];
    Launch { grid, block: [32 * HEADS_A_BLOCK as u32, 1, 1], shared_bytes: 0 }
}
