//! Writes GGUF files out of models: quantized anew, or converted from a directory as the hub lays it out.

mod delta_net;
mod directory;
mod experts;
mod family;
mod gpt_oss;
mod keys;
mod latent;
mod mixture;
#[cfg(test)]
mod tests;
mod turn;
mod unsaid;
mod vocab;

use std::{borrow::Cow, collections::BTreeSet, path::Path};

pub use self::mixture::Mixture;
use crate::{
    error::{Error, Result},
    kernels::linear::format::{RawTensor, WeightFormat},
    weights::gguf::{
        Gguf, Scales,
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
    /// A tensor beside it that its numbers are multiplied with. In another format they have it in them.
    scales: Option<Scales>,
}

impl DraftTensor<'_> {
    /// Its bytes in the format `new` says, and its scales in them where that is another than it had.
    fn bytes(&self) -> Result<Cow<'_, [u8]>> {
        let mut raw = (self.make)()?;
        if raw.format == self.new.format {
            return Ok(raw.bytes);
        }
        if let Some(scales) = &self.scales {
            let mut numbers = raw.to_f32();
            scales.multiply(0, &mut numbers);
            let bytes = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
            raw = RawTensor { format: WeightFormat::F32.into(), shape: raw.shape, bytes };
        }
        let named = |error: Error| error.context(format_args!("tensor {}", self.new.name));
        Ok(Cow::Owned(raw.converted(self.new.format.kept()).map_err(named)?.into_owned()))
    }
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

/// Keys that say how a file is laid out, which is another matter in a new one.
const NOT_COPIED: [&str; 4] = ["general.alignment", "split.no", "split.count", "split.tensors.count"];

/// Keys that say how a model is quantized: they stay where it stays as it is.
const FILE_TYPE: &str = "general.file_type";
const QUANTIZATION: &str = "general.quantization_version";

/// Of ggml's quantized formats.
const QUANTIZATION_VERSION: u32 = 2;

impl<'a> Draft<'a> {
    /// A model that is a GGUF file already.
    ///
    /// # Errors
    /// `FailedPrecondition` that names the tensor whose format is not read, or whose scales do not fit it.
    pub fn from_gguf(gguf: &'a Gguf) -> Result<Self> {
        let metadata = gguf.raw_metadata().filter(|(key, _)| !NOT_COPIED.contains(key));
        let tensors = gguf.tensors().map(|(name, tensor)| {
            let (Some(format), Some(bytes)) = (tensor.format, gguf.tensor_bytes(tensor)) else {
                let why = format!("is stored as {}, which is no kind of weights that is read", tensor.kind_name());
                return Err(Error::bad_file(gguf.path(), format!("tensor {name}"), why));
            };
            let raw = RawTensor { format, shape: tensor.shape.clone(), bytes: Cow::Borrowed(bytes) };
            let new = NewTensor { name: name.to_owned(), shape: tensor.shape.clone(), format };
            Ok(DraftTensor { new, make: Box::new(move || Ok(raw.clone())), scales: gguf.scales_of(name)? })
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
        let mut written = Written::default();
        let mut applied = BTreeSet::new();
        let is_tied = !self.tensors.iter().any(|tensor| tensor.new.name == mixture::HEAD);
        for tensor in &mut self.tensors {
            written.bytes_before += tensor.new.bytes()? as u64;
            if let Some(mixture) = mixture {
                let format = mixture.format(&tensor.new, self.layers, is_tied)?;
                let changes = format != tensor.new.format;
                applied.extend(tensor.scales.iter().filter(|_| changes).map(|scales| scales.name.clone()));
                tensor.new.format = format;
            }
        }
        self.tensors.retain(|tensor| !applied.contains(&tensor.new.name));
        written.tensors = self.tensors.len();
        for tensor in &self.tensors {
            written.bytes += tensor.new.bytes()? as u64;
        }
        let metadata = self.final_metadata(mixture);
        let new: Vec<_> = self.tensors.iter().map(|tensor| tensor.new.clone()).collect();
        writer::write(path, &metadata, &new, &mut |index| {
            let bytes = self.tensors[index].bytes()?;
            progress(index + 1, new.len());
            Ok(bytes)
        })?;
        Ok(written)
    }

    /// The keys, with those that say how the model is quantized.
    fn final_metadata(&self, mixture: Option<Mixture>) -> Vec<(String, NewValue)> {
        let mut metadata = self.metadata.clone();
        if mixture.is_some() {
            metadata.retain(|(key, _)| key != FILE_TYPE && key != QUANTIZATION);
        }
        let file_type = mixture.map_or_else(|| mixture::file_type_of(&self.tensors), Mixture::file_type);
        for (key, number) in [(FILE_TYPE, file_type), (QUANTIZATION, QUANTIZATION_VERSION)] {
            if metadata.iter().all(|(other, _)| other != key) {
                metadata.push((key.into(), NewValue::u32(number)));
            }
        }
        metadata
    }
}
