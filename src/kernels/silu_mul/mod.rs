//! The gate of a SwiGLU feed-forward (Shazeer, 2020, arXiv:2002.05202): `silu(gate) * up`, `silu(x) = x / (1 + e^-x)`.

pub(super) mod cpu;
mod portable;
#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;

use candle_core::{CpuStorage, CustomOp1, Device, Layout, Shape, Tensor};

use super::{
    cpu_tensor::{Rows, with_contiguous_rows},
    simd::Level,
};
use crate::error::{Error, Result};

/// `silu(gate) * up` of float32 `[n, 2 * i]`, each row its gate and then its up half: `[n, i]`.
///
/// # Errors
/// `Internal` where the rows cannot be halved.
pub fn silu_mul(gate_up: &Tensor) -> Result<Tensor> {
    silu_mul_at(Level::best(), gate_up)
}

fn silu_mul_at(level: Level, gate_up: &Tensor) -> Result<Tensor> {
    match gate_up.dims() {
        [_, width] if width.is_multiple_of(2) => {}
        dims => return Err(Error::internal(format!("silu_mul: the input has shape {dims:?}, must have [n, 2 * i]"))),
    }
    match gate_up.device() {
        Device::Cpu => Ok(with_contiguous_rows(gate_up)?.apply_op1_no_bwd(&SiluMul { level })?),
        _ => portable::silu_mul(gate_up),
    }
}

struct SiluMul {
    level: Level,
}

impl CustomOp1 for SiluMul {
    fn name(&self) -> &'static str {
        "silu_mul"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let rows = Rows::new(storage, layout)?;
        let out = cpu::silu_mul(self.level, rows);
        Ok((CpuStorage::F32(out), Shape::from((rows.count, rows.width / 2))))
    }
}
