//! A causal convolution of each channel by itself, with an activation behind it: a token's result is of its own inputs and
//! those of the tokens right before it, which are kept between two steps.
//!
//! A result is one chain of multiply-adds from the oldest input to the newest, so it does not depend on how a sequence is
//! cut into steps.

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
#[cfg(test)]
mod host_twin_tests;
#[cfg(any(test, feature = "cuda"))]
mod launches;
mod portable;
#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;

use candle_core::{Device, Tensor};

use super::{
    activation::Activation,
    cpu_tensor::{Rows, cpu_storage},
    recurrent::{StateRow, StateRows, in_place, zeros},
    simd::Level,
};
use crate::error::{Error, Result};

/// Inputs that a result is of, its own included.
pub const TAPS: std::ops::RangeInclusive<usize> = 2..=8;

/// The newest inputs of each sequence in one layer.
#[derive(Clone, Debug)]
pub struct ConvState {
    /// Float32 `[slots, taps - 1, channels]`, oldest first.
    inputs: Tensor,
}

impl ConvState {
    /// States of zeros for results of `taps` inputs.
    ///
    /// # Errors
    /// `Internal` for impossible sizes, `ResourceExhausted` where there is no memory.
    pub fn new(num_slots: usize, taps: usize, channels: usize, device: &Device) -> Result<Self> {
        if !TAPS.contains(&taps) {
            return Err(Error::internal(format!("causal_conv: {taps} taps, must be {TAPS:?}")));
        }
        Ok(Self { inputs: zeros(&[num_slots, taps - 1, channels], device)? })
    }

    /// Bytes of one sequence's.
    #[must_use]
    pub fn bytes_per_slot(taps: usize, channels: usize) -> usize {
        (taps - 1).saturating_mul(channels).saturating_mul(size_of::<f32>())
    }
}

/// `activation(Σ weight[j] * x[t - taps + 1 + j])` for each token `t` and each channel, tokens before a sequence's first
/// counting as zeros: `x` is float32 `[n, channels]`, the rows' tokens one after another, `weight` `[taps, channels]`, the
/// result `[n, channels]`. The states are those after the rows' last tokens then.
///
/// # Errors
/// `Internal` where the shapes, the rows and the states do not fit each other; no state has changed then.
pub fn causal_conv(
    x: &Tensor,
    weight: &Tensor,
    state: &ConvState,
    rows: StateRows<'_>,
    activation: Activation,
) -> Result<Tensor> {
    causal_conv_at(Level::best(), x, weight, state, rows, activation)
}

fn causal_conv_at(
    level: Level,
    x: &Tensor,
    weight: &Tensor,
    state: &ConvState,
    rows: StateRows<'_>,
    activation: Activation,
) -> Result<Tensor> {
    let (tokens, num_slots) = match (x.dims(), weight.dims(), state.inputs.dims()) {
        (&[n, c], &[taps, w], &[slots, kept, s]) if c == w && c == s && taps == kept + 1 => (n, slots),
        (x, weight, state) => {
            let why = format!("causal_conv: x has shape {x:?}, the weight {weight:?}, the states {state:?}");
            return Err(Error::internal(why));
        }
    };
    let rows = rows.checked("causal_conv", tokens, num_slots)?;
    #[cfg(feature = "cuda")]
    if let Device::Cuda(_) = x.device() {
        return cuda::causal_conv(x, weight, state, &rows, activation);
    }
    if !matches!(x.device(), Device::Cpu) {
        return portable::causal_conv(x, weight, state, &rows, activation);
    }
    let shape = x.shape().clone();
    let (storage, layout) = weight.storage_and_layout();
    let weight = Rows::new(cpu_storage(&storage)?, layout)?;
    let conv = CausalConv { level, weight, rows: &rows, activation };
    let out = in_place("causal_conv", &state.inputs, x, |states, x| cpu::causal_conv(&conv, states, x))?;
    Ok(Tensor::from_vec(out, shape, &Device::Cpu)?)
}

struct CausalConv<'a> {
    level: Level,
    weight: Rows<'a>,
    rows: &'a [StateRow],
    activation: Activation,
}
