//! Rotary position embedding (Su et al., 2021, arXiv:2104.09864): pairs of a head's dimensions are turned by an angle
//! that grows with the position.

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
#[cfg(test)]
mod host_twin_tests;
#[cfg(any(test, feature = "cuda"))]
pub(super) mod launches;
mod portable;
#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;

use std::borrow::Cow;

use candle_core::{CpuStorage, CustomOp1, Device, Layout, Shape, Tensor};

use super::{
    cpu_tensor::{Rows, cpu_storage, with_contiguous_rows},
    rms_norm::rms_norm,
    simd::Level,
};
use crate::error::{Error, Result};

/// Which dimensions make a pair, of the `2 * inv_freq.len()` that are turned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopeStyle {
    /// One of the first half with one of the second, as Hugging Face's Llama has it.
    Halves,
    /// Neighbours, as the paper and GGUF's Llama have it.
    Interleaved,
}

/// Cosines and sines of every position; one serves all layers.
#[derive(Clone, Debug)]
pub struct RopeTable {
    /// `[max_positions, 2, pairs]` float32: a position's cosines, then its sines.
    pub(super) table: Tensor,
}

impl RopeTable {
    /// A table for positions below `max_positions`: the angle of pair `k` at position `p` is `p * inv_freq[k]`, rounded
    /// to float32 as the published models were trained; cosine and sine are multiplied with `attention_factor`
    /// (1 but for YaRN and longrope).
    ///
    /// # Errors
    /// `Internal` where the device has no room.
    pub fn new(inv_freq: &[f32], max_positions: usize, attention_factor: f32, device: &Device) -> Result<Self> {
        Self::by_position(inv_freq.len(), |_| inv_freq.into(), max_positions, attention_factor, device)
    }

    /// The same where each position has frequencies of its own, `[pairs]`.
    ///
    /// # Errors
    /// `Internal` where the device has no room.
    pub fn by_position<'a>(
        pairs: usize,
        inv_freq: impl Fn(usize) -> Cow<'a, [f32]>,
        max_positions: usize,
        attention_factor: f32,
        device: &Device,
    ) -> Result<Self> {
        let mut table = Vec::with_capacity(2 * pairs * max_positions);
        for position in 0..max_positions {
            let inv_freq = inv_freq(position);
            let angle = |inv_freq: &f32| f64::from(position as f32 * inv_freq);
            table.extend(inv_freq.iter().map(|f| angle(f).cos() as f32 * attention_factor));
            table.extend(inv_freq.iter().map(|f| angle(f).sin() as f32 * attention_factor));
        }
        Ok(Self { table: Tensor::from_vec(table, (max_positions, 2, pairs), device)? })
    }

    /// Positions it covers.
    #[must_use]
    pub fn max_positions(&self) -> usize {
        self.table.dims()[0]
    }

    /// Pairs of dimensions that are turned.
    #[must_use]
    pub fn pairs(&self) -> usize {
        self.table.dims()[2]
    }
}

/// The [RMS norm](mod@super::rms_norm) of each head, before it is turned.
#[derive(Clone, Copy, Debug)]
pub struct HeadNorm<'a> {
    /// Float32 `[head_dim]`.
    pub weight: &'a Tensor,
    /// What is added to the mean of squares.
    pub eps: f64,
}

/// Turns the first `2 * pairs` dimensions of every head by its position and passes on the others: `x` is float32
/// `[n, heads, head_dim]`, `positions` has `n` entries; the result has the shape of `x`.
///
/// # Errors
/// `Internal` where the shapes do not fit or a position is past the table.
pub fn rope(
    x: &Tensor,
    norm: Option<HeadNorm<'_>>,
    positions: &[u32],
    table: &RopeTable,
    style: RopeStyle,
) -> Result<Tensor> {
    rope_at(Level::best(), x, norm, positions, table, style)
}

fn rope_at(
    level: Level,
    x: &Tensor,
    norm: Option<HeadNorm<'_>>,
    positions: &[u32],
    table: &RopeTable,
    style: RopeStyle,
) -> Result<Tensor> {
    let &[n, _, head_dim] = x.dims() else {
        return Err(Error::internal(format!("rope: x has shape {:?}, must have [n, heads, head_dim]", x.dims())));
    };
    if n != positions.len() || 2 * table.pairs() > head_dim {
        let (positions, pairs) = (positions.len(), table.pairs());
        let message = format!("rope: x has shape {:?}, with {positions} positions and {pairs} pairs", x.dims());
        return Err(Error::internal(message));
    }
    if let Some(norm) = norm.filter(|norm| norm.weight.dims() != [head_dim]) {
        return Err(Error::internal(format!("rope: x has shape {:?}, its norm {:?}", x.dims(), norm.weight.dims())));
    }
    let max = table.max_positions();
    if let Some(position) = positions.iter().find(|&&position| position as usize >= max) {
        return Err(Error::internal(format!("rope: position {position} is past the {max} of the table")));
    }
    #[cfg(feature = "cuda")]
    if let Device::Cuda(_) = x.device() {
        return cuda::rope(x, norm, positions, table, style);
    }
    if !matches!(x.device(), Device::Cpu) {
        let normed = norm.map(|norm| rms_norm(x, norm.weight, norm.eps)).transpose()?;
        return portable::rope(normed.as_ref().unwrap_or(x), positions, &table.table, style);
    }
    let weight = norm.map(|norm| norm.weight.storage_and_layout());
    let weight = weight.as_ref().map(|(storage, layout)| Rows::vector(cpu_storage(storage)?, layout)).transpose()?;
    let norm = weight.zip(norm.map(|norm| norm.eps));
    let (storage, layout) = table.table.storage_and_layout();
    let table = Rows::new(cpu_storage(&storage)?, layout)?;
    Ok(with_contiguous_rows(x)?.apply_op1_no_bwd(&Rope { level, norm, positions, table, head_dim, style })?)
}

struct Rope<'a> {
    level: Level,
    norm: Option<(&'a [f32], f64)>,
    positions: &'a [u32],
    table: Rows<'a>,
    head_dim: usize,
    style: RopeStyle,
}

impl CustomOp1 for Rope<'_> {
    fn name(&self) -> &'static str {
        "rope"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let x = Rows::new(storage, layout)?;
        let out = cpu::rope(self, x);
        Ok((CpuStorage::F32(out), layout.shape().clone()))
    }
}
