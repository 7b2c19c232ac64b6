//! Writes GGUF files out of models: quantized anew, or converted from a directory as the hub lays it out.

mod directory;
mod mixture;
mod vocab;

use std::{borrow::Cow, path::Path};

pub use self::mixture::Mixture;
use crate::{
    error::{Error, Result},
    kernels::linear::format::RawTensor,
    weights::gguf::{
        Gguf,
        writer::{self, NewTensor, NewValue},
    },
};

/// A model as it would lie in a GGUF file.
pub struct Draft<'a> {
    metadata: Vec<(String, NewValue)>,
    tensors: Vec<DraftTensor<'a>>,
    /// Decoder layers.
    layers: usize,
}

/// A tensor of a draft. It is made when it is written.
struct DraftTensor<'a> {
    new: NewTensor,
    make: Box<dyn Fn() -> Result<RawTensor<'a>> + 'a>,
}

/// What was written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// Tensors.
    pub tensors: usize,
    /// Bytes of their data, before and after.
    pub bytes_before: u64,
    /// After.
    pub bytes: u64,
}

/// Keys that say how a file is laid out or quantized, which is another matter in a new one.
const NOT_COPIED: [&str; 6] = [
    "general.alignment",
    "general.file_type",
    "general.quantization_version",
    "split.no",
    "split.count",
    "split.tensors.count",
];

/// Of ggml's quantized formats.
const QUANTIZATION_VERSION: u32 = 2;

impl<'a> Draft<'a> {
    /// A model that is a GGUF file already.
    ///
    /// # Errors
    /// `FailedPrecondition` that names the tensor whose format is not read.
    pub fn from_gguf(gguf: &'a Gguf) -> Result<Self> {
        let metadata = gguf.raw_metadata().filter(|(key, _)| !NOT_COPIED.contains(key));
        let tensors = gguf.tensors().map(|(name, tensor)| {
            let (Some(format), Some(bytes)) = (tensor.format, gguf.tensor_bytes(tensor)) else {
                let why = format!("is stored as {}, which is no kind of weights that is read", tensor.kind_name());
                return Err(Error::bad_file(gguf.path(), format!("tensor {name}"), why));
            };
            let raw = RawTensor { format, shape: tensor.shape.clone(), bytes: Cow::Borrowed(bytes) };
            let new = NewTensor { name: name.to_owned(), shape: tensor.shape.clone(), format };
            Ok(DraftTensor { new, make: Box::new(move || Ok(raw.clone())) })
        });
        let architecture = gguf.string("general.architecture")?.unwrap_or_default();
        let layers = gguf.u64(&format!("{architecture}.block_count"))?.unwrap_or(0);
        Ok(Self {
            metadata: metadata.map(|(key, value)| (key.to_owned(), value)).collect(),
            tensors: tensors.collect::<Result<_>>()?,
            layers: usize::try_from(layers).unwrap_or(usize::MAX),
        })
    }

    /// Writes it to `path`, quantized as `mixture` says; without one as it is. `progress` is called with how many
    /// tensors of how many are written.
    ///
    /// # Errors
    /// `FailedPrecondition` that names the tensor which cannot be quantized again, or the file that cannot be written.
    pub fn write(
        mut self,
        path: &Path,
        mixture: Option<Mixture>,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Written> {
        let mut written = Written { tensors: self.tensors.len(), ..Written::default() };
        let is_tied = !self.tensors.iter().any(|tensor| tensor.new.name == mixture::HEAD);
        for tensor in &mut self.tensors {
            written.bytes_before += tensor.new.bytes()? as u64;
            if let Some(mixture) = mixture {
                tensor.new.format = mixture.format(&tensor.new, self.layers, is_tied)?;
            }
            written.bytes += tensor.new.bytes()? as u64;
        }
        let mut metadata = self.metadata;
        let file_type = mixture.map_or_else(|| mixture::file_type_of(&self.tensors), Mixture::file_type);
        metadata.push(("general.file_type".into(), NewValue::u32(file_type)));
        metadata.push(("general.quantization_version".into(), NewValue::u32(QUANTIZATION_VERSION)));
        let new: Vec<_> = self.tensors.iter().map(|tensor| tensor.new.clone()).collect();
        writer::write(path, &metadata, &new, &mut |index| {
            let raw = (self.tensors[index].make)()?;
            let format = new[index].format;
            let bytes = if raw.format == format {
                raw.bytes
            } else {
                let named = |error: Error| error.context(format_args!("tensor {}", new[index].name));
                Cow::Owned(raw.converted(format.kept()).map_err(named)?.into_owned())
            };
            progress(index + 1, new.len());
            Ok(bytes)
        })?;
        Ok(written)
    }
}
