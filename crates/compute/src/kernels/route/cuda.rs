//! Routes made on an NVIDIA card. Nothing waits for them.

use candle_core::{DType, Tensor};

use super::{Router, Routes, Tiles, launches::RouteLaunch, tiling};
use crate::{
    error::Result,
    kernels::cuda::{Module, card, empty, module, pointer, rows, uploaded},
};

static MODULE: Module = module!("route");

/// As [`route`](super::route), of a checked shape.
pub(super) fn route(scores: &Tensor, router: &Router) -> Result<Routes> {
    let (card, scores) = (card(scores)?, rows(scores)?);
    let num_rows = scores.count * router.routing.experts_per_token;
    let (height, num_tiles) = tiling(num_rows, router.experts);
    let chosen = empty(card, num_rows, DType::U32)?;
    let routes = Routes {
        tokens: empty(card, num_rows, DType::U32)?,
        places: empty(card, scores.count * router.each(), DType::U32)?,
        weights: empty(card, scores.count * router.each(), DType::F32)?,
        tiles: Tiles { bounds: empty(card, (num_tiles, 3), DType::U32)?, rows: height },
    };
    if scores.count == 0 {
        return Ok(routes);
    }
    let bias = router.routing.selection_bias.as_ref();
    let bias = bias.map(|bias| uploaded(card, bytemuck::cast_slice(bias))).transpose()?;
    let launch = RouteLaunch {
        routing: &router.routing,
        experts: router.experts,
        weighed: router.weighed,
        scores: (scores.address, scores.stride),
        selection_bias: bias.as_ref().map_or(Ok(0), |bias| pointer(bias, DType::U32))?,
        tokens: scores.count,
        chosen: pointer(&chosen, DType::U32)?,
        weights: pointer(&routes.weights, DType::F32)?,
        places: pointer(&routes.places, DType::U32)?,
        of_rows: pointer(&routes.tokens, DType::U32)?,
        tiles: pointer(&routes.tiles.bounds, DType::U32)?,
        num_tiles,
        rows_per_tile: height,
    };
    // SAFETY: the kernels' arguments; all tensors have the sizes that the launch gives, and every token has as many open experts
    // as it takes.
    unsafe {
        MODULE.launch(card, &launch.choose())?;
        MODULE.launch(card, &launch.sort())?;
    }
    Ok(routes)
}
