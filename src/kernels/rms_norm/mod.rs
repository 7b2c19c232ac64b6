//! Root-mean-square normalization (Zhang and Sennrich, 2019, arXiv:1910.07467): `y = x / sqrt(mean(x²) + eps) * w`.

mod cpu;
mod portable;
#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Device, Layout, Shape, Tensor};

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
    if !matches!(x.device(), Device::Cpu) {
        return portable::rms_norm(x, weight, eps);
    }
    let (storage, layout) = weight.storage_and_layout();
    let weight = Rows::vector(cpu_storage(&storage)?, layout)?;
    Ok(with_contiguous_rows(x)?.apply_op1_no_bwd(&RmsNorm { level, weight, eps })?)
}

/// The sum `x + residual` and its normalization, as `(normed, sum)`; all float32 of one shape, `[n, d]`.
///
/// # Errors
/// `Internal` where the shapes do not fit each other.
pub fn add_rms_norm(x: &Tensor, residual: &Tensor, weight: &Tensor, eps: f64) -> Result<(Tensor, Tensor)> {
    add_rms_norm_at(Level::best(), x, residual, weight, eps)
}

fn add_rms_norm_at(level: Level, x: &Tensor, residual: &Tensor, weight: &Tensor, eps: f64) -> Result<(Tensor, Tensor)> {
    check(x, weight)?;
    if x.dims() != residual.dims() {
        let (x, residual) = (x.dims(), residual.dims());
        return Err(Error::internal(format!("add_rms_norm: x has shape {x:?}, the residual {residual:?}")));
    }
    if !matches!(x.device(), Device::Cpu) {
        return portable::add_rms_norm(x, residual, weight, eps);
    }
    let (storage, layout) = weight.storage_and_layout();
    let weight = Rows::vector(cpu_storage(&storage)?, layout)?;
    let (x, residual) = (with_contiguous_rows(x)?, with_contiguous_rows(residual)?);
    // One storage holds both results; each is a contiguous view of half of it.
    let both = x.apply_op2_no_bwd(&residual, &RmsNorm { level, weight, eps })?;
    Ok((both.get(0)?, both.get(1)?))
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

impl CustomOp2 for RmsNorm<'_> {
    fn name(&self) -> &'static str {
        "add_rms_norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        residual: &CpuStorage,
        residual_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let (x, residual) = (Rows::new(x, x_layout)?, Rows::new(residual, residual_layout)?);
        let out = cpu::add_rms_norm(self.level, x, residual, self.weight, self.eps);
        Ok((CpuStorage::F32(out), Shape::from([&[2], x_layout.dims()].concat())))
    }
}
