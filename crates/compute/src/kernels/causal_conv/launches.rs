//! How the kernels of causal_conv.cu are launched.

use crate::kernels::{
    activation::{self, Activation},
    cuda::{Arg, Call, Launch},
};

const THREADS: u32 = 128;
/// Blocks that a row's tokens are shared out to.
const MOST_TOKENS: usize = 256;

/// Addresses on the card, and sizes.
pub(super) struct CausalConvLaunch {
    /// Float32, and the numbers between two tokens.
    pub(super) x: (u64, usize),
    /// Float32 `[taps, channels]`.
    pub(super) weight: u64,
    /// Float32 `[slots, taps - 1, channels]`.
    pub(super) states: u64,
    /// [`numbers`](crate::kernels::recurrent::numbers) of at least one and less than 2^16 rows.
    pub(super) rows: u64,
    /// Float32 `[tokens, channels]`.
    pub(super) out: u64,
    pub(super) num_rows: usize,
    /// Tokens of the longest row.
    pub(super) longest: usize,
    pub(super) taps: usize,
    pub(super) channels: usize,
    pub(super) activation: Activation,
}

impl CausalConvLaunch {
    /// The results, and then the states.
    pub(super) fn calls(&self) -> (Call<9>, Call<6>) {
        let (x, stride, rows) = (Arg::Ptr(self.x.0), Arg::U64(self.x.1 as u64), Arg::Ptr(self.rows));
        let (states, taps, channels) =
            (Arg::Ptr(self.states), Arg::U32(self.taps as u32), Arg::U32(self.channels as u32));
        let kind = Arg::U32(activation::launches::number(self.activation));
        let launch = |z: usize| Launch {
            grid: [(self.channels as u32).div_ceil(THREADS), self.num_rows as u32, z as u32],
            block: [THREADS, 1, 1],
            shared_bytes: 0,
        };
        let results = Call {
            kernel: "candlewick_causal_conv",
            launch: launch(self.longest.min(MOST_TOKENS)),
            args: [x, stride, Arg::Ptr(self.weight), states, rows, Arg::Ptr(self.out), taps, channels, kind],
        };
        let args = [x, stride, states, rows, taps, channels];
        (results, Call { kernel: "candlewick_causal_conv_states", launch: launch(1), args })
    }
}
