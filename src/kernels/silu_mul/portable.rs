//! SiLU times up of candle's own operations, for devices that have no kernel of ours.

use candle_core::Tensor;

use crate::error::Result;

pub(super) fn silu_mul(gate_up: &Tensor) -> Result<Tensor> {
    let halves = gate_up.chunk(2, 1)?;
    Ok((halves[0].silu()? * &halves[1])?)
}
