//! The nonlinearities of feed-forward layers, alone or as the gate of another product (Shazeer, 2020, arXiv:2002.05202).

pub(super) mod cpu;
#[cfg(feature = "cuda")]
pub(super) mod cuda;
#[cfg(test)]
mod host_twin_tests;
#[cfg(any(test, feature = "cuda"))]
pub(super) mod launches;
mod portable;
#[cfg(test)]
pub(super) mod reference;
#[cfg(test)]
mod tests;

use candle_core::{CpuStorage, CustomOp1, Device, Layout, Shape, Tensor};

use super::{
    cpu_tensor::{Rows, with_contiguous_rows},
    simd::Level,
};
use crate::error::{Error, Result};

/// A function of one number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x / (1 + e^-x)`.
    Silu,
    /// `x Φ(x)` (Hendrycks and Gimpel, 2016, arXiv:1606.08415), within 2e-7 of itself or of its share in `x`.
    Gelu,
    /// Its approximation by a tanh, from the same paper.
    GeluTanh,
    /// `max(x, 0)`.
    Relu,
}

impl Activation {
    /// What config.json calls them, and what they are.
    pub const NAMES: [(&'static str, Self); 8] = [
        ("silu", Self::Silu),
        ("swish", Self::Silu),
        ("gelu", Self::Gelu),
        ("gelu_new", Self::GeluTanh),
        ("gelu_pytorch_tanh", Self::GeluTanh),
        ("gelu_fast", Self::GeluTanh),
        ("gelu_pytorch", Self::Gelu),
        ("relu", Self::Relu),
    ];
}

/// What becomes of a gate and an up projection.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Gate {
    /// `activation(gate) * up`.
    Of(Activation),
    /// `up / (1 + e^-gate)` (Qiu et al., 2025, arXiv:2505.06708).
    Sigmoid,
    /// gpt-oss's: `gate' sigmoid(alpha gate') (up' + 1)`, with `gate' = min(gate, limit)` and `up'` within `±limit`.
    Clipped {
        /// In the sigmoid.
        alpha: f32,
        /// Of both.
        limit: f32,
    },
}

/// The gate of float32 `[n, 2 * i]`, each row its gate and then its up half: `[n, i]`.
///
/// # Errors
/// `Internal` where the rows cannot be halved.
pub fn gated(gate_up: &Tensor, gate: Gate) -> Result<Tensor> {
    gated_at(Level::best(), gate_up, gate)
}

/// The activation of every number of float32 `[n, i]`.
///
/// # Errors
/// `Internal` where `x` is no matrix.
pub fn activated(x: &Tensor, activation: Activation) -> Result<Tensor> {
    activated_at(Level::best(), x, activation)
}

fn gated_at(level: Level, gate_up: &Tensor, gate: Gate) -> Result<Tensor> {
    match gate_up.dims() {
        [_, width] if width.is_multiple_of(2) => {}
        dims => return Err(Error::internal(format!("gated: the input has shape {dims:?}, must have [n, 2 * i]"))),
    }
    match gate_up.device() {
        Device::Cpu => Ok(with_contiguous_rows(gate_up)?.apply_op1_no_bwd(&Gated { level, gate })?),
        #[cfg(feature = "cuda")]
        Device::Cuda(_) => cuda::gated(gate_up, gate, candle_core::DType::F32),
        _ => portable::gated(gate_up, gate),
    }
}

fn activated_at(level: Level, x: &Tensor, activation: Activation) -> Result<Tensor> {
    let [_, _] = x.dims() else {
        return Err(Error::internal(format!("activated: the input has shape {:?}, must have [n, i]", x.dims())));
    };
    match x.device() {
        Device::Cpu => Ok(with_contiguous_rows(x)?.apply_op1_no_bwd(&Activated { level, activation })?),
        #[cfg(feature = "cuda")]
        Device::Cuda(_) => cuda::activated(x, activation, candle_core::DType::F32),
        _ => portable::activated(x, activation),
    }
}

struct Gated {
    level: Level,
    gate: Gate,
}

impl CustomOp1 for Gated {
    fn name(&self) -> &'static str {
        "gated"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let rows = Rows::new(storage, layout)?;
        let out = cpu::gated(self.level, rows, self.gate);
        Ok((CpuStorage::F32(out), Shape::from((rows.count, rows.width / 2))))
    }
}

struct Activated {
    level: Level,
    activation: Activation,
}

impl CustomOp1 for Activated {
    fn name(&self) -> &'static str {
        "activated"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let rows = Rows::new(storage, layout)?;
        let out = cpu::activated(self.level, rows, self.activation);
        Ok((CpuStorage::F32(out), Shape::from((rows.count, rows.width))))
    }
}
