//! Norms on a card: a block a vector, whatever is made of it. What RMS norm and layer norm share.

#[cfg(feature = "cuda")]
use candle_core::{DType, Tensor};

use super::launch::{Arg, Launch};
#[cfg(feature = "cuda")]
use super::{
    launch::Call,
    module::Module,
    tensors::{card, empty, pointer, rows},
};
#[cfg(feature = "cuda")]
use crate::error::{Error, Result};

/// Addresses on the card, and sizes.
pub(in crate::kernels) struct NormLaunch {
    /// Which kernel, by the type of `out`.
    pub(in crate::kernels) kernel: &'static str,
    /// Float32, `rows` of `vectors * width`, `stride` numbers apart.
    pub(in crate::kernels) x: u64,
    pub(in crate::kernels) stride: usize,
    /// Float32 `[width]`.
    pub(in crate::kernels) weight: u64,
    /// `[rows, vectors, width]`.
    pub(in crate::kernels) out: u64,
    pub(in crate::kernels) rows: usize,
    pub(in crate::kernels) vectors: usize,
    pub(in crate::kernels) width: usize,
    pub(in crate::kernels) eps: f64,
}

impl NormLaunch {
    /// A block a vector, with room to make so many sums of it: at least one vector, and less than 2^16 a row.
    pub(in crate::kernels) fn launch(&self, sums: u32) -> Launch {
        let threads = threads(self.width);
        Launch {
            grid: [self.rows as u32, self.vectors as u32, 1],
            block: [threads, 1, 1],
            // A float a warp.
            shared_bytes: sums * (threads / 32) * 4,
        }
    }

    /// What every norm's kernel begins with.
    pub(in crate::kernels) fn args(&self) -> [Arg; 6] {
        [
            Arg::Ptr(self.x),
            Arg::U64(self.stride as u64),
            Arg::Ptr(self.weight),
            Arg::Ptr(self.out),
            Arg::U32(self.width as u32),
            Arg::F32(self.eps as f32),
        ]
    }
}

/// Threads for one vector: a function of its width alone, because the order of its sum is one of the threads.
fn threads(width: usize) -> u32 {
    (width.div_ceil(4).next_power_of_two() as u32).clamp(32, 1024)
}

/// The norms of the vectors of `x`, of a checked shape, in float32, bfloat16 or float16, by the kernel of that type.
///
/// # Errors
/// `Internal` where the card has no room or the type is none of the kernels'.
///
/// # Safety
/// `call` must give a call of one of `kernels` in `module` with that kernel's arguments, whose addresses beside the launch's own
/// cover as many numbers as the weight has.
#[cfg(feature = "cuda")]
pub(in crate::kernels) unsafe fn normed<const N: usize>(
    (module, kernels): (&Module, [&'static str; 3]),
    x: &Tensor,
    (weight, eps): (&Tensor, f64),
    out: DType,
    call: impl Fn(&NormLaunch) -> Call<N>,
) -> Result<Tensor> {
    let kernel = match out {
        DType::F32 => kernels[0],
        DType::BF16 => kernels[1],
        DType::F16 => kernels[2],
        _ => return Err(Error::internal(format!("{}: there is none that makes {out:?}", kernels[0]))),
    };
    let (card, weight, rows) = (card(x)?, weight.contiguous()?, rows(x)?);
    let (normed, width) = (empty(card, x.shape(), out)?, weight.dims()[0]);
    if rows.count * rows.width == 0 {
        return Ok(normed);
    }
    let launch = NormLaunch {
        kernel,
        x: rows.address,
        stride: rows.stride,
        weight: pointer(&weight, DType::F32)?,
        out: pointer(&normed, out)?,
        rows: rows.count,
        vectors: rows.width / width,
        width,
        eps,
    };
    // SAFETY: the caller's promise; `rows` and `normed` have these sizes, the weight has `width` numbers.
    unsafe { module.launch(card, &call(&launch)) }?;
    Ok(normed)
}
