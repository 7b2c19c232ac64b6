//! RMS norm on an NVIDIA card.

use candle_core::{DType, Tensor};

use super::launches;
use crate::{
    error::Result,
    kernels::cuda::{Module, module, normed},
};

static MODULE: Module = module!("rms_norm");
const KERNELS: [&str; 3] = ["candlewick_rms_norm_f32", "candlewick_rms_norm_bf16", "candlewick_rms_norm_f16"];

/// As [`rms_norm`](super::rms_norm), of checked shapes, rounded to float32, float16 or bfloat16.
pub(in crate::kernels) fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64, out: DType) -> Result<Tensor> {
    // SAFETY: the kernels' arguments, which are the launch's own.
    unsafe { normed((&MODULE, KERNELS), x, (weight, eps), out, launches::call) }
}
