//! Linear over eight-bit floats in loops on the CPU: what a card computes, in an order of its own.

use candle_core::Tensor;
use float8::F8E4M3;

use super::{Fp8Weight, rounding::quantize};
use crate::{
    error::Result,
    kernels::{
        cpu_tensor::{Rows, cpu_storage, with_contiguous_rows},
        linear::portable::with_added,
        pool::for_each_mut,
    },
};

/// `x Wᵀ + bias + onto` on the CPU. A sum is one chain over the inputs in their order.
pub(super) fn linear(x: &Tensor, weight: &Fp8Weight, bias: Option<&Tensor>, onto: Option<&Tensor>) -> Result<Tensor> {
    let x = with_contiguous_rows(x)?;
    let (storage, layout) = x.storage_and_layout();
    let x = Rows::new(cpu_storage(&storage)?, layout)?;
    let ((numbers, _), (scales, _)) = (weight.numbers.storage_and_layout(), weight.scales.storage_and_layout());
    let numbers = cpu_storage(&numbers)?.as_slice::<F8E4M3>()?;
    let scales = cpu_storage(&scales)?.as_slice::<f32>()?;
    let width = weight.numbers.dims()[1];
    let table = widened();
    let widen = |number: &F8E4M3| table[usize::from(number.to_bits())];
    let mut y = vec![0.0; x.count * weight.outputs];
    let mut work: Vec<_> = y.chunks_exact_mut(weight.outputs.max(1)).enumerate().collect();
    for_each_mut(&mut work, |(row, y)| {
        let mut rounded = vec![F8E4M3::ZERO; weight.inputs];
        let row_scale = quantize(x.row(*row), &mut rounded);
        let x: Vec<f32> = rounded.iter().map(widen).collect();
        for ((y, w), scale) in y.iter_mut().zip(numbers.chunks_exact(width)).zip(scales) {
            // Two numbers of four bits have an exact product.
            let sum = x.iter().zip(w).fold(0f32, |sum, (x, w)| sum + x * widen(w));
            *y = sum * row_scale * scale;
        }
    });
    with_added(Tensor::from_vec(y, (x.count, weight.outputs), weight.numbers.device())?, bias, onto)
}

/// The number that each byte stands for.
fn widened() -> [f32; 256] {
    std::array::from_fn(|bits| F8E4M3::from_bits(bits as u8).to_f32())
}
