//! Linears of several experts on an NVIDIA card, in one launch.

use std::sync::Arc;

use candle_core::{DType, Tensor};

use super::{ExpertWeights, launches::GroupedLinearLaunch};
use crate::{
    error::{Error, Result},
    kernels::{
        cuda::{Module, card, empty, module, pointer},
        linear::{Inputs, PackedWeight},
        route::Tiles,
    },
};

static MODULE: Module = module!("grouped_linear");

/// Where the weights are.
pub(super) struct Table {
    dtype: DType,
    /// Their addresses, two numbers each, the lower half first.
    addresses: Tensor,
}

/// The table of weights that are plain numbers of one type on a card; none of others.
pub(super) fn table(weights: &[Arc<PackedWeight>]) -> Result<Option<Table>> {
    let dense: Option<Vec<&Tensor>> = weights.iter().map(|weight| weight.dense()).collect();
    let Some((dense, first)) = dense.and_then(|dense| Some((dense.clone(), *dense.first()?))) else { return Ok(None) };
    let dtype = first.dtype();
    let known = matches!(dtype, DType::F32 | DType::F16 | DType::BF16);
    let alike = |weight: &&Tensor| weight.dtype() == dtype && weight.device().same_device(first.device());
    if !known || !first.device().is_cuda() || !dense.iter().all(alike) {
        return Ok(None);
    }
    let addresses = dense.iter().map(|weight| pointer(weight, dtype)).collect::<Result<Vec<u64>>>()?;
    let halves: Vec<u32> = addresses.iter().flat_map(|address| [*address as u32, (address >> 32) as u32]).collect();
    Ok(Some(Table { dtype, addresses: Tensor::from_slice(&halves, halves.len(), first.device())? }))
}

/// As [`grouped_linear`](super::grouped_linear), of checked shapes.
pub(super) fn grouped_linear(
    x: Inputs<'_>,
    tokens: Option<&Tensor>,
    (weights, table): (&ExpertWeights, &Table),
    tiles: &Tiles,
    rows: usize,
) -> Result<Tensor> {
    let (inputs, outputs) = (weights.inputs(), weights.outputs());
    let x = x.on_card(table.dtype)?;
    let card = card(&x)?;
    let out = empty(card, (rows, outputs), DType::F32)?;
    let num_tiles = tiles.bounds.dims()[0];
    if rows * outputs * num_tiles == 0 {
        return Ok(out);
    }
    let launch = GroupedLinearLaunch {
        dtype: table.dtype,
        x: pointer(&x, table.dtype)?,
        tokens: tokens.map_or(Ok(0), |tokens| pointer(tokens, DType::U32))?,
        weights: pointer(&table.addresses, DType::U32)?,
        biases: weights.biases.as_ref().map_or(Ok(0), |biases| pointer(biases, DType::F32))?,
        tiles: pointer(&tiles.bounds, DType::U32)?,
        num_tiles,
        rows_per_tile: tiles.rows,
        out: pointer(&out, DType::F32)?,
        inputs,
        outputs,
    };
    let call = launch.call();
    let call = call.ok_or_else(|| Error::internal(format!("grouped_linear: no kernel has tiles of {}", tiles.rows)))?;
    // SAFETY: the kernel's arguments; the tiles cover `rows` rows of experts of the table, whose weights have these sizes and live
    // as long as it, and every token is a row of `x`, both as `route` makes them.
    unsafe { MODULE.launch(card, &call) }?;
    Ok(out)
}
