//! Linears of several experts over rows that stand by expert: one launch on a card, whatever the rows' number of each.
//!
//! What rows are whose is on the device ([`route`](super::route)), so nothing waits for the host. An output is one chain over the
//! inputs in their order, so a row's bits do not depend on the others.

#[cfg(feature = "cuda")]
mod cuda;
#[cfg(test)]
mod host_twin_tests;
#[cfg(any(test, feature = "cuda"))]
mod launches;
mod portable;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use candle_core::Tensor;

use super::{
    linear::{Inputs, PackedWeight},
    route::Tiles,
};
use crate::error::{Error, Result};

/// The weights of one Linear of each expert, all `[outputs, inputs]`.
pub struct ExpertWeights {
    weights: Vec<Arc<PackedWeight>>,
    /// Float32 `[experts, outputs]`.
    biases: Option<Tensor>,
    #[cfg(feature = "cuda")]
    table: Option<cuda::Table>,
}

impl ExpertWeights {
    /// Of one weight an expert, with biases `[experts, outputs]`.
    ///
    /// # Errors
    /// `Internal` where there are none, or their shapes differ.
    pub fn new(weights: Vec<Arc<PackedWeight>>, biases: Option<Tensor>) -> Result<Self> {
        let shape = |weight: &PackedWeight| (weight.out_features(), weight.in_features());
        let first = weights.first().ok_or_else(|| Error::internal("grouped_linear: there are no experts"))?;
        let (outputs, inputs) = shape(first);
        let fits = weights.iter().all(|weight| shape(weight) == (outputs, inputs))
            && biases.as_ref().is_none_or(|biases| biases.dims() == [weights.len(), outputs]);
        if !fits {
            let shapes: Vec<_> = weights.iter().map(|weight| shape(weight)).collect();
            let biases = biases.map(|biases| biases.dims().to_vec());
            return Err(Error::internal(format!("grouped_linear: weights {shapes:?}, biases {biases:?}")));
        }
        #[cfg(feature = "cuda")]
        let table = cuda::table(&weights)?;
        Ok(Self {
            weights,
            biases,
            #[cfg(feature = "cuda")]
            table,
        })
    }

    /// Whether one launch multiplies them all: plain numbers of one type on a card.
    #[must_use]
    pub fn is_one_launch(&self) -> bool {
        #[cfg(feature = "cuda")]
        let found = self.table.is_some();
        #[cfg(not(feature = "cuda"))]
        let found = false;
        found
    }

    /// Outputs of each.
    fn outputs(&self) -> usize {
        self.weights.first().map_or(0, |weight| weight.out_features())
    }

    /// Inputs of each.
    fn inputs(&self) -> usize {
        self.weights.first().map_or(0, |weight| weight.in_features())
    }
}

/// For each row of the tiles, the inputs `[_, inputs]` of its token times the weight of the tile's expert, and its bias: float32
/// `[rows, outputs]`. Without `tokens` the inputs are the rows' own.
///
/// # Errors
/// `Internal` where the shapes do not fit.
pub fn grouped_linear(
    x: Inputs<'_>,
    tokens: Option<&Tensor>,
    weights: &ExpertWeights,
    tiles: &Tiles,
) -> Result<Tensor> {
    let (rows, inputs) = x.dims()?;
    let rows = match tokens {
        None => rows,
        Some(tokens) => tokens.dims1()?,
    };
    if inputs != weights.inputs() || tiles.bounds.dims().get(1) != Some(&3) {
        let (want, tiles) = (weights.inputs(), tiles.bounds.dims());
        return Err(Error::internal(format!("grouped_linear: {inputs} inputs for {want}, tiles {tiles:?}")));
    }
    #[cfg(feature = "cuda")]
    if let Some(table) = &weights.table {
        return cuda::grouped_linear(x, tokens, (weights, table), tiles, rows);
    }
    portable::grouped_linear(x, tokens, weights, tiles, rows)
}
