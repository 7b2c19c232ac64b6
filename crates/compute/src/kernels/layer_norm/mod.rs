//! Layer normalization (Ba, Kiros and Hinton, 2016, arXiv:1607.06450): `y = (x - mean) / sqrt(var + eps) * w + b`.

pub(super) mod cpu;
#[cfg(feature = "cuda")]
pub(super) mod cuda;
#[cfg(test)]
mod host_twin_tests;
#[cfg(any(test, feature = "cuda"))]
mod launches;
mod portable;
#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;

use candle_core::{CpuStorage, CustomOp1, Device, Layout, Shape, Tensor};

use super::{
    cpu_tensor::{Rows, cpu_storage, with_contiguous_rows},
    simd::Level,
};
use crate::error::{Error, Result};

/// Normalizes the last dimension: `x` is float32 `[n, d]` or `[n, heads, d]`, `weight` and `bias` float32 `[d]`; the
/// result has the shape of `x`.
///
/// # Errors
/// `Internal` where the shapes do not fit each other.
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, eps: f64) -> Result<Tensor> {
    layer_norm_at(Level::best(), x, weight, bias, eps)
}

fn layer_norm_at(level: Level, x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, eps: f64) -> Result<Tensor> {
    let fits = |vector: &Tensor| matches!((x.dims(), vector.dims()), ([_, .., d], [w]) if d == w && *d > 0);
    if !fits(weight) || !bias.is_none_or(fits) {
        let (x, w, b) = (x.dims(), weight.dims(), bias.map(Tensor::dims));
        return Err(Error::internal(format!("layer_norm: x has shape {x:?}, the weight {w:?}, the bias {b:?}")));
    }
    #[cfg(feature = "cuda")]
    if let Device::Cuda(_) = x.device() {
        return cuda::layer_norm(x, weight, bias, eps, candle_core::DType::F32);
    }
    if !matches!(x.device(), Device::Cpu) {
        return portable::layer_norm(x, weight, bias, eps);
    }
    let (storage, layout) = weight.storage_and_layout();
    let weight = Rows::vector(cpu_storage(&storage)?, layout)?;
    let bias = bias.map(Tensor::storage_and_layout);
    let bias = bias.as_ref().map(|(storage, layout)| Rows::vector(cpu_storage(storage)?, layout)).transpose()?;
    Ok(with_contiguous_rows(x)?.apply_op1_no_bwd(&LayerNorm { level, weight, bias, eps })?)
}

struct LayerNorm<'a> {
    level: Level,
    weight: &'a [f32],
    bias: Option<&'a [f32]>,
    eps: f64,
}

impl CustomOp1 for LayerNorm<'_> {
    fn name(&self) -> &'static str {
        "layer_norm"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let out = cpu::layer_norm(self, Rows::new(storage, layout)?);
        Ok((CpuStorage::F32(out), layout.shape().clone()))
    }
}
