//! `y = x Wᵀ + b` for a weight in any format, packed once at load.
//!
//! A float32 weight is multiplied in float32; float16 and bfloat16 as bfloat16, with inputs that are rounded to it, summed in
//! float32. Those products are added in a fixed order ([`arithmetic`]). Quantized weights are multiplied as the integers that
//! they are, with inputs that are rounded to integers ([`integer`]), which has no order but between blocks. Either way a row
//! has the same bits in every batch, on every instruction set. Weights are unpacked in registers or in the first-level
//! cache, never as a whole.
//!
//! Other devices multiply plain numbers in the weight's type, summed in float32, and blocks as candle's own kernels do
//! ([`portable`]); what is computed on the way here is then an operation of its own. NVIDIA cards multiply eight-bit floats as
//! well ([`fp8`]).

mod ahead;
mod aligned;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod amx;
mod arithmetic;
#[cfg(feature = "cuda")]
mod cuda;
pub mod format;
mod fp8;
mod gather;
#[cfg(test)]
mod host_twin_tests;
mod inputs;
mod integer;
mod outputs;
mod packed;
#[cfg(target_arch = "x86_64")]
mod pairs;
mod panel;
mod portable;
mod quantize;
#[cfg(test)]
mod reference;
mod rows;
pub mod stored;
#[cfg(test)]
mod tests;
mod vector;
mod weight;

use candle_core::{Device, Tensor};

pub use fp8::check_fp8;
pub use inputs::Inputs;
pub use weight::PackedWeight;

use super::{
    cpu_tensor::{Rows, SharedMatrix, cpu_storage, with_contiguous_rows, written},
    pool::{current_num_threads, for_each_task},
    simd::{LANES, Level},
};
use crate::error::{Error, Result};
use format::WeightFormat;
use inputs::Source;
use outputs::{Added, Outputs};
use packed::{PANEL_GROUP, Packed};
#[cfg(feature = "cuda")]
use portable::DeviceWeight;
use weight::Storage;

/// Multiply-adds that pay for waking another thread.
const WORTH_SHARING: usize = 64 * 1024;
/// Rows over which the weights of a task take longer than to begin one.
const MANY_ROWS: usize = 64;

/// What is added to a product, and how exactly it is taken.
#[derive(Clone, Copy, Default)]
pub struct Extras<'a> {
    /// Float32 `[out_features]`, added to each row.
    pub bias: Option<&'a Tensor>,
    /// Float32 `[m, out_features]`, added last: the residual stream.
    pub onto: Option<&'a Tensor>,
    /// What is kept of inputs that are multiplied as bfloat16.
    pub terms: Terms,
}

/// What is kept of inputs that are multiplied as bfloat16.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Terms {
    /// The nearest bfloat16: 8 bits.
    #[default]
    One,
    /// That and the nearest to what is left: 16 bits, multiplied twice. For products whose errors are carried on, such as
    /// what a state is made of; with few rows the weights' way from memory hides what it costs.
    Two,
}

impl Terms {
    fn count(self) -> usize {
        match self {
            Self::One => 1,
            Self::Two => 2,
        }
    }
}

/// `x Wᵀ + bias + onto`: `x` is `[m, in_features]`, the result `[m, out_features]` float32.
///
/// # Errors
/// `Internal` where the shapes do not fit each other or the devices differ.
pub fn linear(x: Inputs<'_>, weight: &PackedWeight, extras: Extras<'_>) -> Result<Tensor> {
    linear_at(Level::best(), x, weight, extras)
}

fn linear_at(level: Level, x: Inputs<'_>, weight: &PackedWeight, extras: Extras<'_>) -> Result<Tensor> {
    let Extras { bias, onto, terms } = extras;
    let ((m, width), out) = (x.dims()?, weight.out_features());
    if width != weight.in_features() {
        let want = weight.in_features();
        return Err(Error::internal(format!("linear: x has shape [{m}, {width}], the weight takes [m, {want}]")));
    }
    if let Some(bias) = bias.filter(|bias| bias.dims() != [out]) {
        return Err(Error::internal(format!("linear: the bias has shape {:?}, must have [{out}]", bias.dims())));
    }
    if let Some(onto) = onto.filter(|onto| onto.dims() != [m, out]) {
        return Err(Error::internal(format!("linear: added to shape {:?}, must be [{m}, {out}]", onto.dims())));
    }
    let weight = match &weight.storage {
        Storage::Cpu(weight) => weight,
        #[cfg(feature = "cuda")]
        Storage::Device(DeviceWeight::Dense(weight)) if weight.device().is_cuda() => {
            return cuda::linear(x, weight, bias, onto);
        }
        Storage::Device(weight) => return weight.linear(&x.tensor()?, bias, onto),
        Storage::Fp8(weight) => return weight.linear(x, bias, onto),
    };
    // Nothing is lost of an input of a float32 weight.
    let terms = if weight.format == WeightFormat::F32 { Terms::One } else { terms };
    let bias = bias.map(|bias| bias.storage_and_layout());
    let bias = bias.as_ref().map(|(storage, layout)| Rows::vector(cpu_storage(storage)?, layout)).transpose()?;
    let onto = onto.map(with_contiguous_rows).transpose()?;
    let onto = onto.as_ref().map(|onto| onto.storage_and_layout());
    let onto = onto.as_ref().map(|(storage, layout)| Rows::new(cpu_storage(storage)?, layout)).transpose()?;
    let y = x.on_cpu(|x| Ok(on_cpu(level, x, weight, &Added { bias, onto }, terms)))?;
    Ok(Tensor::from_vec(y, (m, out), &Device::Cpu)?)
}

/// `x Wᵀ` and what is added, `[x.count(), out_features]`.
fn on_cpu(level: Level, x: &Source<'_>, weight: &Packed, added: &Added<'_>, terms: Terms) -> Vec<f32> {
    let (count, width) = (x.count(), weight.out_features);
    if count == 0 || width == 0 {
        return Vec::new();
    }
    let groups = width.div_ceil(PANEL_GROUP * LANES);
    // With many rows a task takes long however small it is, and a thread that waits for another's last one waits less.
    let tasks = groups.min(current_num_threads() * if count < MANY_ROWS { 4 } else { 12 });
    let parallel = count * width * weight.in_features >= WORTH_SHARING;
    let groups = |task: usize| groups * task / tasks..groups * (task + 1) / tasks;
    let write = |data: &SharedMatrix<'_, _>| {
        let outputs = Outputs { data, width, added };
        match level {
            level if !weight.format.is_float() => {
                let x = integer::Inputs::new(level, x, weight);
                for_each_task(tasks, parallel, |task| x.linear(weight, groups(task), &outputs));
            }
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            Level::Amx(amx) if weight.format != WeightFormat::F32 => {
                let x = amx::RowTiles::new(amx, x, terms);
                for_each_task(tasks, parallel, |task| amx::linear(amx, &x, weight, groups(task), &outputs));
            }
            #[cfg(target_arch = "x86_64")]
            Level::Avx512Bf16(bf16) if weight.format != WeightFormat::F32 => {
                let x = pairs::Rows::new(level, x, terms, weight.format);
                for_each_task(tasks, parallel, |task| pairs::linear(bf16, &x, weight, groups(task), &outputs));
            }
            _ => {
                let x = vector::Tiles::new(level, x, weight, terms);
                for_each_task(tasks, parallel, |task| vector::linear(level, &x, weight, groups(task), &outputs));
            }
        }
    };
    // SAFETY: the tasks' groups cover all panels, and each writes its columns of all rows.
    unsafe { written(count * width, write) }
}
