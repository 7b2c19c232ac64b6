//! GGUF files: metadata and tensors, read from a map of the file and trusted in nothing.
//!
//! Format: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>, versions 2 and 3, little-endian. Opening walks the
//! file once, checks every count, length and offset against the bytes that are there, and keeps byte ranges; arrays are
//! decoded when they are asked for, so that a vocabulary of 150,000 tokens costs nothing to a reader of tensors.

mod cursor;
mod latent;
mod metadata;
mod scales;
mod source;
mod split;
mod tensors;
pub mod writer;

use std::{
    borrow::Cow,
    collections::BTreeMap,
    ops::Range,
    path::{Path, PathBuf},
};

pub(super) use self::split::{first_of_parts, first_part};
use self::{cursor::Cursor, metadata::Value};
pub use self::{
    metadata::StringArray,
    scales::Scales,
    source::{GgufSource, INTERLEAVED},
    tensors::GgufTensor,
};
use super::file::FileBytes;
use crate::error::{Error, Result};

const MAGIC: [u8; 4] = *b"GGUF";
const DEFAULT_ALIGNMENT: u64 = 32;

/// An open GGUF file.
#[derive(Debug)]
pub struct Gguf {
    path: PathBuf,
    bytes: FileBytes,
    /// The other files of a model that is split, which hold tensors only.
    others: Vec<FileBytes>,
    version: u32,
    metadata: BTreeMap<String, Value>,
    /// Where each value lies in the file, with its type.
    values: BTreeMap<String, Range<usize>>,
    tensors: BTreeMap<String, GgufTensor>,
}

impl Gguf {
    /// Maps a file and checks its structure. Tensors of unknown formats do no harm until they are asked for. Any part of
    /// a model that is split into several files stands for all of them.
    ///
    /// # Errors
    /// `FailedPrecondition` that names the file and the field.
    pub fn open(path: &Path) -> Result<Self> {
        let first = first_part(path).filter(|first| first.is_file());
        let mut gguf = Self::open_part(first.as_deref().unwrap_or(path))?;
        split::add_parts(&mut gguf)?;
        Ok(gguf)
    }

    /// Maps one file, whatever it is a part of.
    fn open_part(path: &Path) -> Result<Self> {
        Self::parse(path.to_owned(), FileBytes::map(path)?)
    }

    /// Reads a GGUF file that is in memory; `name` stands for it in messages.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn from_bytes(name: &Path, bytes: Cow<'static, [u8]>) -> Result<Self> {
        Self::parse(name.to_owned(), FileBytes::Held(bytes))
    }

    fn parse(path: PathBuf, bytes: FileBytes) -> Result<Self> {
        let wrong = |field: &str, why: String| Error::bad_file(&path, field, why);
        let mut cursor = Cursor::new(&path, &bytes);
        if cursor.array::<4>(format_args!("magic"))? != MAGIC {
            return Err(wrong("magic", "is not GGUF: this is not a GGUF file".into()));
        }
        let version = cursor.u32(format_args!("version"))?;
        match version {
            2 | 3 => {}
            1 => return Err(wrong("version", "is 1, which is no longer in use: convert the model again".into())),
            _ if version & 0xffff == 0 => {
                return Err(wrong("version", "is big-endian, only little-endian is read".into()));
            }
            _ => return Err(wrong("version", format!("is {version}, only 2 and 3 are read"))),
        }
        let tensor_count = cursor.u64(format_args!("tensor_count"))?;
        let metadata_count = cursor.u64(format_args!("metadata_kv_count"))?;
        let (metadata, values) = metadata::read(&mut cursor, metadata_count)?;
        let alignment = match metadata.get("general.alignment") {
            None => DEFAULT_ALIGNMENT,
            Some(&Value::Unsigned(alignment)) if alignment.is_power_of_two() && alignment <= 1 << 20 => alignment,
            Some(&Value::Unsigned(alignment)) => {
                let why = format!("is {alignment}, must be a power of two of at most 1048576");
                return Err(wrong("metadata general.alignment", why));
            }
            Some(_) => return Err(wrong("metadata general.alignment", "is not an unsigned integer".into())),
        };
        let tensors = tensors::read(&mut cursor, tensor_count, alignment)?;
        Ok(Self { version, metadata, values, tensors, path, bytes, others: Vec::new() })
    }

    /// The file, for messages.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Version of the format: 2 or 3.
    #[must_use]
    pub fn version(&self) -> u32 {
        self.version
    }

    /// Files of the model: one, or as many as it is split into and were opened.
    #[must_use]
    pub fn parts(&self) -> usize {
        1 + self.others.len()
    }

    /// The tensors by GGUF's names, in order of their names.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, &GgufTensor)> {
        self.tensors.iter().map(|(name, tensor)| (name.as_str(), tensor))
    }

    /// The tensor of that (GGUF's) name.
    #[must_use]
    pub fn tensor(&self, name: &str) -> Option<&GgufTensor> {
        self.tensors.get(name)
    }

    /// The tensor's bytes in the file, where its format is one that is read.
    #[must_use]
    pub fn tensor_bytes(&self, tensor: &GgufTensor) -> Option<&[u8]> {
        let part = match tensor.part {
            0 => &self.bytes,
            part => self.others.get(part - 1)?,
        };
        part.get(tensor.bytes()?)
    }
}
