//! Sums of weighted rows by candle's own operations, for devices that have no kernel of ours.

use candle_core::Tensor;

use crate::error::Result;

pub(super) fn combine(
    rows: &Tensor,
    places: &[u32],
    weights: &[f32],
    each: usize,
    onto: Option<&Tensor>,
) -> Result<Tensor> {
    let (_, width) = rows.dims2()?;
    let count = places.len().checked_div(each).unwrap_or(0);
    let taken = rows.index_select(&Tensor::new(places, rows.device())?, 0)?;
    let weighted = taken.broadcast_mul(&Tensor::new(weights, rows.device())?.unsqueeze(1)?)?;
    let sum = weighted.reshape((count, each, width))?.sum(1)?;
    Ok(match onto {
        Some(onto) => (onto + sum)?,
        None => sum,
    })
}
