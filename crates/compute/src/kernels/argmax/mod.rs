//! The most likely token of each row of logits: what greedy decoding needs of a step, four bytes a row.

#[cfg(feature = "cuda")]
mod cuda;
#[cfg(test)]
mod host_twin_tests;
#[cfg(any(test, feature = "cuda"))]
mod launches;

#[cfg(feature = "cuda")]
use candle_core::Device;
use candle_core::{DType, Tensor};

use super::follow::Chosen;
use crate::{
    error::{Error, Result},
    ids::TokenId,
};

/// Of float32 `[n, vocabulary]`, not waited for: for each row the token with the largest logit, of equally likely ones that with the lowest
/// id; `None` for a row that no token can be chosen from, because it holds a NaN or infinity, or nothing but minus infinity.
///
/// # Errors
/// `Internal` where the logits are no float32 matrix.
pub fn argmax(logits: &Tensor) -> Result<Chosen> {
    if logits.dims().len() != 2 || logits.dtype() != DType::F32 {
        let (dims, dtype) = (logits.dims(), logits.dtype());
        return Err(Error::internal(format!("argmax: the logits are {dtype:?} {dims:?}, must be F32 [n, vocabulary]")));
    }
    #[cfg(feature = "cuda")]
    if let Device::Cuda(_) = logits.device() {
        return Chosen::new(cuda::argmax(logits)?);
    }
    let tokens: Vec<_> = logits.to_vec2()?.iter().map(|row: &Vec<f32>| most_likely(row)).collect();
    Chosen::here(&tokens)
}

fn most_likely(logits: &[f32]) -> Option<TokenId> {
    let mut best = (f32::NEG_INFINITY, None);
    for (id, &logit) in logits.iter().enumerate() {
        if logit.is_nan() {
            return None;
        }
        if logit > best.0 {
            best = (logit, Some(TokenId(id as u32)));
        }
    }
    best.1.filter(|_| best.0 < f32::INFINITY)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn the_largest_wins_of_ties_the_first_and_a_row_that_is_unsound_has_none() {
        let (nan, none, all) = (f32::NAN, f32::NEG_INFINITY, f32::INFINITY);
        let logits =
            [[1.0, 3.0, 3.0], [nan, none, -5.0], [none; 3], [-0.0, 0.0, -1.0], [all, 2.0, 1.0], [none, 7.0, none]];
        let got = argmax(&Tensor::new(&logits, &Device::Cpu).unwrap()).unwrap().wait().unwrap();
        assert_eq!(got, [Some(TokenId(1)), None, None, Some(TokenId(0)), None, Some(TokenId(1))]);
    }

    #[test]
    fn what_is_no_matrix_is_refused() {
        let vector = Tensor::new(&[1.0f32], &Device::Cpu).unwrap();
        assert!(argmax(&vector).err().unwrap().message.contains("[n, vocabulary]"));
    }
}
