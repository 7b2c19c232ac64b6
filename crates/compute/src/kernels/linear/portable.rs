//! Linear on devices that have no kernel of ours: candle's own products, over a dense weight or over blocks as candle keeps
//! them.

use std::borrow::Cow;

use candle_core::{
    DType, Device, Tensor,
    quantized::{QStorage, QTensor},
};

use super::{
    format::{RawTensor, WeightFormat},
    quantize::ggml_dtype,
};
use crate::{
    error::{Code, Error, Result},
    ids::TokenId,
    kernels::device::is_batch_invariant,
};

/// A weight `[out, in]` on such a device, in its own format.
pub(super) enum DeviceWeight {
    /// Plain numbers.
    Dense(Tensor),
    /// Blocks of a quantized format.
    Quantized(Box<QTensor>),
}

impl DeviceWeight {
    /// Parts stacked along the output, checked by [`Matrix`](super::rows::Matrix).
    pub(super) fn new(
        parts: &[&RawTensor<'_>],
        shape: (usize, usize),
        format: WeightFormat,
        device: &Device,
    ) -> Result<Self> {
        let parts = parts.iter().map(|part| part.converted(format)).collect::<Result<Vec<_>>>()?;
        let bytes = match <[Cow<'_, [u8]>; 1]>::try_from(parts) {
            Ok([one]) => one,
            Err(several) => several.concat().into(),
        };
        let dtype = match format {
            WeightFormat::F32 => DType::F32,
            WeightFormat::F16 => DType::F16,
            WeightFormat::BF16 => DType::BF16,
            blocks if device.is_cuda() && is_batch_invariant() => {
                let why = format!(
                    "{blocks} weights are multiplied on a card by kernels that depend on the number of rows: leave out \
                     --batch-invariant, or load them with --dtype bfloat16"
                );
                return Err(Error::new(Code::FailedPrecondition, why));
            }
            blocks => {
                // A file's blocks stand where they stand; candle reads them as structures with 16-bit fields.
                let aligned = bytes.as_ptr().addr().is_multiple_of(align_of::<u64>());
                let bytes = if aligned { bytes } else { bytes.into_owned().into() };
                let storage = QStorage::from_data(bytes, device, ggml_dtype(blocks))?;
                return Ok(Self::Quantized(Box::new(QTensor::new(storage, shape)?)));
            }
        };
        Ok(Self::Dense(Tensor::from_raw_buffer(&bytes, dtype, &[shape.0, shape.1], device)?))
    }

    /// Bytes it takes.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Dense(weight) => weight.elem_count() * weight.dtype().size_in_bytes(),
            Self::Quantized(weight) => weight.storage_size_in_bytes(),
        }
    }

    /// The rows of these tokens, u32 `[n]` on the weight's device, in float32.
    pub(super) fn gather_rows(&self, ids: &Tensor) -> Result<Tensor> {
        match self {
            Self::Dense(weight) => Ok(weight.index_select(ids, 0)?.to_dtype(DType::F32)?),
            Self::Quantized(weight) => Ok(weight.embedding(ids)?),
        }
    }

    /// These ids where the weight is.
    pub(super) fn ids_beside(&self, ids: &[TokenId]) -> Result<Tensor> {
        let ids = |device: &Device| Tensor::from_slice(bytemuck::cast_slice::<TokenId, u32>(ids), ids.len(), device);
        Ok(match self {
            Self::Dense(weight) => ids(weight.device())?,
            Self::Quantized(weight) => ids(&weight.device())?,
        })
    }

    /// `x Wᵀ + bias + onto`, float32 in and out: plain numbers in the weight's type, blocks as candle multiplies them.
    pub(super) fn linear(&self, x: &Tensor, bias: Option<&Tensor>, onto: Option<&Tensor>) -> Result<Tensor> {
        let x = x.contiguous()?;
        let y = match self {
            Self::Dense(weight) => x.to_dtype(weight.dtype())?.matmul(&weight.t()?)?.to_dtype(DType::F32)?,
            Self::Quantized(weight) => x.apply_op1_no_bwd(weight.as_ref())?,
        };
        with_added(y, bias, onto)
    }
}

/// `y + bias + onto`.
pub(super) fn with_added(y: Tensor, bias: Option<&Tensor>, onto: Option<&Tensor>) -> Result<Tensor> {
    let y = match bias {
        Some(bias) => y.broadcast_add(bias)?,
        None => y,
    };
    Ok(match onto {
        Some(onto) => (y + onto)?,
        None => y,
    })
}
