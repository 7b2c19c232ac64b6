//! Layer norm on an NVIDIA card.

use candle_core::{DType, Tensor};

use super::launches::LayerNormLaunch;
use crate::{
    error::{Error, Result},
    kernels::cuda::{Module, card, empty, module, pointer, rows},
};

static MODULE: Module = module!("layer_norm");

/// As [`layer_norm`](super::layer_norm), of checked shapes, rounded to float32, float16 or bfloat16.
pub(in crate::kernels) fn layer_norm(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    eps: f64,
    out: DType,
) -> Result<Tensor> {
    let kernel = match out {
        DType::F32 => "candlewick_layer_norm_f32",
        DType::BF16 => "candlewick_layer_norm_bf16",
        DType::F16 => "candlewick_layer_norm_f16",
        _ => return Err(Error::internal(format!("layer_norm: no kernel makes {out:?}"))),
    };
    let (card, weight, rows) = (card(x)?, weight.contiguous()?, rows(x)?);
    let bias = bias.map(Tensor::contiguous).transpose()?;
    let normed = empty(card, x.shape(), out)?;
    let width = weight.dims()[0];
    if rows.count * rows.width == 0 {
        return Ok(normed);
    }
    let launch = LayerNormLaunch {
        kernel,
        x: rows.address,
        stride: rows.stride,
        weight: pointer(&weight, DType::F32)?,
        bias: bias.as_ref().map_or(Ok(0), |bias| pointer(bias, DType::F32))?,
        out: pointer(&normed, out)?,
        rows: rows.count,
        vectors: rows.width / width,
        width,
        eps,
    };
    // SAFETY: the kernel's arguments; `rows` and `normed` have these sizes, `weight` and `bias` have `width` numbers.
    unsafe { MODULE.launch(card, &launch.call()) }?;
    Ok(normed)
}
