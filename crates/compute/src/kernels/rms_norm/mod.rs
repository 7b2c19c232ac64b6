//! Root-mean-square normalization (Zhang and Sennrich, 2019, arXiv:1910.07467): `y = x / sqrt(mean(x²) + eps) * w`.

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

/// Normalizes the last dimension: `x` is float32 `[n, d]` or `[n, heads, d]`, `weight` float32 `[d]`; the result has
/// the shape of `x`.
///
/// # Errors
/// `Internal` where the shapes do not fit each other.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    rms_norm_at(Level::best(), x, weight, eps)
}

fn rms_norm_at(level: Level, x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    check(x, weight)?;
    #[cfg(feature = "cuda")]
    if let Device::Cuda(_) = x.device() {
        return cuda::rms_norm(x, weight, eps, candle_core::DType::F32);
    }
    if !matches!(x.device(), Device::Cpu) {
        return portable::rms_norm(x, weight, eps);
    }
    let (storage, layout) = weight.storage_and_layout();
    let weight = Rows::vector(cpu_storage(&storage)?, layout)?;
    Ok(with_contiguous_rows(x)?.apply_op1_no_bwd(&RmsNorm { level, weight, eps })?)
}

fn check(x: &Tensor, weight: &Tensor) -> Result<()> {
    match (x.dims(), weight.dims()) {
        ([_, .., d], [w]) if d == w && *d > 0 => Ok(()),
        (x, w) => Err(Error::internal(format!("rms_norm: x has shape {x:?}, the weight {w:?}"))),
    }
}

struct RmsNorm<'a> {
    level: Level,
    weight: &'a [f32],
    eps: f64,
}

impl CustomOp1 for RmsNorm<'_> {
    fn name(&self) -> &'static str {
        "rms_norm"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let out = cpu::rms_norm(self.level, Rows::new(storage, layout)?, self.weight, self.eps);
        Ok((CpuStorage::F32(out), layout.shape().clone()))
    }
}
