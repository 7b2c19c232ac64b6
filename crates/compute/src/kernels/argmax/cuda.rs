//! The most likely tokens on an NVIDIA card.

use candle_core::{DType, Tensor};

use super::launches;
use crate::{
    error::Result,
    ids::TokenId,
    kernels::cuda::{Module, card, empty, module, pointer, rows},
};

static MODULE: Module = module!("argmax");
/// Rows a launch.
const MOST_ROWS: usize = 32_768;

/// As [`argmax`](super::argmax), of float32. Waits for the card.
pub(super) fn argmax(logits: &Tensor) -> Result<Vec<Option<TokenId>>> {
    let (card, rows) = (card(logits)?, rows(logits)?);
    let mut tokens = Vec::with_capacity(rows.count);
    for first in (0..rows.count).step_by(MOST_ROWS) {
        let count = MOST_ROWS.min(rows.count - first);
        // A u64 is two of these.
        let best = empty(card, (count, 2 * launches::PARTS), DType::U32)?;
        let places = empty(card, count, DType::U32)?;
        let (best_at, places_at) = (pointer(&best, DType::U32)?, pointer(&places, DType::U32)?);
        let from = rows.address + (first * rows.stride * size_of::<f32>()) as u64;
        // SAFETY: the kernels' arguments; `best` and `places` have room for `count` rows.
        unsafe {
            MODULE.launch(card, &launches::parts(from, rows.stride, best_at, [count, rows.width]))?;
            MODULE.launch(card, &launches::argmax(best_at, places_at, count))?;
        }
        let places: Vec<u32> = places.to_vec1()?;
        tokens.extend(places.into_iter().map(|place| (place != u32::MAX).then_some(TokenId(place))));
    }
    Ok(tokens)
}
