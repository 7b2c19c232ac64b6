//! A weight as it lies in a file: a matrix of rows of blocks.

use std::borrow::Cow;

use super::{
    format::{RawTensor, WeightFormat},
    panel::{PanelFormat, with_format},
    quantize::quantize,
};
use crate::error::{Code, Error, Result};

/// A checked matrix in a file.
pub(super) struct Matrix<'a> {
    format: WeightFormat,
    pub(super) out_features: usize,
    pub(super) in_features: usize,
    bytes: &'a [u8],
}

/// One output's weights in a file.
#[derive(Clone, Copy)]
pub(super) struct Row<'a> {
    format: WeightFormat,
    bytes: &'a [u8],
}

pub(super) fn refused(message: impl Into<String>) -> Error {
    Error::new(Code::FailedPrecondition, message)
}

impl<'a> Matrix<'a> {
    pub(super) fn new(tensor: &'a RawTensor<'_>, target: WeightFormat) -> Result<Self> {
        let format = tensor.format;
        let &[out_features, in_features] = tensor.shape.as_slice() else {
            return Err(refused(format!("a weight has shape {:?}, must have [out, in]", tensor.shape)));
        };
        let row_bytes = format.bytes_for(in_features).ok_or_else(|| {
            refused(format!("{in_features} inputs are no whole number of {format} blocks of {}", format.block_len()))
        })?;
        if row_bytes.checked_mul(out_features) != Some(tensor.bytes.len()) {
            let got = tensor.bytes.len();
            return Err(refused(format!("a {format} weight [{out_features}, {in_features}] cannot have {got} bytes")));
        }
        if target != format && !target.is_float() && !format.is_float() {
            return Err(refused(format!(
                "a {format} weight cannot be loaded as {target}: quantized once, only floats can be made of it"
            )));
        }
        if !in_features.is_multiple_of(target.block_len()) {
            let block = target.block_len();
            return Err(refused(format!("{in_features} inputs are no whole number of {target} blocks of {block}")));
        }
        Ok(Self { format, out_features, in_features, bytes: &tensor.bytes })
    }

    pub(super) fn row(&self, row: usize) -> Row<'a> {
        let len = self.bytes.len() / self.out_features;
        Row { format: self.format, bytes: &self.bytes[row * len..(row + 1) * len] }
    }
}

impl<'a> Row<'a> {
    /// Its bytes in another format that [`Matrix::new`] let pass.
    pub(super) fn in_format(self, in_features: usize, format: WeightFormat) -> Result<Cow<'a, [u8]>> {
        if format == self.format {
            return Ok(self.bytes.into());
        }
        let floats = self.to_f32(in_features);
        Ok(match format {
            WeightFormat::F32 => floats.iter().flat_map(|x| x.to_le_bytes()).collect(),
            WeightFormat::F16 => floats.iter().flat_map(|&x| half::f16::from_f32(x).to_le_bytes()).collect(),
            WeightFormat::BF16 => floats.iter().flat_map(|&x| half::bf16::from_f32(x).to_le_bytes()).collect(),
            _ => quantize(floats, format)?,
        })
    }

    /// Its weights.
    pub(super) fn to_f32(self, in_features: usize) -> Vec<f32> {
        let mut weights = vec![0.0; in_features];
        let blocks = self.bytes.chunks_exact(self.format.block_bytes());
        with_format!(self.format, F => {
            for (block, weights) in blocks.zip(weights.chunks_mut(self.format.block_len())) {
                F::decode(block, weights);
            }
        });
        weights
    }
}
