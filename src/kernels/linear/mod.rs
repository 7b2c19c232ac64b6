//! `y = x Wᵀ + b` for a weight in any format, packed once at load.
//!
//! Each output is one chain of fused multiply-adds over the inputs in order, started from zero; the bias is added last.
//! Weights are widened to float32 in registers or in the first-level cache, never as a whole.

mod cpu;
pub mod format;
mod panel;
mod portable;
#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;
mod weight;

use candle_core::{CpuStorage, CustomOp1, Layout, Shape, Tensor};

pub use weight::PackedWeight;

use super::{
    cpu_tensor::{Rows, cpu_storage, with_contiguous_rows},
    simd::Level,
};
use crate::error::{Error, Result};
use weight::{Packed, Storage};

/// `x Wᵀ + bias`: `x` is `[m, in_features]` float32, `bias` `[out_features]` float32, the result `[m, out_features]`
/// float32.
///
/// # Errors
/// `Internal` where the shapes do not fit each other or the devices differ.
pub fn linear(x: &Tensor, weight: &PackedWeight, bias: Option<&Tensor>) -> Result<Tensor> {
    linear_at(Level::best(), x, weight, bias)
}

fn linear_at(level: Level, x: &Tensor, weight: &PackedWeight, bias: Option<&Tensor>) -> Result<Tensor> {
    if x.rank() != 2 || x.dims()[1] != weight.in_features() {
        let want = weight.in_features();
        return Err(Error::internal(format!("linear: x has shape {:?}, the weight takes [m, {want}]", x.dims())));
    }
    if let Some(bias) = bias.filter(|bias| bias.dims() != [weight.out_features()]) {
        let want = weight.out_features();
        return Err(Error::internal(format!("linear: the bias has shape {:?}, must have [{want}]", bias.dims())));
    }
    match &weight.storage {
        Storage::Cpu(weight) => {
            let x = with_contiguous_rows(x)?;
            let Some(bias) = bias else {
                return Ok(x.apply_op1_no_bwd(&Linear { level, weight, bias: None })?);
            };
            let (storage, layout) = bias.storage_and_layout();
            let bias = Some(Rows::vector(cpu_storage(&storage)?, layout)?);
            Ok(x.apply_op1_no_bwd(&Linear { level, weight, bias })?)
        }
        Storage::Dense(weight) => portable::linear(x, weight, bias),
    }
}

struct Linear<'a> {
    level: Level,
    weight: &'a Packed,
    bias: Option<&'a [f32]>,
}

impl CustomOp1 for Linear<'_> {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let x = Rows::new(storage, layout)?;
        let out = cpu::linear(self.level, x, self.weight, self.bias);
        Ok((CpuStorage::F32(out), Shape::from((x.count, self.weight.out_features))))
    }
}
