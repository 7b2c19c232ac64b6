//! Experts one after another, each over its rows, by the Linear of the device. The host reads the tiles first.

use candle_core::Tensor;

use super::ExpertWeights;
use crate::{
    error::{Error, Result},
    kernels::{
        linear::{Extras, Inputs, linear},
        route::{NONE, Tiles},
    },
};

pub(super) fn grouped_linear(
    x: Inputs<'_>,
    tokens: Option<&Tensor>,
    weights: &ExpertWeights,
    tiles: &Tiles,
    rows: usize,
) -> Result<Tensor> {
    // An expert's tiles follow each other.
    let mut ranges: Vec<(usize, u32, u32)> = Vec::new();
    for tile in tiles.bounds.to_vec2::<u32>()?.iter().take_while(|tile| tile[0] != NONE) {
        match ranges.last_mut().filter(|(expert, _, end)| *expert == tile[0] as usize && *end == tile[1]) {
            Some(range) => range.2 = tile[2],
            None => ranges.push((tile[0] as usize, tile[1], tile[2])),
        }
    }
    let x = x.tensor()?;
    let run = |&(expert, first, end): &(usize, u32, u32)| {
        let weight = weights.weights.get(expert);
        let weight = weight.ok_or_else(|| Error::internal(format!("grouped_linear: there is no expert {expert}")))?;
        let (first, count) = (first as usize, (end - first) as usize);
        let own = match tokens {
            Some(tokens) => x.index_select(&tokens.narrow(0, first, count)?, 0)?,
            None => x.narrow(0, first, count)?,
        };
        let bias = weights.biases.as_ref().map(|biases| biases.get(expert)).transpose()?;
        linear(Inputs::Rows(&own), weight, Extras { bias: bias.as_ref(), ..Extras::default() })
    };
    let parts = ranges.iter().map(run).collect::<Result<Vec<_>>>()?;
    let made: usize = ranges.iter().map(|(_, first, end)| (end - first) as usize).sum();
    if made != rows {
        return Err(Error::internal(format!("grouped_linear: tiles of {made} rows, not of {rows}")));
    }
    if parts.is_empty() {
        return Ok(Tensor::zeros((0, weights.outputs()), candle_core::DType::F32, x.device())?);
    }
    Ok(Tensor::cat(&parts, 0)?)
}
