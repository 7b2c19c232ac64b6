//! A weight as the kernels want it, made once at load.

use candle_core::{Device, Tensor};

#[cfg(feature = "cuda")]
use super::cuda;
use super::{
    format::{RawTensor, WeightFormat},
    fp8::Fp8Weight,
    gather,
    packed::Packed,
    portable::DeviceWeight,
    rows::{Matrix, refused},
};
use crate::{
    error::{Error, Result},
    ids::TokenId,
};

/// The weight of a Linear, or an embedding: `[out_features, in_features]`.
///
/// On the CPU it lies in panels of sixteen outputs, on other devices as it lies in files; either way in its own format.
/// Eight-bit floats lie in rows everywhere.
pub struct PackedWeight {
    format: WeightFormat,
    out_features: usize,
    in_features: usize,
    pub(super) storage: Storage,
}

pub(super) enum Storage {
    Cpu(Packed),
    Device(DeviceWeight),
    Fp8(Fp8Weight),
}

impl PackedWeight {
    /// Packs a weight `[out, in]` for `device`, converting it to `format`: any where the weight is plain numbers, else a
    /// float one or what it is [kept](super::stored::StoredFormat::kept) as.
    ///
    /// # Errors
    /// `FailedPrecondition` where the weight is not a matrix of whole blocks, or would have to be quantized again, or where the
    /// device has no products of the format.
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
        let storage = if format == WeightFormat::Fp8 {
            Storage::Fp8(Fp8Weight::new(&rows, in_features, device)?)
        } else if matches!(device, Device::Cpu) {
            Storage::Cpu(Packed::new(&rows, in_features, format)?)
        } else {
            Storage::Device(DeviceWeight::new(parts, (out_features, in_features), format, device)?)
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

    /// Its plain numbers `[out, in]` in their own type, where it is that on another device than the CPU.
    #[cfg(feature = "cuda")]
    pub(in crate::kernels) fn dense(&self) -> Option<&Tensor> {
        match &self.storage {
            Storage::Device(DeviceWeight::Dense(weight)) => Some(weight),
            _ => None,
        }
    }

    /// Bytes it takes; a Linear of few rows reads them all.
    #[must_use]
    pub fn bytes(&self) -> usize {
        match &self.storage {
            Storage::Cpu(packed) => packed.bytes(),
            Storage::Device(weight) => weight.bytes(),
            Storage::Fp8(weight) => weight.bytes(),
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
    /// `Internal` where an id has no row, or the weight is one of eight-bit floats, which no embedding is.
    pub fn gather_rows(&self, ids: &[TokenId]) -> Result<Tensor> {
        if let Some(id) = ids.iter().find(|id| id.index() >= self.out_features) {
            return Err(Error::internal(format!("token {id} is not among the {} of the embedding", self.out_features)));
        }
        match &self.storage {
            Storage::Cpu(packed) => {
                let rows = gather::gather_rows(packed, ids);
                Ok(Tensor::from_vec(rows, (ids.len(), self.in_features), &Device::Cpu)?)
            }
            #[cfg(feature = "cuda")]
            Storage::Device(DeviceWeight::Dense(weight)) if weight.device().is_cuda() => {
                cuda::gather_rows(weight, &cuda::ids_beside(weight, ids)?)
            }
            Storage::Device(weight) => weight.gather_rows(&weight.ids_beside(ids)?),
            Storage::Fp8(_) => Err(no_embedding()),
        }
    }

    /// The same of ids that are where the weight is, u32 `[n]`. On a device nobody looks whether they have rows.
    ///
    /// # Errors
    /// As [`gather_rows`](Self::gather_rows), as far as anybody looks.
    pub fn gather_placed_rows(&self, ids: &Tensor) -> Result<Tensor> {
        match &self.storage {
            Storage::Cpu(_) => {
                let ids: Vec<_> = ids.to_vec1::<u32>()?.into_iter().map(TokenId).collect();
                self.gather_rows(&ids)
            }
            #[cfg(feature = "cuda")]
            Storage::Device(DeviceWeight::Dense(weight)) if weight.device().is_cuda() => cuda::gather_rows(weight, ids),
            Storage::Device(weight) => weight.gather_rows(ids),
            Storage::Fp8(_) => Err(no_embedding()),
        }
    }
}

fn no_embedding() -> Error {
    Error::internal("a weight of eight-bit floats is no embedding")
}

/// What another device would hold, on this one.
#[cfg(test)]
pub(super) fn on_device_for_tests(parts: &[&RawTensor<'_>]) -> DeviceWeight {
    let matrix = Matrix::new(parts[0], parts[0].format.kept()).expect("a matrix");
    let outputs = parts.iter().map(|part| part.shape[0]).sum();
    DeviceWeight::new(parts, (outputs, matrix.in_features), parts[0].format.kept(), &Device::Cpu).expect("room")
}
