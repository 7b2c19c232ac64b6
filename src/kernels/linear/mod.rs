//! `y = x Wᵀ + b` for a weight in any format, packed once at load.
//!
//! A float32 weight is multiplied in float32; every other format is widened to bfloat16 and multiplied with inputs that
//! are rounded to it, summed in float32. Either way the products are added in a fixed order ([`arithmetic`]), so a row
//! has the same bits in every batch, on every instruction set. Weights are widened in registers or in the first-level
//! cache, never as a whole. The bias is added last.

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod amx;
mod arithmetic;
pub mod format;
mod gather;
mod outputs;
mod packed;
mod panel;
mod portable;
mod quantize;
#[cfg(test)]
mod reference;
mod rows;
#[cfg(test)]
mod tests;
mod vector;
mod weight;

use candle_core::{CpuStorage, CustomOp1, Layout, Shape, Tensor};

pub use weight::PackedWeight;

use super::{
    cpu_tensor::{Rows, SharedMatrix, cpu_storage, for_each_row_range, with_contiguous_rows, written},
    pool::{current_num_threads, for_each_task},
    simd::{LANES, Level},
};
use crate::error::{Error, Result};
use format::WeightFormat;
use outputs::Outputs;
use packed::{PANEL_GROUP, Packed};
use weight::Storage;

/// Multiply-adds that pay for waking another thread.
const WORTH_SHARING: usize = 64 * 1024;

/// `x Wᵀ + bias`: `x` is `[m, in_features]` float32, `bias` `[out_features]` float32, the result `[m, out_features]`
/// float32.
///
/// # Errors
/// `Internal` where the shapes do not fit each other or the devices differ.
pub fn linear(x: &Tensor, weight: &PackedWeight, bias: Option<&Tensor>, inputs: Inputs) -> Result<Tensor> {
    linear_at(Level::best(), x, weight, bias, inputs)
}

/// What is kept of inputs that are multiplied as bfloat16.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inputs {
    /// The nearest bfloat16: 8 bits.
    Rounded,
    /// That and the nearest to what is left, multiplied as two rows: 16 bits. For products whose errors are magnified,
    /// such as the scores of attention; with few rows the weights' way from memory hides what it costs.
    TwoTerms,
}

fn linear_at(level: Level, x: &Tensor, weight: &PackedWeight, bias: Option<&Tensor>, inputs: Inputs) -> Result<Tensor> {
    if x.rank() != 2 || x.dims()[1] != weight.in_features() {
        let want = weight.in_features();
        return Err(Error::internal(format!("linear: x has shape {:?}, the weight takes [m, {want}]", x.dims())));
    }
    if let Some(bias) = bias.filter(|bias| bias.dims() != [weight.out_features()]) {
        let want = weight.out_features();
        return Err(Error::internal(format!("linear: the bias has shape {:?}, must have [{want}]", bias.dims())));
    }
    match &weight.storage {
        Storage::Cpu(weight) => {
            let x = with_contiguous_rows(x)?;
            let Some(bias) = bias else {
                return Ok(x.apply_op1_no_bwd(&Linear { level, weight, bias: None, inputs })?);
            };
            let (storage, layout) = bias.storage_and_layout();
            let bias = Some(Rows::vector(cpu_storage(&storage)?, layout)?);
            Ok(x.apply_op1_no_bwd(&Linear { level, weight, bias, inputs })?)
        }
        Storage::Dense(weight) => portable::linear(x, weight, bias),
    }
}

struct Linear<'a> {
    level: Level,
    weight: &'a Packed,
    bias: Option<&'a [f32]>,
    inputs: Inputs,
}

impl CustomOp1 for Linear<'_> {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let x = Rows::new(storage, layout)?;
        let two_terms = self.inputs == Inputs::TwoTerms && self.weight.format != WeightFormat::F32;
        let out = if two_terms { in_two_terms(self, x) } else { on_cpu(self.level, x, self.weight, self.bias) };
        Ok((CpuStorage::F32(out), Shape::from((x.count, self.weight.out_features))))
    }
}

/// As [`on_cpu`] on twice the rows: the inputs, and what rounding them loses. Their results are added, then the bias.
fn in_two_terms(op: &Linear<'_>, x: Rows<'_>) -> Vec<f32> {
    let (count, inputs, outputs) = (x.count, x.width, op.weight.out_features);
    let split = |terms: &SharedMatrix<'_, _>| {
        for_each_row_range(count, inputs, |rows| {
            let (start, len) = (rows.start * inputs, rows.len() * inputs);
            // SAFETY: the ranges of rows do not overlap, and neither do the halves.
            let (rounded, lost) =
                unsafe { (terms.cleared_mut(start, len), terms.cleared_mut(count * inputs + start, len)) };
            let terms = rounded.chunks_exact_mut(inputs.max(1)).zip(lost.chunks_exact_mut(inputs.max(1)));
            for (row, (rounded, lost)) in rows.zip(terms) {
                for ((&x, rounded), lost) in x.row(row).iter().zip(rounded).zip(lost) {
                    let bits = x.to_bits();
                    let nearest = f32::from_bits(bits.wrapping_add(0x7fff + (bits >> 16 & 1)) & 0xffff_0000);
                    *rounded = if x.is_finite() { nearest } else { x };
                    // Nothing is lost of an infinity.
                    *lost = if nearest.is_finite() { x - nearest } else { 0.0 };
                }
            }
        });
    };
    // SAFETY: the ranges cover all rows of both halves.
    let terms = unsafe { written(2 * count * inputs, split) };
    let mut out = on_cpu(op.level, Rows::contiguous(&terms, inputs), op.weight, None);
    let (sums, lost) = out.split_at_mut(count * outputs);
    let sums = SharedMatrix::new(sums);
    for_each_row_range(count, outputs, |rows| {
        let lost = &lost[rows.start * outputs..rows.end * outputs];
        // SAFETY: the ranges of rows do not overlap.
        let sums = unsafe { sums.slice_mut(rows.start * outputs, rows.len() * outputs) };
        sums.iter_mut().zip(lost).for_each(|(sum, lost)| *sum += lost);
        if let Some(bias) = op.bias {
            for sums in sums.chunks_exact_mut(outputs.max(1)) {
                sums.iter_mut().zip(bias).for_each(|(sum, bias)| *sum += bias);
            }
        }
    });
    out.truncate(count * outputs);
    out
}

/// `x Wᵀ + bias`, `[x.count, out_features]`.
fn on_cpu(level: Level, x: Rows<'_>, weight: &Packed, bias: Option<&[f32]>) -> Vec<f32> {
    let width = weight.out_features;
    if x.count == 0 || width == 0 {
        return Vec::new();
    }
    let groups = width.div_ceil(PANEL_GROUP * LANES);
    let tasks = groups.min(current_num_threads() * 4);
    let parallel = x.count * width * weight.in_features >= WORTH_SHARING;
    let groups = |task: usize| groups * task / tasks..groups * (task + 1) / tasks;
    let write = |data: &SharedMatrix<'_, _>| {
        let outputs = Outputs { data, width, bias };
        match level {
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            Level::Amx(amx) if weight.format != WeightFormat::F32 => {
                let x = amx::RowTiles::new(amx, x, weight);
                for_each_task(tasks, parallel, |task| amx::linear(amx, &x, weight, groups(task), &outputs));
            }
            _ => {
                let x = vector::Tiles::new(level, x, weight);
                for_each_task(tasks, parallel, |task| vector::linear(level, &x, weight, groups(task), &outputs));
            }
        }
    };
    // SAFETY: the tasks' groups cover all panels, and each writes its columns of all rows.
    unsafe { written(x.count * width, write) }
}
