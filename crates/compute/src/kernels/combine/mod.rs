//! Sums of weighted rows, in the order given: what a mixture of experts makes of its experts' results.

#[cfg(feature = "cuda")]
mod cuda;
#[cfg(test)]
mod host_twin_tests;
#[cfg(any(test, feature = "cuda"))]
mod launches;
mod portable;
#[cfg(test)]
mod tests;

use candle_core::{CpuStorage, CustomOp1, Device, Layout, Shape, Tensor};

use super::{
    cpu_tensor::{Rows, SharedMatrix, cpu_storage, for_each_row_range, with_contiguous_rows, written},
    simd::{Kernel, LANES, Level, Simd},
};
use crate::error::{Error, Result};

/// Row `i` of the result is row `i` of `onto` and the sum of `weights[i * each + j] * rows[places[i * each + j]]` over
/// `j < each`, added one after another: the same bits whatever other rows there are.
///
/// `rows` is float32 `[m, d]`; `places` and `weights` have `n * each` entries; `onto`, where it is given, is `[n, d]`.
///
/// # Errors
/// `Internal` where the shapes do not fit each other or a place is no row.
pub fn combine(rows: &Tensor, places: &[u32], weights: &[f32], each: usize, onto: Option<&Tensor>) -> Result<Tensor> {
    combine_at(Level::best(), rows, places, weights, each, onto)
}

/// The same with places and weights that are on the device of the rows already: u32 and float32 `[n * each]`. On a card nobody looks
/// whether places are rows.
///
/// # Errors
/// `Internal` where the shapes do not fit each other.
pub fn combine_placed(
    rows: &Tensor,
    (places, weights): (&Tensor, &Tensor),
    each: usize,
    onto: Option<&Tensor>,
) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if let Device::Cuda(_) = rows.device() {
        check(rows, (places.dims1()?, weights.dims1()?), each, onto)?;
        return cuda::combine_placed(rows, (places, weights), each, onto);
    }
    combine(rows, &places.to_vec1::<u32>()?, &weights.to_vec1::<f32>()?, each, onto)
}

/// Rows of the result.
fn check(rows: &Tensor, (places, weights): (usize, usize), each: usize, onto: Option<&Tensor>) -> Result<usize> {
    let (_, width) = rows.dims2()?;
    let count = places.checked_div(each).unwrap_or(0);
    let fits = count * each == places && weights == places;
    if !fits || onto.is_some_and(|onto| onto.dims() != [count, width]) {
        let onto = onto.map(Tensor::dims);
        let why = format!("combine: {places} places, {weights} weights, {each} each, onto {onto:?}");
        return Err(Error::internal(why));
    }
    Ok(count)
}

fn combine_at(
    level: Level,
    rows: &Tensor,
    places: &[u32],
    weights: &[f32],
    each: usize,
    onto: Option<&Tensor>,
) -> Result<Tensor> {
    let count = check(rows, (places.len(), weights.len()), each, onto)?;
    let m = rows.dims()[0];
    if let Some(place) = places.iter().find(|place| **place as usize >= m) {
        return Err(Error::internal(format!("combine: there is no row {place} of {m}")));
    }
    #[cfg(feature = "cuda")]
    if let Device::Cuda(_) = rows.device() {
        return cuda::combine(rows, places, weights, each, onto);
    }
    if !matches!(rows.device(), Device::Cpu) {
        return portable::combine(rows, places, weights, each, onto);
    }
    let onto = onto.map(with_contiguous_rows).transpose()?;
    let onto = onto.as_ref().map(|onto| onto.storage_and_layout());
    let onto = onto.as_ref().map(|(storage, layout)| Rows::new(cpu_storage(storage)?, layout)).transpose()?;
    let op = Combine { level, places, weights, each, count, onto };
    Ok(with_contiguous_rows(rows)?.apply_op1_no_bwd(&op)?)
}

struct Combine<'a> {
    level: Level,
    places: &'a [u32],
    weights: &'a [f32],
    each: usize,
    count: usize,
    onto: Option<Rows<'a>>,
}

impl CustomOp1 for Combine<'_> {
    fn name(&self) -> &'static str {
        "combine"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let rows = Rows::new(storage, layout)?;
        let width = rows.width;
        let write = |out: &SharedMatrix<'_, _>| {
            for_each_row_range(self.count, width * (self.each + 1), |range| {
                // SAFETY: the ranges of rows do not overlap.
                let out = unsafe { out.cleared_mut(range.start * width, range.len() * width) };
                for (row, out) in range.zip(out.chunks_exact_mut(width.max(1))) {
                    if let Some(onto) = &self.onto {
                        out.copy_from_slice(onto.row(row));
                    }
                    for k in row * self.each..(row + 1) * self.each {
                        let weighted =
                            Weighted { row: rows.row(self.places[k] as usize), weight: self.weights[k], out };
                        self.level.run(weighted);
                    }
                }
            });
        };
        // SAFETY: the ranges cover all rows.
        let out = unsafe { written(self.count * width, write) };
        Ok((CpuStorage::F32(out), Shape::from((self.count, width))))
    }
}

/// Adds a row times a weight.
struct Weighted<'a> {
    row: &'a [f32],
    weight: f32,
    out: &'a mut [f32],
}

impl Kernel for Weighted<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let weight = simd.splat(self.weight);
        let (row, row_tail) = self.row.as_chunks::<LANES>();
        let (out, out_tail) = self.out.as_chunks_mut::<LANES>();
        for (row, out) in row.iter().zip(out) {
            simd.store(simd.fma(simd.load(row), weight, simd.load(out)), out);
        }
        if !row_tail.is_empty() {
            let sum = simd.fma(simd.load_partial(row_tail, 0.0), weight, simd.load_partial(out_tail, 0.0));
            simd.store_partial(sum, out_tail);
        }
    }
}
