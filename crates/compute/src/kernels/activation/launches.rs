//! How the kernels of activation.cu are launched.

use super::{Activation, Gate};
use crate::kernels::cuda::{Arg, Call, Launch};

const THREADS: u32 = 256;
/// Rows that a launch gives blocks of their own; a block goes on to the next of its rows.
const MOST_ROWS: usize = 32_768;

/// Addresses on the card, and sizes.
pub(super) struct ActivationLaunch {
    /// Which kernel, by the type of `out`.
    pub(super) kernel: &'static str,
    /// Float32 rows, `stride` numbers apart.
    pub(super) x: u64,
    pub(super) stride: usize,
    /// `[rows, width]`.
    pub(super) out: u64,
    pub(super) rows: usize,
    pub(super) width: usize,
}

impl ActivationLaunch {
    /// Of rows of `2 * width`, at least one of each.
    pub(super) fn gated(&self, gate: Gate) -> Call<8> {
        let (kind, alpha, limit) = match gate {
            Gate::Of(activation) => (number(activation), 0.0, 0.0),
            Gate::Sigmoid => (4, 0.0, 0.0),
            Gate::Clipped { alpha, limit } => (5, alpha, limit),
        };
        let [x, stride, out, rows, width] = self.args();
        let args = [x, stride, out, rows, width, Arg::U32(kind), Arg::F32(alpha), Arg::F32(limit)];
        Call { kernel: self.kernel, launch: self.launch(), args }
    }

    /// Of rows of `width`, at least one of each.
    pub(super) fn activated(&self, activation: Activation) -> Call<6> {
        let [x, stride, out, rows, width] = self.args();
        let args = [x, stride, out, rows, width, Arg::U32(number(activation))];
        Call { kernel: self.kernel, launch: self.launch(), args }
    }

    fn launch(&self) -> Launch {
        let grid = [(self.width as u32).div_ceil(THREADS), self.rows.min(MOST_ROWS) as u32, 1];
        Launch { grid, block: [THREADS, 1, 1], shared_bytes: 0 }
    }

    fn args(&self) -> [Arg; 5] {
        [
            Arg::Ptr(self.x),
            Arg::U64(self.stride as u64),
            Arg::Ptr(self.out),
            Arg::U32(self.rows as u32),
            Arg::U32(self.width as u32),
        ]
    }
}

/// As activation.cu has them.
pub(in crate::kernels) fn number(activation: Activation) -> u32 {
    match activation {
        Activation::Silu => 0,
        Activation::Gelu => 1,
        Activation::GeluTanh => 2,
        Activation::Relu => 3,
    }
}
