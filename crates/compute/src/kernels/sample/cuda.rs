//! Draws on an NVIDIA card.

use candle_core::{DType, Tensor};

use super::{Draw, launches::SampleLaunch};
use crate::{
    error::Result,
    kernels::cuda::{Module, card, empty, module, pointer, rows, uploaded},
};

static MODULE: Module = module!("sample");

/// The token of each row, 2^32 - 1 for one that has none, of checked shapes and draws: u32 `[n]`.
pub(super) fn sample(logits: &Tensor, draws: &[Draw]) -> Result<Tensor> {
    let (card, logits) = (card(logits)?, rows(logits)?);
    let tokens = empty(card, draws.len(), DType::U32)?;
    if draws.is_empty() {
        return Ok(tokens);
    }
    let bits = |of: fn(&Draw) -> u32| uploaded(card, &draws.iter().map(of).collect::<Vec<_>>());
    let [temperatures, min_ps] = [bits(|draw| draw.temperature.to_bits())?, bits(|draw| draw.min_p.to_bits())?];
    let [top_ks, top_ps] = [bits(|draw| draw.top_k)?, bits(|draw| draw.top_p.to_bits())?];
    let uniforms: Vec<f64> = draws.iter().map(|draw| draw.uniform).collect();
    let uniforms = uploaded(card, bytemuck::cast_slice(&uniforms))?;
    let launch = SampleLaunch {
        logits: (logits.address, logits.stride),
        rows: logits.count,
        width: logits.width,
        temperatures: pointer(&temperatures, DType::U32)?,
        min_ps: pointer(&min_ps, DType::U32)?,
        top_ks: pointer(&top_ks, DType::U32)?,
        top_ps: pointer(&top_ps, DType::U32)?,
        uniforms: pointer(&uniforms, DType::U32)?,
        tokens: pointer(&tokens, DType::U32)?,
    };
    // SAFETY: the kernel's arguments, each with a number a row.
    unsafe { MODULE.launch(card, &launch.call()) }?;
    Ok(tokens)
}
