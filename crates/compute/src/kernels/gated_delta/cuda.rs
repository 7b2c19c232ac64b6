//! The gated delta rule on an NVIDIA card.

use candle_core::{DType, Tensor};

use super::{DeltaGates, DeltaState, StateRow, launches::GatedDeltaLaunch};
use crate::{
    error::Result,
    kernels::{
        cuda::{Module, card, empty, module, pointer, rows, uploaded},
        recurrent::numbers,
    },
};

static MODULE: Module = module!("gated_delta");

/// As [`gated_delta`](super::gated_delta), of checked shapes and rows.
pub(super) fn gated_delta(
    qkv: &Tensor,
    gating: &Tensor,
    gates: &DeltaGates,
    state: &DeltaState,
    state_rows: &[StateRow],
) -> Result<Tensor> {
    let heads = state.heads;
    let (card, qkv, gating) = (card(qkv)?, rows(qkv)?, rows(gating)?);
    let out = empty(card, (qkv.count, heads.values()), DType::F32)?;
    if state_rows.is_empty() || heads.values() == 0 {
        return Ok(out);
    }
    let state_numbers = uploaded(card, &numbers(state_rows))?;
    let [rates, biases] = [&gates.rates, &gates.biases].map(|numbers| uploaded(card, bytemuck::cast_slice(numbers)));
    let (rates, biases) = (rates?, biases?);
    let launch = GatedDeltaLaunch {
        qkv: (qkv.address, qkv.stride),
        gating: (gating.address, gating.stride),
        rates: pointer(&rates, DType::U32)?,
        biases: pointer(&biases, DType::U32)?,
        states: pointer(&state.matrices, DType::F32)?,
        rows: pointer(&state_numbers, DType::U32)?,
        out: pointer(&out, DType::F32)?,
        num_rows: state_rows.len(),
        heads,
    };
    // SAFETY: the kernel's arguments; the rows cover the tokens, and their states are there, no two alike.
    unsafe { MODULE.launch(card, &launch.call()) }?;
    Ok(out)
}
