//! A weight as the kernels want it, made once at load.

use candle_core::{Device, Tensor};
use rayon::prelude::*;

use super::{
    format::{RawTensor, WeightFormat},
    gather,
    panel::{PanelFormat, STEP, with_format},
    portable,
};
use crate::{
    error::{Code, Error, Result},
    ids::TokenId,
    kernels::simd::{LANES, Level},
};

/// The weight of a Linear, or an embedding: `[out_features, in_features]`.
///
/// On the CPU it lies in panels of sixteen outputs in its own format. Other devices hold a dense tensor, quantized
/// formats widened to float32.
pub struct PackedWeight {
    format: WeightFormat,
    out_features: usize,
    in_features: usize,
    pub(super) storage: Storage,
}

pub(super) enum Storage {
    Cpu(Packed),
    Dense(Tensor),
}

/// Panels that some passes read together; their number is rounded up to a multiple of it.
pub(super) const PANEL_GROUP: usize = 4;

/// Panels one after another: `[ceil(out / 64) * 4][blocks a panel]` of [`PanelFormat::Block`], missing outputs and
/// inputs zero.
pub(super) struct Packed {
    pub(super) format: WeightFormat,
    pub(super) out_features: usize,
    pub(super) in_features: usize,
    /// What each panel's sums are multiplied by, a power of two.
    pub(super) scales: Vec<f32>,
    bytes: AlignedBytes,
}

impl PackedWeight {
    /// Packs a weight `[out, in]` for `device`, converting it to `format`: its own, or any float format.
    ///
    /// # Errors
    /// `FailedPrecondition` where the weight is not a matrix of whole blocks, or a float weight would have to be
    /// quantized.
    pub fn pack(weight: &RawTensor<'_>, format: WeightFormat, device: &Device) -> Result<Self> {
        Self::pack_rows(&[weight], format, device)
    }

    /// As [`pack`](Self::pack), for several weights of the same input stacked along the output: their outputs come one
    /// after another in one result.
    ///
    /// # Errors
    /// As [`pack`](Self::pack), and where the inputs or the formats of the parts differ.
    pub fn pack_rows(parts: &[&RawTensor<'_>], format: WeightFormat, device: &Device) -> Result<Self> {
        let mut rows = Vec::new();
        let mut in_features = None;
        for part in parts {
            let matrix = Matrix::new(part, format)?;
            if *in_features.get_or_insert(matrix.in_features) != matrix.in_features {
                return Err(refused("the stacked weights differ in their number of inputs"));
            }
            rows.extend((0..matrix.out_features).map(|row| matrix.row(row)));
        }
        let in_features = in_features.ok_or_else(|| refused("there is no weight to pack"))?;
        let out_features = rows.len();
        let storage = if matches!(device, Device::Cpu) {
            Storage::Cpu(Packed::new(&rows, in_features, format))
        } else {
            Storage::Dense(portable::dense(&rows, in_features, format, device)?)
        };
        Ok(Self { format, out_features, in_features, storage })
    }

    /// Outputs.
    #[must_use]
    pub fn out_features(&self) -> usize {
        self.out_features
    }

    /// Inputs.
    #[must_use]
    pub fn in_features(&self) -> usize {
        self.in_features
    }

    /// The format it was packed for.
    #[must_use]
    pub fn format(&self) -> WeightFormat {
        self.format
    }

    /// Bytes it takes; a Linear of few rows reads them all.
    #[must_use]
    pub fn bytes(&self) -> usize {
        match &self.storage {
            Storage::Cpu(packed) => packed.bytes.len,
            Storage::Dense(tensor) => tensor.elem_count() * tensor.dtype().size_in_bytes(),
        }
    }

    /// One row, widened: `[in_features]` float32.
    ///
    /// # Errors
    /// `Internal` where there is no such row.
    pub fn row(&self, row: usize) -> Result<Tensor> {
        let id = u32::try_from(row).map_err(|_| Error::internal(format!("row {row} of an embedding")))?;
        Ok(self.gather_rows(&[TokenId(id)])?.squeeze(0)?)
    }

    /// The rows of these tokens, widened: `[ids.len(), in_features]` float32. A tied embedding needs no second copy.
    ///
    /// # Errors
    /// `Internal` where an id has no row.
    pub fn gather_rows(&self, ids: &[TokenId]) -> Result<Tensor> {
        if let Some(id) = ids.iter().find(|id| id.index() >= self.out_features) {
            return Err(Error::internal(format!("token {id} is not among the {} of the embedding", self.out_features)));
        }
        match &self.storage {
            Storage::Cpu(packed) => {
                let rows = gather::gather_rows(Level::best(), packed, ids);
                Ok(Tensor::from_vec(rows, (ids.len(), self.in_features), &Device::Cpu)?)
            }
            Storage::Dense(tensor) => portable::gather_rows(tensor, ids),
        }
    }
}

impl Packed {
    fn new(rows: &[Row<'_>], in_features: usize, format: WeightFormat) -> Self {
        with_format!(format, F => {
            let panel_bytes = in_features.div_ceil(STEP * F::STEPS) * size_of::<<F as PanelFormat>::Block>();
            let panels = rows.len().div_ceil(LANES * PANEL_GROUP) * PANEL_GROUP;
            let mut bytes = AlignedBytes::zeroed(panels * panel_bytes);
            let mut scales = vec![1.0; panels];
            if panel_bytes > 0 {
                // What a packed block takes of a row in the file.
                let part = STEP * F::STEPS / format.block_len() * format.block_bytes();
                let panels = bytes.as_mut_slice().par_chunks_exact_mut(panel_bytes);
                panels.zip(&mut scales).zip(rows.par_chunks(LANES)).for_each(|((panel, scale), rows)| {
                    let rows: Vec<_> = rows.iter().map(|row| row.in_format(in_features, format)).collect();
                    let rows: Vec<_> = rows.iter().map(|row| &**row).collect();
                    let exponent = F::exponent(&rows);
                    *scale = 2f32.powi(-exponent);
                    for (index, block) in bytemuck::cast_slice_mut(panel).iter_mut().enumerate() {
                        let mut parts = [[].as_slice(); LANES];
                        for (to, row) in parts.iter_mut().zip(&rows) {
                            *to = &row[index * part..row.len().min((index + 1) * part)];
                        }
                        F::pack(&parts[..rows.len()], exponent, block);
                    }
                });
            }
            Self { format, out_features: rows.len(), in_features, scales, bytes }
        })
    }

    /// All panels; `F` must be the weight's own format.
    pub(super) fn panels<F: PanelFormat>(&self) -> &[F::Block] {
        assert_eq!(F::FORMAT, self.format);
        bytemuck::cast_slice(self.bytes.as_slice())
    }
}

/// A checked matrix in a file.
struct Matrix<'a> {
    format: WeightFormat,
    out_features: usize,
    in_features: usize,
    bytes: &'a [u8],
}

/// One output's weights in a file.
#[derive(Clone, Copy)]
pub(super) struct Row<'a> {
    format: WeightFormat,
    bytes: &'a [u8],
}

fn refused(message: impl Into<String>) -> Error {
    Error::new(Code::FailedPrecondition, message)
}

impl<'a> Matrix<'a> {
    fn new(tensor: &'a RawTensor<'_>, target: WeightFormat) -> Result<Self> {
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
        let float = matches!(target, WeightFormat::F32 | WeightFormat::F16 | WeightFormat::BF16);
        if target != format && !float {
            return Err(refused(format!(
                "a {format} weight cannot be loaded as {target}: only float formats can be made"
            )));
        }
        Ok(Self { format, out_features, in_features, bytes: &tensor.bytes })
    }

    fn row(&self, row: usize) -> Row<'a> {
        let len = self.bytes.len() / self.out_features;
        Row { format: self.format, bytes: &self.bytes[row * len..(row + 1) * len] }
    }
}

impl<'a> Row<'a> {
    /// Its bytes in another format, a float one where it is not its own.
    pub(super) fn in_format(self, in_features: usize, format: WeightFormat) -> std::borrow::Cow<'a, [u8]> {
        if format == self.format {
            return self.bytes.into();
        }
        let floats = self.to_f32(in_features);
        match format {
            WeightFormat::F16 => floats.iter().flat_map(|&x| half::f16::from_f32(x).to_le_bytes()).collect(),
            WeightFormat::BF16 => floats.iter().flat_map(|&x| half::bf16::from_f32(x).to_le_bytes()).collect(),
            _ => floats.iter().flat_map(|x| x.to_le_bytes()).collect(),
        }
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

/// Bytes at a cache line's boundary, that the operating system zeroes when they are first touched.
struct AlignedBytes {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl AlignedBytes {
    const ALIGNMENT: usize = 64;

    fn zeroed(len: usize) -> Self {
        let bytes = vec![0; len + Self::ALIGNMENT];
        let start = bytes.as_ptr().align_offset(Self::ALIGNMENT);
        Self { bytes, start, len }
    }

    fn as_slice(&self) -> &[u8] {
        &self.bytes[self.start..][..self.len]
    }

    fn as_mut_slice(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..][..self.len]
    }
}

/// What another device would hold, on this one.
#[cfg(test)]
pub(super) fn dense_for_tests(raw: &RawTensor<'_>) -> Tensor {
    let matrix = Matrix::new(raw, raw.format).expect("a matrix");
    let rows: Vec<_> = (0..matrix.out_features).map(|row| matrix.row(row)).collect();
    portable::dense(&rows, matrix.in_features, raw.format, &Device::Cpu).expect("room")
}
