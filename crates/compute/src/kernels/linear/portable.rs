//! Linear on devices that have no kernel of ours: candle's own matrix product over a dense weight.

use candle_core::{DType, Device, Tensor};

use super::{format::WeightFormat, rows::Row};
use crate::{error::Result, ids::TokenId};

/// The weight `[out, in]`: float formats as they are, quantized ones in float32.
pub(super) fn dense(rows: &[Row<'_>], in_features: usize, format: WeightFormat, device: &Device) -> Result<Tensor> {
    let dtype = match format {
        WeightFormat::F16 => DType::F16,
        WeightFormat::BF16 => DType::BF16,
        _ => DType::F32,
    };
    let weights: Vec<f32> = rows.iter().flat_map(|row| row.to_f32(in_features)).collect();
    Ok(Tensor::from_vec(weights, (rows.len(), in_features), device)?.to_dtype(dtype)?)
}

/// `x Wᵀ + bias + onto` in the weight's type, float32 in and out.
pub(super) fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, onto: Option<&Tensor>) -> Result<Tensor> {
    let mut y = x.contiguous()?.to_dtype(weight.dtype())?.matmul(&weight.t()?)?.to_dtype(DType::F32)?;
    if let Some(bias) = bias {
        y = y.broadcast_add(bias)?;
    }
    if let Some(onto) = onto {
        y = (y + onto)?;
    }
    Ok(y)
}

/// The rows of these tokens in float32.
pub(super) fn gather_rows(weight: &Tensor, ids: &[TokenId]) -> Result<Tensor> {
    let ids = Tensor::from_slice(bytemuck::cast_slice::<TokenId, u32>(ids), ids.len(), weight.device())?;
    Ok(weight.index_select(&ids, 0)?.to_dtype(DType::F32)?)
}
