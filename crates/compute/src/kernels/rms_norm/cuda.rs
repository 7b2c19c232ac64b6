//! RMS norm on an NVIDIA card.

use candle_core::{DType, Tensor};

use super::launches::RmsNormLaunch;
use crate::{
    error::{Error, Result},
    kernels::cuda::{Module, card, empty, module, pointer, rows},
};

static MODULE: Module = module!("rms_norm");

/// As [`rms_norm`](super::rms_norm), of checked shapes, rounded to float32, float16 or bfloat16.
pub(in crate::kernels) fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64, out: DType) -> Result<Tensor> {
    let kernel = match out {
        DType::F32 => "candlewick_rms_norm_f32",
        DType::BF16 => "candlewick_rms_norm_bf16",
        DType::F16 => "candlewick_rms_norm_f16",
        _ => return Err(Error::internal(format!("rms_norm: no kernel makes {out:?}"))),
    };
    let (card, weight, rows) = (card(x)?, weight.contiguous()?, rows(x)?);
    let normed = empty(card, x.shape(), out)?;
    let width = weight.dims()[0];
    if rows.count * rows.width == 0 {
        return Ok(normed);
    }
    let launch = RmsNormLaunch {
        kernel,
        x: rows.address,
        stride: rows.stride,
        weight: pointer(&weight, DType::F32)?,
        residual: 0,
        out: pointer(&normed, out)?,
        rows: rows.count,
        vectors: rows.width / width,
        width,
        eps,
    };
    // SAFETY: the kernel's arguments; `rows` and `normed` have these sizes, `weight` has `width` numbers.
    unsafe { MODULE.launch(card, &launch.call()) }?;
    Ok(normed)
}
