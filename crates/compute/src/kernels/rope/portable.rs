//! Rotary embedding of candle's own operations, for devices that have no kernel of ours.

use candle_core::{D, Tensor};

use super::RopeStyle;
use crate::error::Result;

pub(super) fn rope(x: &Tensor, positions: &[u32], table: &Tensor, style: RopeStyle) -> Result<Tensor> {
    let (n, heads, head_dim) = x.dims3()?;
    let pairs = table.dims()[2];
    let angles = table.index_select(&Tensor::from_slice(positions, n, x.device())?, 0)?;
    let (cos, sin) = (angles.narrow(1, 0, 1)?, angles.narrow(1, 1, 1)?);
    let turned = x.narrow(2, 0, 2 * pairs)?.contiguous()?;
    let (x1, x2) = match style {
        RopeStyle::Halves => (turned.narrow(2, 0, pairs)?, turned.narrow(2, pairs, pairs)?),
        RopeStyle::Interleaved => {
            let paired = turned.reshape((n, heads, pairs, 2))?;
            (paired.narrow(3, 0, 1)?.squeeze(3)?, paired.narrow(3, 1, 1)?.squeeze(3)?)
        }
    };
    let y1 = (x1.broadcast_mul(&cos)? - x2.broadcast_mul(&sin)?)?;
    let y2 = (x2.broadcast_mul(&cos)? + x1.broadcast_mul(&sin)?)?;
    let turned = match style {
        RopeStyle::Halves => Tensor::cat(&[y1, y2], D::Minus1)?,
        RopeStyle::Interleaved => Tensor::stack(&[y1, y2], 3)?.reshape((n, heads, 2 * pairs))?,
    };
    if 2 * pairs == head_dim {
        return Ok(turned);
    }
    Ok(Tensor::cat(&[turned, x.narrow(2, 2 * pairs, head_dim - 2 * pairs)?.contiguous()?], D::Minus1)?)
}
