//! Activations and gates of candle's own operations, for devices that have no kernel of ours.

use candle_core::Tensor;

use super::{Activation, Gate};
use crate::error::Result;

pub(super) fn activated(x: &Tensor, activation: Activation) -> Result<Tensor> {
    Ok(match activation {
        Activation::Silu => x.silu()?,
        Activation::Gelu => x.gelu_erf()?,
        Activation::GeluTanh => x.gelu()?,
        Activation::Relu => x.relu()?,
    })
}

pub(super) fn gated(gate_up: &Tensor, gate: Gate) -> Result<Tensor> {
    let halves = gate_up.chunk(2, 1)?;
    match gate {
        Gate::Of(activation) => Ok((activated(&halves[0], activation)? * &halves[1])?),
        Gate::Sigmoid => Ok((&halves[1] / (halves[0].neg()?.exp()? + 1.0)?)?),
        Gate::Clipped { alpha, limit } => {
            let (gate, up) = (halves[0].minimum(limit)?, halves[1].clamp(-limit, limit)?);
            let decay = (&gate * f64::from(-alpha))?.exp()?;
            Ok(((gate / (decay + 1.0)?)? * (up + 1.0)?)?)
        }
    }
}
