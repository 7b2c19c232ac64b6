//! Rotary embedding on an NVIDIA card.

use candle_core::{DType, Tensor};

use super::{HeadNorm, RopeStyle, RopeTable, launches::RopeLaunch};
use crate::{
    error::Result,
    kernels::cuda::{Module, card, empty, module, pointer, rows, uploaded},
};

static MODULE: Module = module!("rope");

/// As [`rope`](super::rope), of checked shapes and positions.
pub(super) fn rope(
    x: &Tensor,
    norm: Option<HeadNorm<'_>>,
    positions: &[u32],
    table: &RopeTable,
    style: RopeStyle,
) -> Result<Tensor> {
    let (_, heads, head_dim) = x.dims3()?;
    let (card, rows) = (card(x)?, rows(x)?);
    let turned = empty(card, x.shape(), DType::F32)?;
    if rows.count * rows.width == 0 {
        return Ok(turned);
    }
    let positions = uploaded(card, positions)?;
    let weight = norm.map(|norm| norm.weight.contiguous()).transpose()?;
    let weight_address = weight.as_ref().map_or(Ok(0), |weight| pointer(weight, DType::F32))?;
    let launch = RopeLaunch {
        x: rows.address,
        stride: rows.stride,
        positions: pointer(&positions, DType::U32)?,
        table: pointer(&table.table, DType::F32)?,
        norm: (weight_address, norm.map_or(0.0, |norm| norm.eps)),
        out: pointer(&turned, DType::F32)?,
        rows: rows.count,
        heads,
        head_dim,
        pairs: table.pairs(),
        style,
    };
    // SAFETY: the kernel's arguments; `rows` and `turned` have these sizes, every position is in the table, a norm's weight
    // has `head_dim` numbers.
    unsafe { MODULE.launch(card, &launch.call()) }?;
    Ok(turned)
}
