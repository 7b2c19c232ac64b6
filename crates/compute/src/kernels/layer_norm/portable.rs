//! Layer norm of candle's own operations, for devices that have no kernel of ours.

use candle_core::{D, Tensor};

use crate::error::Result;

pub(super) fn layer_norm(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, eps: f64) -> Result<Tensor> {
    let left = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
    let variance = left.sqr()?.mean_keepdim(D::Minus1)?;
    let normed = left.broadcast_div(&(variance + eps)?.sqrt()?)?.broadcast_mul(weight)?;
    match bias {
        Some(bias) => Ok(normed.broadcast_add(bias)?),
        None => Ok(normed),
    }
}
