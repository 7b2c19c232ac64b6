//! A weight as it lies in a file: a matrix of rows of blocks.

use std::borrow::Cow;

use super::{
    format::{RawTensor, WeightFormat},
    panel::{PanelFormat, with_format},
    quantize::quantize,
    stored::StoredFormat,
};
use crate::{
    error::{Code, Error, Result},
    kernels::pool::for_each_mut,
};

/// A checked matrix in a file.
pub(super) struct Matrix<'a> {
    format: StoredFormat,
    pub(super) out_features: usize,
    pub(super) in_features: usize,
    bytes: &'a [u8],
}

/// One output's weights in a file.
#[derive(Clone, Copy)]
pub(super) struct Row<'a> {
    format: StoredFormat,
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
        if target != format.kept() && !target.is_float() && !format.is_float() {
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
        match self.format {
            StoredFormat::Kept(own) if own == format => return Ok(self.bytes.into()),
            StoredFormat::ReadOnly(own) if own.kept() == format => {
                if let Some(kept) = own.to_kept(self.bytes) {
                    return Ok(kept.into());
                }
            }
            _ => {}
        }
        let floats = self.to_f32(in_features);
        Ok(match format {
            WeightFormat::F32 => floats.iter().flat_map(|x| x.to_le_bytes()).collect(),
            WeightFormat::F16 => floats.iter().flat_map(|&x| half::f16::from_f32(x).to_le_bytes()).collect(),
            WeightFormat::BF16 => floats.iter().flat_map(|&x| half::bf16::from_f32(x).to_le_bytes()).collect(),
            WeightFormat::Fp8 => return Err(Error::internal("a row of eight-bit floats by itself has no scale")),
            _ => quantize(floats, format)?,
        })
    }

    /// Its weights.
    pub(super) fn to_f32(self, in_features: usize) -> Vec<f32> {
        widened(self.format, self.bytes, in_features)
    }
}

/// `count` weights out of whole blocks, in float32.
fn widened(format: StoredFormat, bytes: &[u8], count: usize) -> Vec<f32> {
    let mut weights = vec![0.0; count];
    match format {
        StoredFormat::ReadOnly(format) => format.to_f32(bytes, &mut weights),
        StoredFormat::Kept(format) => with_format!(format, F => {
            let blocks = bytes.chunks_exact(format.block_bytes());
            for (block, weights) in blocks.zip(weights.chunks_mut(format.block_len())) {
                F::decode(block, weights);
            }
        }),
    }
    weights
}

impl RawTensor<'_> {
    /// Its bytes in another format, converted on the threads of the current pool: any format where the weights are plain
    /// numbers, else a float one or what they are kept as.
    ///
    /// # Errors
    /// `FailedPrecondition` where rows are no whole blocks, or would have to be quantized again.
    pub fn converted(&self, format: WeightFormat) -> Result<Cow<'_, [u8]>> {
        let columns = self.shape.last().copied().unwrap_or(1);
        let rows = self.shape.iter().take(self.shape.len().saturating_sub(1)).product();
        let flat = RawTensor { format: self.format, shape: vec![rows, columns], bytes: Cow::Borrowed(&self.bytes) };
        let matrix = Matrix::new(&flat, format)?;
        if self.format == format || rows == 0 {
            return Ok(Cow::Borrowed(&self.bytes));
        }
        let row_bytes = format.bytes_for(columns).unwrap_or(0);
        let mut bytes = vec![0u8; rows * row_bytes];
        let mut work: Vec<_> = bytes.chunks_exact_mut(row_bytes.max(1)).enumerate().map(|row| (row, Ok(()))).collect();
        for_each_mut(&mut work, |((row, to), outcome)| {
            *outcome = matrix.row(*row).in_format(columns, format).map(|bytes| to.copy_from_slice(&bytes));
        });
        work.into_iter().try_for_each(|(_, outcome)| outcome)?;
        Ok(Cow::Owned(bytes))
    }

    /// All its weights in float32, in the file's order.
    #[must_use]
    pub fn to_f32(&self) -> Vec<f32> {
        widened(self.format, &self.bytes, self.bytes.len() / self.format.block_bytes() * self.format.block_len())
    }
}
