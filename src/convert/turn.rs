//! One tensor of a GGUF file, out of those of a directory: named anew, its rows in another order, several stacked as one.

use std::{borrow::Cow, collections::BTreeMap, sync::Arc};

use super::DraftTensor;
use crate::{
    error::{Error, Result},
    kernels::linear::format::{RawTensor, WeightFormat},
    weights::{TensorHeader, TensorSource, gguf::writer::NewTensor, safetensors::SafetensorsSource, shown},
};

/// The tensors of a directory.
pub(super) struct Stored<'a> {
    pub(super) source: &'a SafetensorsSource,
    headers: BTreeMap<String, TensorHeader>,
}

impl<'a> Stored<'a> {
    /// Those of `source`.
    pub(super) fn new(source: &'a SafetensorsSource) -> Self {
        let headers = source.headers().into_iter().map(|header| (header.name.clone(), header)).collect();
        Self { source, headers }
    }

    /// What a tensor is.
    ///
    /// # Errors
    /// `FailedPrecondition` where it is not there or cannot be read.
    pub(super) fn header(&self, name: &str) -> Result<&TensorHeader> {
        self.headers.get(name).ok_or_else(|| unread(self.source, name))
    }
}

/// What becomes of tensors of a directory. Rows are what lies along the last dimension; of a vector, its numbers.
#[derive(Clone, Default)]
pub(super) struct Turn {
    /// GGUF's name.
    pub(super) name: String,
    /// The directory's: one, or several of one shape, which are stacked along a new outermost dimension.
    pub(super) sources: Vec<String>,
    /// What is written.
    pub(super) shape: Vec<usize>,
    /// Which rows, in this order; all as they are if none.
    pub(super) rows: Option<Arc<[usize]>>,
    /// Within each row runs of so many numbers, in this order; those that are not named fall away.
    pub(super) runs: Option<(usize, Arc<[usize]>)>,
    /// Whether the last two dimensions change places at last.
    pub(super) transposed: bool,
    /// What each number becomes.
    pub(super) number: Option<fn(f32) -> f32>,
    /// Whether it is written in float32 though it is no vector.
    pub(super) exact: bool,
}

impl Turn {
    /// One tensor under another name.
    pub(super) fn named(name: String, source: &str, shape: &[usize]) -> Self {
        Self { name, sources: vec![source.to_owned()], shape: shape.to_vec(), ..Self::default() }
    }

    /// It as a tensor of a draft.
    ///
    /// # Errors
    /// `FailedPrecondition` that names a tensor which is missing or does not fit the others.
    pub(super) fn draft<'a>(self, stored: &Stored<'a>) -> Result<DraftTensor<'a>> {
        let headers = self.sources.iter().map(|name| stored.header(name)).collect::<Result<Vec<_>>>()?;
        let first =
            headers.first().ok_or_else(|| Error::internal(format!("tensor {} is made of nothing", self.name)))?;
        let differs = |header: &&&TensorHeader| (header.format, &header.shape) != (first.format, &first.shape);
        if let Some(other) = headers.iter().find(differs) {
            let of = |header: &TensorHeader| format!("{} {:?}", header.format, header.shape);
            let why = format!("is {}, others beside it {}", of(other), of(first));
            return Err(Error::bad_file(stored.source.path(), format!("tensor {}", other.name), why));
        }
        // llama.cpp takes vectors in float32 only.
        let is_exact = self.exact || self.shape.len() < 2 || self.number.is_some();
        let format = if is_exact { WeightFormat::F32.into() } else { first.format };
        let new = NewTensor { name: self.name.clone(), shape: self.shape.clone(), format };
        let source = stored.source;
        Ok(DraftTensor { new, make: Box::new(move || self.made(source, is_exact)), scales: None })
    }

    fn made<'a>(&self, source: &'a SafetensorsSource, is_exact: bool) -> Result<RawTensor<'a>> {
        let mut raw = match self.sources.as_slice() {
            [one] => get(source, one)?,
            several => {
                let raws = several.iter().map(|name| get(source, name)).collect::<Result<Vec<_>>>()?;
                let bytes = raws.iter().flat_map(|raw| raw.bytes.iter().copied()).collect();
                let format = raws.first().map_or(WeightFormat::F32.into(), |raw| raw.format);
                RawTensor { format, shape: self.shape.clone(), bytes: Cow::Owned(bytes) }
            }
        };
        if let Some(rows) = &self.rows {
            let len = if raw.shape.len() < 2 { 1 } else { raw.shape.last().copied().unwrap_or(1) };
            raw.bytes = Cow::Owned(self.picked(&raw, len, rows.iter().copied())?);
        }
        if let Some((run, order)) = &self.runs {
            let len = raw.shape.last().copied().unwrap_or(1).max(1);
            let numbers = raw.bytes.len() / raw.format.block_bytes() * raw.format.block_len();
            let all = (0..numbers / len).flat_map(|row| order.iter().map(move |k| row * (len / run) + k));
            raw.bytes = Cow::Owned(self.picked(&raw, *run, all)?);
        }
        if self.transposed {
            raw.bytes = Cow::Owned(self.transposed(&raw)?);
        }
        if is_exact {
            let number = self.number.unwrap_or(|number| number);
            let bytes = raw.to_f32().into_iter().flat_map(|x| number(x).to_le_bytes()).collect();
            raw = RawTensor { format: WeightFormat::F32.into(), shape: raw.shape, bytes };
        }
        Ok(RawTensor { shape: self.shape.clone(), ..raw })
    }

    fn refused(&self, why: impl std::fmt::Display) -> Error {
        Error::bad_file("output", format!("tensor {}", self.name), why)
    }

    /// These pieces of `len` numbers, in this order.
    fn picked(&self, raw: &RawTensor<'_>, len: usize, order: impl Iterator<Item = usize>) -> Result<Vec<u8>> {
        let bytes = raw.format.bytes_for(len).filter(|_| len.is_multiple_of(raw.format.block_len()));
        let bytes =
            bytes.ok_or_else(|| self.refused(format_args!("blocks of {} cannot be put into its order", raw.format)))?;
        let mut picked = Vec::with_capacity(order.size_hint().0 * bytes);
        for piece in order {
            let piece = raw.bytes.get(piece * bytes..(piece + 1) * bytes);
            let piece = piece.ok_or_else(|| self.refused(format_args!("is made of {:?}, too few", raw.shape)))?;
            picked.extend_from_slice(piece);
        }
        Ok(picked)
    }

    /// Its matrices with rows for columns.
    fn transposed(&self, raw: &RawTensor<'_>) -> Result<Vec<u8>> {
        let &[.., rows, columns] = self.shape.as_slice() else { return Err(self.refused("has no rows and columns")) };
        let size = raw.format.bytes_for(1);
        let size = size.ok_or_else(|| self.refused(format_args!("blocks of {} cannot be turned", raw.format)))?;
        let matrix_bytes = rows * columns * size;
        if matrix_bytes == 0 || !raw.bytes.len().is_multiple_of(matrix_bytes) {
            return Err(self.refused(format_args!("is made of {:?}, which does not fit {:?}", raw.shape, self.shape)));
        }
        let mut turned = Vec::with_capacity(raw.bytes.len());
        for matrix in raw.bytes.chunks_exact(matrix_bytes) {
            for row in 0..rows {
                let places = (0..columns).map(|column| (column * rows + row) * size);
                places.for_each(|place| turned.extend_from_slice(&matrix[place..place + size]));
            }
        }
        Ok(turned)
    }
}

fn get<'a>(source: &'a SafetensorsSource, name: &str) -> Result<RawTensor<'a>> {
    source.get(name).ok_or_else(|| unread(source, name))
}

fn unread(source: &SafetensorsSource, name: &str) -> Error {
    let why = source.refusal(name).unwrap_or_else(|| "is missing".into());
    Error::bad_file(source.path(), format!("tensor {}", shown(name)), why)
}
