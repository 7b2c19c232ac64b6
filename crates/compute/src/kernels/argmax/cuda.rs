//! The most likely tokens on an NVIDIA card.

use candle_core::{DType, Tensor};

use super::launches;
use crate::{
    error::Result,
    kernels::cuda::{Module, card, empty, module, pointer, rows},
};

static MODULE: Module = module!("argmax");
/// Rows a launch.
const MOST_ROWS: usize = 32_768;

/// The most likely of each row of float32, 2^32 - 1 for one that has none: u32 `[n]`.
pub(super) fn argmax(logits: &Tensor) -> Result<Tensor> {
    let (card, rows) = (card(logits)?, rows(logits)?);
    let places = empty(card, rows.count, DType::U32)?;
    let places_at = pointer(&places, DType::U32)?;
    for first in (0..rows.count).step_by(MOST_ROWS) {
        let count = MOST_ROWS.min(rows.count - first);
        // A u64 is two of these.
        let best = empty(card, (count, 2 * launches::PARTS), DType::U32)?;
        let best_at = pointer(&best, DType::U32)?;
        let places_at = places_at + (first * size_of::<u32>()) as u64;
        let from = rows.address + (first * rows.stride * size_of::<f32>()) as u64;
        // SAFETY: the kernels' arguments; `best` and what is left of `places` have room for `count` rows.
        unsafe {
            MODULE.launch(card, &launches::parts(from, rows.stride, best_at, [count, rows.width]))?;
            MODULE.launch(card, &launches::argmax(best_at, places_at, count))?;
        }
    }
    Ok(places)
}
