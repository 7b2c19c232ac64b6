//! The convolution on an NVIDIA card.

use candle_core::{DType, Tensor};

use super::{Activation, ConvState, StateRow, launches::CausalConvLaunch};
use crate::{
    error::Result,
    kernels::{
        cuda::{Module, card, empty, module, pointer, rows, uploaded},
        recurrent::numbers,
    },
};

static MODULE: Module = module!("causal_conv");

/// As [`causal_conv`](super::causal_conv), of checked shapes and rows.
pub(super) fn causal_conv(
    x: &Tensor,
    weight: &Tensor,
    state: &ConvState,
    state_rows: &[StateRow],
    activation: Activation,
) -> Result<Tensor> {
    let (card, x, weight) = (card(x)?, rows(x)?, weight.contiguous()?);
    let (taps, channels) = weight.dims2()?;
    let out = empty(card, (x.count, channels), DType::F32)?;
    let longest = state_rows.iter().map(|row| row.tokens.len()).max().unwrap_or(0);
    if longest * channels == 0 {
        return Ok(out);
    }
    let uploaded = uploaded(card, &numbers(state_rows))?;
    let launch = CausalConvLaunch {
        x: (x.address, x.stride),
        weight: pointer(&weight, DType::F32)?,
        states: pointer(&state.inputs, DType::F32)?,
        rows: pointer(&uploaded, DType::U32)?,
        out: pointer(&out, DType::F32)?,
        num_rows: state_rows.len(),
        longest,
        taps,
        channels,
        activation,
    };
    let (results, states) = launch.calls();
    // SAFETY: the kernels' arguments; the rows cover the tokens, and their states are there, no two alike.
    unsafe {
        MODULE.launch(card, &results)?;
        MODULE.launch(card, &states)?;
    }
    Ok(out)
}
