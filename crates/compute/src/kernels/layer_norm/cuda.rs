//! Layer norm on an NVIDIA card.

use candle_core::{DType, Tensor};

use super::launches;
use crate::{
    error::Result,
    kernels::cuda::{Module, module, normed, pointer},
};

static MODULE: Module = module!("layer_norm");
const KERNELS: [&str; 3] = ["candlewick_layer_norm_f32", "candlewick_layer_norm_bf16", "candlewick_layer_norm_f16"];

/// As [`layer_norm`](super::layer_norm), of checked shapes, rounded to float32, float16 or bfloat16.
pub(in crate::kernels) fn layer_norm(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    eps: f64,
    out: DType,
) -> Result<Tensor> {
    let bias = bias.map(Tensor::contiguous).transpose()?;
    let bias_at = bias.as_ref().map_or(Ok(0), |bias| pointer(bias, DType::F32))?;
    // SAFETY: the kernels' arguments; the bias has as many numbers as the weight, and outlives the launch.
    unsafe { normed((&MODULE, KERNELS), x, (weight, eps), out, |norm| launches::call(norm, bias_at)) }
}
