//! Finds the tokenizer of a model directory, whichever way the model's makers wrote it down.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

use super::{
    sentencepiece_file, tiktoken_file,
    tokenizer::{Tokenizer, guarded, read_bounded},
    tokenizer_config::TokenizerConfig,
};

/// Most bytes of a vocabulary file; the largest in use have a tenth of it.
const MAX_FILE_BYTES: u64 = 64 << 20;

/// Files that hold a whole vocabulary, the best first: what the hub's own tools write, then what models were trained with.
pub const TOKENIZER_FILES: &[&str] = &[
    "tokenizer.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tiktoken.model",
    "qwen.tiktoken",
];

impl Tokenizer {
    /// Reads the tokenizer of a model directory: the first of [`TOKENIZER_FILES`] that is there, or a single file that ends
    /// in `.tiktoken`, with the `tokenizer_config.json` beside it. None where there is no such file.
    ///
    /// # Errors
    /// `FailedPrecondition` that names the file and the field where it cannot be read or used.
    pub fn from_directory(directory: &Path) -> Result<Option<Self>> {
        find(directory).map(|file| Self::from_file(&file)).transpose()
    }

    /// Takes the bytes of a sentencepiece `.model` or a `.tiktoken` file, told apart by what is in them. `path` is for
    /// messages, and its name may say which encoding a tiktoken file has.
    ///
    /// # Errors
    /// `FailedPrecondition` that names the file and the field where it cannot be used.
    pub fn from_vocabulary_bytes(path: &Path, bytes: &[u8], config: Option<&TokenizerConfig>) -> Result<Self> {
        if bytes.len() as u64 > MAX_FILE_BYTES {
            let why = format!("has {} bytes, at most {MAX_FILE_BYTES} are allowed", bytes.len());
            return Err(Error::bad_file(path, "file", why));
        }
        guarded(path, "file", || match tiktoken_file::is_tiktoken(bytes) {
            true => tiktoken_file::load(path, bytes, config),
            false => sentencepiece_file::load(path, bytes, config),
        })
    }

    /// Reads a `.model` or `.tiktoken` file.
    pub(super) fn from_vocabulary_file(path: &Path, config: Option<&TokenizerConfig>) -> Result<Self> {
        Self::from_vocabulary_bytes(path, &read_bounded(path, MAX_FILE_BYTES)?, config)
    }
}

fn find(directory: &Path) -> Option<PathBuf> {
    let known = TOKENIZER_FILES.iter().map(|name| directory.join(name)).find(|file| file.is_file());
    known.or_else(|| {
        let entries = directory.read_dir().ok()?.filter_map(|entry| Some(entry.ok()?.path()));
        let mut files: Vec<PathBuf> =
            entries.filter(|file| file.extension().is_some_and(|e| e == "tiktoken")).collect();
        files.sort();
        files.into_iter().find(|file| file.is_file())
    })
}
