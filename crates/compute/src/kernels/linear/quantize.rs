//! Plain numbers to blocks, by candle's quantizers.

use std::borrow::Cow;

use candle_core::{
    Device, Tensor,
    quantized::{GgmlDType, QTensor},
};

use super::format::WeightFormat;
use crate::error::Result;

/// candle's name of a format.
pub(super) fn ggml_dtype(format: WeightFormat) -> GgmlDType {
    match format {
        WeightFormat::F32 => GgmlDType::F32,
        WeightFormat::F16 => GgmlDType::F16,
        WeightFormat::BF16 => GgmlDType::BF16,
        WeightFormat::Q4_0 => GgmlDType::Q4_0,
        WeightFormat::Q8_0 => GgmlDType::Q8_0,
        WeightFormat::Q4K => GgmlDType::Q4K,
        WeightFormat::Q5K => GgmlDType::Q5K,
        WeightFormat::Q6K => GgmlDType::Q6K,
        WeightFormat::Fp8 => unreachable!("fp8 lies in no blocks"),
    }
}

/// The bytes, as a file would have them, of weights that are whole blocks of `format`.
///
/// # Errors
/// `Internal` where they are no whole blocks.
pub(super) fn quantize(weights: Vec<f32>, format: WeightFormat) -> Result<Cow<'static, [u8]>> {
    let count = weights.len();
    let tensor = Tensor::from_vec(weights, count, &Device::Cpu)?;
    Ok(Cow::Owned(QTensor::quantize(&tensor, ggml_dtype(format))?.data()?.into_owned()))
}
