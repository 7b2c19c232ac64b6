//! Weights of eight-bit floats (E4M3: four bits of exponent, three of fraction; Micikevicius et al., 2022, arXiv:2209.05433)
//! with a float32 scale an output. Inputs are rounded to the same with a scale a row, so that a row's numbers do not depend on
//! its batch; products are summed in float32 and multiplied by both scales.
//!
//! A card multiplies them by cuBLASLt, between two kernels of ours. On the CPU they are loops that say the same ([`portable`]),
//! for tests and for comparison: nobody is served by them ([`check_fp8`]).
//!
//! cuBLASLt takes such matrices in multiples of 16 alone, so weights and inputs are filled up with zeros, which add nothing.

#[cfg(feature = "cuda")]
mod blas_lt;
#[cfg(feature = "cuda")]
mod cuda;
#[cfg(test)]
mod host_twin_tests;
#[cfg(any(test, feature = "cuda"))]
mod launches;
mod portable;
#[cfg(any(test, feature = "cuda"))]
mod remembered;
mod rounding;
#[cfg(test)]
mod tests;

#[cfg(feature = "cuda")]
use std::sync::Arc;

use candle_core::{Device, Tensor};
use float8::F8E4M3;

use super::{Inputs, rows::Row};
use crate::{
    error::{Code, Error, Result},
    kernels::pool::for_each_mut,
};

/// What the sides of a product are multiples of.
const FILLED: usize = 16;
/// The oldest compute capability with products of such numbers: Ada's.
#[cfg(any(test, feature = "cuda"))]
const OLDEST: (i32, i32) = (8, 9);

/// So many rows or columns, and those that fill up.
pub(super) fn filled(count: usize) -> usize {
    count.max(1).next_multiple_of(FILLED)
}

/// A weight `[outputs, inputs]`.
pub(super) struct Fp8Weight {
    /// E4M3, `[filled(outputs), filled(inputs)]`.
    numbers: Tensor,
    /// Float32 `[outputs]`: what an output's numbers are multiplied by.
    scales: Tensor,
    outputs: usize,
    inputs: usize,
    #[cfg(feature = "cuda")]
    products: Option<Arc<blas_lt::Products>>,
}

impl Fp8Weight {
    /// Rounds rows of a file that have `inputs` numbers each.
    ///
    /// # Errors
    /// `FailedPrecondition` on a device that does not multiply them; `Internal` where it has no room.
    pub(super) fn new(rows: &[Row<'_>], inputs: usize, device: &Device) -> Result<Self> {
        if !device.is_cpu() {
            check_fp8(device)?;
        }
        let (outputs, width) = (rows.len(), filled(inputs));
        let mut numbers = vec![F8E4M3::ZERO; filled(outputs) * width];
        let mut scales = vec![0.0; outputs];
        let mut work: Vec<_> = numbers.chunks_exact_mut(width).zip(&mut scales).zip(rows).collect();
        for_each_mut(&mut work, |((numbers, scale), row)| {
            **scale = rounding::quantize(&row.to_f32(inputs), &mut numbers[..inputs]);
        });
        Ok(Self {
            numbers: Tensor::from_vec(numbers, (filled(outputs), width), device)?,
            scales: Tensor::from_vec(scales, outputs, device)?,
            outputs,
            inputs,
            #[cfg(feature = "cuda")]
            products: cuda::products(device, (outputs, inputs))?,
        })
    }

    /// `x Wᵀ + bias + onto`, float32 in and out.
    ///
    /// # Errors
    /// `Internal` where the device refuses; shapes were checked before.
    pub(super) fn linear(&self, x: Inputs<'_>, bias: Option<&Tensor>, onto: Option<&Tensor>) -> Result<Tensor> {
        #[cfg(feature = "cuda")]
        if let Some(products) = &self.products {
            return cuda::linear(x, self, products, bias, onto);
        }
        portable::linear(&x.tensor()?, self, bias, onto)
    }

    /// Bytes it takes.
    pub(super) fn bytes(&self) -> usize {
        self.numbers.elem_count() + self.scales.elem_count() * size_of::<f32>()
    }
}

/// Whether a device multiplies weights of eight-bit floats faster than others.
///
/// # Errors
/// `FailedPrecondition` that says what would: an NVIDIA card of compute capability 8.9, or other weights.
pub fn check_fp8(device: &Device) -> Result<()> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(card) => cuda::check(card),
        _ => Err(refused(
            "only NVIDIA cards of compute capability 8.9 or later multiply eight-bit floats; elsewhere q8_0 takes about as much \
             memory",
        )),
    }
}

/// The same of a card of this name and compute capability.
#[cfg(any(test, feature = "cuda"))]
fn check_card(name: &str, capability: (i32, i32)) -> Result<()> {
    if capability >= OLDEST {
        return Ok(());
    }
    let (major, minor) = capability;
    Err(refused(format!(
        "{name} has compute capability {major}.{minor}; products of eight-bit floats need 8.9 or later: use q8_0, or leave the \
         weights as they are"
    )))
}

fn refused(why: impl Into<String>) -> Error {
    Error::new(Code::FailedPrecondition, why)
}
