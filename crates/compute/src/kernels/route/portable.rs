//! Routes made on the host, which has to wait for the scores.

use candle_core::Tensor;

use super::{NONE, Router, Routes, Tiles, tiling};
use crate::error::Result;

pub(super) fn route(scores: &Tensor, router: &Router) -> Result<Routes> {
    let (device, each) = (scores.device(), router.each());
    let scores: Vec<Vec<f32>> = scores.to_vec2()?;
    let mut rows_of = vec![Vec::new(); router.experts];
    let mut weights = vec![0.0f32; scores.len() * each];
    let num_rows = scores.len() * router.routing.experts_per_token;
    let mut places = vec![0u32; weights.len()];
    for (token, scores) in scores.iter().enumerate() {
        let (of_experts, more) = scores.split_at(router.experts);
        for (rank, (expert, weight)) in router.routing.choose(of_experts).into_iter().enumerate() {
            rows_of[expert].push((token, token * each + rank));
            weights[token * each + rank] = weight;
        }
        for score in more {
            weights[token * each + each - 1] = 1.0 / (1.0 + (-score).exp());
            places[token * each + each - 1] = (num_rows + token) as u32;
        }
    }
    let (height, num_tiles) = tiling(num_rows, router.experts);
    let (mut tokens, mut tiles) = (Vec::with_capacity(num_rows), Vec::with_capacity(3 * num_tiles));
    for (expert, rows) in rows_of.iter().enumerate() {
        let end = (tokens.len() + rows.len()) as u32;
        for first in (tokens.len() as u32..end).step_by(height) {
            tiles.extend([expert as u32, first, end.min(first + height as u32)]);
        }
        for &(token, rank) in rows {
            places[rank] = tokens.len() as u32;
            tokens.push(token as u32);
        }
    }
    tiles.resize(3 * num_tiles, NONE);
    let numbers = |numbers: &[u32]| Tensor::from_slice(numbers, numbers.len(), device);
    Ok(Routes {
        tokens: numbers(&tokens)?,
        places: numbers(&places)?,
        weights: Tensor::from_slice(&weights, weights.len(), device)?,
        tiles: Tiles { bounds: Tensor::from_vec(tiles, (num_tiles, 3), device)?, rows: height },
    })
}
