//! The convolution of candle's own operations, for devices that have no kernel of ours.

use candle_core::Tensor;

use super::{Activation, ConvState, StateRow};
use crate::{error::Result, kernels::activation::activated};

pub(super) fn causal_conv(
    x: &Tensor,
    weight: &Tensor,
    state: &ConvState,
    rows: &[StateRow],
    activation: Activation,
) -> Result<Tensor> {
    let kept = weight.dim(0)? - 1;
    let mut out = Vec::with_capacity(rows.len());
    for row in rows {
        let new = x.narrow(0, row.tokens.start, row.tokens.len())?;
        let old = state.inputs.narrow(0, row.slot, 1)?.squeeze(0)?;
        let old = if row.begins { old.zeros_like()? } else { old.copy()? };
        let inputs = Tensor::cat(&[old, new], 0)?;
        let mut sum = x.narrow(0, row.tokens.start, row.tokens.len())?.zeros_like()?;
        for tap in 0..=kept {
            let products = inputs.narrow(0, tap, row.tokens.len())?.broadcast_mul(&weight.narrow(0, tap, 1)?)?;
            sum = (sum + products)?;
        }
        out.push(activated(&sum, activation)?);
        let newest = inputs.narrow(0, row.tokens.len(), kept)?.contiguous()?.unsqueeze(0)?;
        state.inputs.slice_set(&newest, 0, row.slot)?;
    }
    if out.is_empty() { Ok(x.zeros_like()?) } else { Ok(Tensor::cat(&out, 0)?) }
}
