//! How the kernels of rms_norm.cu are launched.

use crate::kernels::cuda::{Arg, Call, Launch};

/// Addresses on the card, and sizes.
pub(super) struct RmsNormLaunch {
    /// Which kernel, by the type of `out`.
    pub(super) kernel: &'static str,
    /// Float32, `rows` of `vectors * width`, `stride` numbers apart.
    pub(super) x: u64,
    pub(super) stride: usize,
    /// Float32 `[width]`.
    pub(super) weight: u64,
    /// Float32 `[rows, vectors, width]`, to which `x` is added before the norm of the sum is taken; 0 for none.
    pub(super) residual: u64,
    /// `[rows, vectors, width]`.
    pub(super) out: u64,
    pub(super) rows: usize,
    pub(super) vectors: usize,
    pub(super) width: usize,
    pub(super) eps: f64,
}

impl RmsNormLaunch {
    /// A block a vector: at least one, and less than 2^16 a row.
    pub(super) fn call(&self) -> Call<7> {
        let threads = threads(self.width);
        Call {
            kernel: self.kernel,
            launch: Launch {
                grid: [self.rows as u32, self.vectors as u32, 1],
                block: [threads, 1, 1],
                shared_bytes: threads / 32 * 4,
            },
            args: [
                Arg::Ptr(self.x),
                Arg::U64(self.stride as u64),
                Arg::Ptr(self.weight),
                Arg::Ptr(self.residual),
                Arg::Ptr(self.out),
                Arg::U32(self.width as u32),
                Arg::F32(self.eps as f32),
            ],
        }
    }
}

/// Threads for one vector: a function of its width alone, because the order of its sum is one of the threads.
pub(in crate::kernels) fn threads(width: usize) -> u32 {
    (width.div_ceil(4).next_power_of_two() as u32).clamp(32, 1024)
}
