//! Sums of weighted rows on an NVIDIA card.

use candle_core::{DType, Tensor};

use super::launches::CombineLaunch;
use crate::{
    error::Result,
    kernels::cuda::{Module, card, empty, module, pointer, rows, uploaded},
};

static MODULE: Module = module!("combine");

/// As [`combine`](super::combine), of checked shapes and places.
pub(super) fn combine(
    x: &Tensor,
    places: &[u32],
    weights: &[f32],
    each: usize,
    onto: Option<&Tensor>,
) -> Result<Tensor> {
    let card = card(x)?;
    let (places, weights) = (uploaded(card, places)?, uploaded(card, bytemuck::cast_slice(weights))?);
    run(x, (&places, &weights, DType::U32), each, onto)
}

/// As [`combine_placed`](super::combine_placed), of checked shapes.
pub(super) fn combine_placed(
    x: &Tensor,
    (places, weights): (&Tensor, &Tensor),
    each: usize,
    onto: Option<&Tensor>,
) -> Result<Tensor> {
    run(x, (places, weights, DType::F32), each, onto)
}

/// With weights whose bits are in a tensor of that type.
fn run(
    x: &Tensor,
    (places, weights, kind): (&Tensor, &Tensor, DType),
    each: usize,
    onto: Option<&Tensor>,
) -> Result<Tensor> {
    let (card, x) = (card(x)?, rows(x)?);
    let count = places.dims1()?.checked_div(each).unwrap_or(0);
    let out = empty(card, (count, x.width), DType::F32)?;
    if count * x.width == 0 {
        return Ok(out);
    }
    let onto = onto.map(rows).transpose()?;
    let launch = CombineLaunch {
        rows: (x.address, x.stride),
        places: pointer(places, DType::U32)?,
        weights: pointer(weights, kind)?,
        onto: onto.as_ref().map_or((0, 0), |onto| (onto.address, onto.stride)),
        out: pointer(&out, DType::F32)?,
        count,
        each,
        width: x.width,
    };
    // SAFETY: the kernel's arguments; every place is a row, and `places` and `weights` have `count * each` numbers.
    unsafe { MODULE.launch(card, &launch.call()) }?;
    Ok(out)
}
