//! Activations and gates on an NVIDIA card.

use candle_core::{DType, Tensor};

use super::{Activation, Gate, launches::ActivationLaunch};
use crate::{
    error::{Error, Result},
    kernels::cuda::{Call, Module, card, empty, module, pointer, rows},
};

static MODULE: Module = module!("activation");

/// As [`gated`](super::gated), of a checked shape, rounded to float32, float16 or bfloat16.
pub(in crate::kernels) fn gated(gate_up: &Tensor, gate: Gate, out: DType) -> Result<Tensor> {
    let kernel = match out {
        DType::F32 => "candlewick_gated_f32",
        DType::BF16 => "candlewick_gated_bf16",
        DType::F16 => "candlewick_gated_f16",
        _ => return Err(Error::internal(format!("gated: no kernel makes {out:?}"))),
    };
    let width = gate_up.dims()[1] / 2;
    run(kernel, gate_up, width, out, |launch| launch.gated(gate))
}

/// As [`activated`](super::activated), of a checked shape, rounded to float32, float16 or bfloat16.
pub(in crate::kernels) fn activated(x: &Tensor, activation: Activation, out: DType) -> Result<Tensor> {
    let kernel = match out {
        DType::F32 => "candlewick_activated_f32",
        DType::BF16 => "candlewick_activated_bf16",
        DType::F16 => "candlewick_activated_f16",
        _ => return Err(Error::internal(format!("activated: no kernel makes {out:?}"))),
    };
    run(kernel, x, x.dims()[1], out, |launch| launch.activated(activation))
}

fn run<const N: usize>(
    kernel: &'static str,
    x: &Tensor,
    width: usize,
    out: DType,
    call: impl Fn(&ActivationLaunch) -> Call<N>,
) -> Result<Tensor> {
    let (card, rows) = (card(x)?, rows(x)?);
    let result = empty(card, (rows.count, width), out)?;
    if rows.count * width == 0 {
        return Ok(result);
    }
    let launch = ActivationLaunch {
        kernel,
        x: rows.address,
        stride: rows.stride,
        out: pointer(&result, out)?,
        rows: rows.count,
        width,
    };
    // SAFETY: the kernel's arguments; `rows` and `result` have these sizes.
    unsafe { MODULE.launch(card, &call(&launch)) }?;
    Ok(result)
}
