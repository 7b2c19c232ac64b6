//! Linear over eight-bit floats on an NVIDIA card: inputs are rounded by a kernel, multiplied by cuBLASLt, and the sums multiplied
//! by their scales by another, which adds the bias and the residual stream.

use std::sync::Arc;

use candle_core::{CudaDevice, DType, Device, Tensor};

use super::{
    Fp8Weight,
    blas_lt::{Products, Shape},
    check_card, filled,
    launches::{Quantize, Rescale, rows_of_products},
};
use crate::{
    error::Result,
    kernels::{
        cuda::{card, empty, pointer, rows},
        device::is_batch_invariant,
        linear::{
            Inputs,
            cuda::{INVARIANT_ROWS, MODULE},
        },
    },
};

/// See [`check_fp8`](super::check_fp8).
pub(super) fn check(card: &CudaDevice) -> Result<()> {
    let stream = card.cuda_stream();
    let told = stream.context().name().and_then(|name| Ok((name, stream.context().compute_capability()?)));
    let (name, capability) =
        told.map_err(|error| super::refused(format!("the CUDA driver: asking about a card: {error}")))?;
    check_card(&name, capability)
}

/// What multiplies a weight of this shape, where the device is a card: asked for its smallest product, so that what it cannot
/// multiply is known as the weight is loaded.
pub(super) fn products(device: &Device, (outputs, inputs): (usize, usize)) -> Result<Option<Arc<Products>>> {
    let Device::Cuda(card) = device else { return Ok(None) };
    let products = Products::of(card)?;
    let (_, rows) = rows_of_products(1, invariant());
    products.prepare(Shape { outputs: filled(outputs), inputs: filled(inputs), rows })?;
    Ok(Some(products))
}

fn invariant() -> Option<usize> {
    is_batch_invariant().then_some(INVARIANT_ROWS)
}

/// `x Wᵀ + bias + onto`, float32 in and out.
pub(super) fn linear(
    x: Inputs<'_>,
    weight: &Fp8Weight,
    products: &Products,
    bias: Option<&Tensor>,
    onto: Option<&Tensor>,
) -> Result<Tensor> {
    let ((m, _), n) = (x.dims()?, weight.outputs);
    let card = card(&weight.numbers)?;
    if m == 0 || n == 0 {
        return empty(card, (m, n), DType::F32);
    }
    let x = x.on_card(DType::F32)?;
    let x = rows(&x)?;
    let (filled_rows, each) = rows_of_products(m, invariant());
    let (width, inputs) = (filled(n), filled(weight.inputs));
    let numbers = empty(card, (filled_rows, inputs), DType::F8E4M3)?;
    let row_scales = empty(card, m, DType::F32)?;
    let quantize = Quantize {
        x: x.address,
        stride: x.stride,
        numbers: pointer(&numbers, DType::F8E4M3)?,
        scales: pointer(&row_scales, DType::F32)?,
        rows: m,
        width: weight.inputs,
        filled_rows,
    };
    // SAFETY: the kernel's arguments; `x` has `m` rows of the weight's inputs, the others are as large as it says.
    unsafe { MODULE.launch(card, &quantize.call()) }?;

    let sums = empty(card, (filled_rows, width), DType::F32)?;
    let (weight_at, sums_at) = (pointer(&weight.numbers, DType::F8E4M3)?, pointer(&sums, DType::F32)?);
    let shape = Shape { outputs: width, inputs, rows: each };
    for first in (0..filled_rows).step_by(each) {
        let x_at = quantize.numbers + (first * inputs) as u64;
        let y_at = sums_at + (first * width * size_of::<f32>()) as u64;
        // SAFETY: `each` divides the rows, so each product is inside `numbers` and `sums`, which are contiguous, as is the weight.
        unsafe { products.queue(shape, weight_at, x_at, y_at) }?;
    }

    let out = if width == n { sums.narrow(0, 0, m)? } else { empty(card, (m, n), DType::F32)? };
    let (bias, onto) = (bias.map(Tensor::contiguous).transpose()?, onto.map(rows).transpose()?);
    let rescale = Rescale {
        sums: sums_at,
        row_scales: quantize.scales,
        scales: pointer(&weight.scales, DType::F32)?,
        bias: bias.as_ref().map_or(Ok(0), |bias| pointer(bias, DType::F32))?,
        onto: onto.as_ref().map_or(0, |onto| onto.address),
        onto_stride: onto.as_ref().map_or(n, |onto| onto.stride),
        out: pointer(&out, DType::F32)?,
        rows: m,
        width: n,
    };
    // SAFETY: the kernel's arguments, of these sizes; `out` is `sums` only where a row of one is a row of the other, and then each
    // number is read before it is written, by one thread.
    unsafe { MODULE.launch(card, &rescale.call()) }?;
    Ok(out)
}
