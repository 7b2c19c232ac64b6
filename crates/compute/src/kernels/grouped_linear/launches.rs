//! How the kernels of grouped_linear.cu are launched.

use candle_core::DType;

use crate::kernels::{
    cuda::{Arg, Call, Launch},
    route::TILE_ROWS,
};

const THREADS: u32 = 128;
/// Outputs of a block.
const COLUMNS: usize = 64;
/// Bytes of a line in shared memory: of sixteen bits, and of float32.
const LINES: [usize; 2] = [(64 + 8) * 2, (32 + 1) * 4];

/// Addresses on the card, and sizes.
pub(super) struct GroupedLinearLaunch {
    /// Of the weights, and of `x`.
    pub(super) dtype: DType,
    /// `[_, inputs]`.
    pub(super) x: u64,
    /// `[rows]`; 0 where rows are as they come.
    pub(super) tokens: u64,
    /// u64 `[experts]`: addresses of `[outputs, inputs]`.
    pub(super) weights: u64,
    /// Float32 `[experts, outputs]`; 0 for none.
    pub(super) biases: u64,
    /// `[num_tiles, 3]`.
    pub(super) tiles: u64,
    pub(super) num_tiles: usize,
    pub(super) rows_per_tile: usize,
    /// Float32 `[rows, outputs]`.
    pub(super) out: u64,
    pub(super) inputs: usize,
    pub(super) outputs: usize,
}

impl GroupedLinearLaunch {
    /// A block for each tile and 64 outputs, at least one of each; none where no kernel has this type and height.
    pub(super) fn call(&self) -> Option<Call<8>> {
        let low = self.rows_per_tile == TILE_ROWS[0];
        if !low && self.rows_per_tile != TILE_ROWS[1] {
            return None;
        }
        let kernel = match (self.dtype, low) {
            (DType::BF16, true) => "candlewick_grouped_linear_bf16_16",
            (DType::BF16, false) => "candlewick_grouped_linear_bf16_64",
            (DType::F16, true) => "candlewick_grouped_linear_f16_16",
            (DType::F16, false) => "candlewick_grouped_linear_f16_64",
            (DType::F32, true) => "candlewick_grouped_linear_f32_16",
            (DType::F32, false) => "candlewick_grouped_linear_f32_64",
            _ => return None,
        };
        let (stages, line) = match (self.dtype, low) {
            (DType::F32, _) => (1, LINES[1]),
            (_, true) => (4, LINES[0]),
            (_, false) => (3, LINES[0]),
        };
        Some(Call {
            kernel,
            launch: Launch {
                grid: [self.num_tiles as u32, self.outputs.div_ceil(COLUMNS) as u32, 1],
                block: [THREADS, 1, 1],
                shared_bytes: (stages * (self.rows_per_tile + COLUMNS) * line) as u32,
            },
            args: [
                Arg::Ptr(self.x),
                Arg::Ptr(self.tokens),
                Arg::Ptr(self.weights),
                Arg::Ptr(self.biases),
                Arg::Ptr(self.tiles),
                Arg::Ptr(self.out),
                Arg::U32(self.inputs as u32),
                Arg::U32(self.outputs as u32),
            ],
        })
    }
}
