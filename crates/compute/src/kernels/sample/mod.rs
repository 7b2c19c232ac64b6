//! A token drawn from each row of logits, so that four bytes a row leave the device and not a vocabulary.
//!
//! Temperature, `min_p`, `top_k` and `top_p`, in the order of [vLLM's sampler](https://docs.vllm.ai), then the draw: the first
//! token, by id, at which the weights of those kept exceed the given share of their sum. Tokens less likely than 2^-40 of the
//! most likely one are never drawn on a card. A seed's tokens are others than the CPU sampler's, which walks in the order of
//! likelihood where it has sorted; the distribution is the same.

#[cfg(feature = "cuda")]
mod cuda;
#[cfg(test)]
mod host_twin_tests;
#[cfg(any(test, feature = "cuda"))]
mod launches;
mod portable;

use candle_core::{DType, Tensor};

use super::follow::Chosen;
use crate::error::{Error, Result};

/// How a row's token is drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Draw {
    /// What distances between logits are divided by: above 0.
    pub temperature: f32,
    /// Tokens at least this share as likely as the most likely one are kept; 0 for all.
    pub min_p: f32,
    /// So many of the most likely are kept, of equally likely ones those with the lower ids; 0 for all.
    pub top_k: u32,
    /// The most likely are kept until they reach this share of what is left, at least one; 1 for all.
    pub top_p: f32,
    /// Where in the distribution the token stands: at least 0, below 1.
    pub uniform: f64,
}

impl Draw {
    /// From the whole distribution.
    pub const PLAIN: Self = Self { temperature: 1.0, min_p: 0.0, top_k: 0, top_p: 1.0, uniform: 0.0 };
    /// The most likely token, of equally likely ones that with the lowest id.
    pub const MOST_LIKELY: Self = Self { top_k: 1, ..Self::PLAIN };
}

/// Of float32 `[n, vocabulary]` and `n` draws, not waited for: for each row its token, `None` for a row that no token can be drawn from, because
/// it holds a NaN or infinity, or nothing but minus infinity.
///
/// # Errors
/// `Internal` where the logits are no float32 matrix of as many rows, or a draw is out of its range.
pub fn sample(logits: &Tensor, draws: &[Draw]) -> Result<Chosen> {
    if !matches!(logits.dims(), [n, _] if *n == draws.len()) || logits.dtype() != DType::F32 {
        let (dims, dtype, n) = (logits.dims(), logits.dtype(), draws.len());
        return Err(Error::internal(format!(
            "sample: the logits are {dtype:?} {dims:?}, must be F32 [{n}, vocabulary]"
        )));
    }
    let sound = |draw: &Draw| {
        draw.temperature > 0.0 && draw.min_p >= 0.0 && draw.top_p > 0.0 && (0.0..1.0).contains(&draw.uniform)
    };
    if let Some(draw) = draws.iter().find(|draw| !sound(draw)) {
        return Err(Error::internal(format!("sample: there is no {draw:?}")));
    }
    #[cfg(feature = "cuda")]
    if let candle_core::Device::Cuda(_) = logits.device() {
        return Chosen::new(cuda::sample(logits, draws)?);
    }
    let rows: Vec<Vec<f32>> = logits.to_vec2()?;
    let tokens: Vec<_> = rows.iter().zip(draws).map(|(row, draw)| portable::sample(row, draw)).collect();
    Chosen::here(&tokens)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    const PLAIN: Draw = Draw::PLAIN;

    /// The token at each tenth of the distribution.
    fn tenths(probabilities: &[f32], draw: Draw) -> Vec<u32> {
        let logits: Vec<f32> = probabilities.iter().map(|p| p.ln()).collect();
        let at = |tenth: usize| Draw { uniform: (tenth as f64 + 0.5) / 10.0, ..draw };
        (0..10).map(|tenth| portable::sample(&logits, &at(tenth)).unwrap().0).collect()
    }

    #[test]
    fn a_token_has_its_share_of_the_distribution_that_the_knobs_leave() {
        let probabilities = [0.1, 0.0, 0.2, 0.3, 0.4];
        assert_eq!(tenths(&probabilities, PLAIN), [0, 2, 2, 3, 3, 3, 4, 4, 4, 4]);
        // 3/7 and 4/7.
        let two = [3, 3, 3, 3, 4, 4, 4, 4, 4, 4];
        assert_eq!(tenths(&probabilities, Draw { top_k: 2, ..PLAIN }), two);
        assert_eq!(tenths(&probabilities, Draw { top_p: 0.65, ..PLAIN }), two);
        assert_eq!(tenths(&probabilities, Draw { min_p: 0.7, ..PLAIN }), two);
        assert_eq!(tenths(&probabilities, Draw { temperature: 0.01, ..PLAIN }), [4; 10]);
        // top_p is of what top_k has left: 4/7 of it.
        assert_eq!(tenths(&probabilities, Draw { top_k: 2, top_p: 0.5, ..PLAIN }), [4; 10]);
    }

    #[test]
    fn of_equally_likely_tokens_the_lower_ids_are_kept() {
        assert_eq!(tenths(&[0.25; 4], Draw { top_k: 2, ..PLAIN }), [0, 0, 0, 0, 0, 1, 1, 1, 1, 1]);
    }

    #[test]
    fn what_cannot_be_drawn_is_refused_or_nothing() {
        let logits =
            Tensor::new(&[[f32::NAN, 0.0], [f32::NEG_INFINITY; 2], [f32::INFINITY, 0.0]], &Device::Cpu).unwrap();
        assert_eq!(sample(&logits, &[PLAIN; 3]).unwrap().wait().unwrap(), [None; 3]);
        assert!(sample(&logits, &[PLAIN; 2]).err().unwrap().message.contains("[2, vocabulary]"));
        let cold = Draw { temperature: 0.0, ..PLAIN };
        assert!(sample(&logits, &[PLAIN, PLAIN, cold]).err().unwrap().message.contains("temperature: 0.0"));
    }
}
