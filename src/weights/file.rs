//! The bytes of a model file: mapped, so that weights are read from the page cache and never copied, or held.

use std::{borrow::Cow, fs::File, ops::Deref, path::Path};

use memmap2::Mmap;

use crate::error::{Error, Result};

/// The bytes of a file.
#[derive(Debug)]
pub enum FileBytes {
    /// A read-only map of a file on disk.
    Mapped(Mmap),
    /// Bytes compiled into the program, or made by a test.
    Held(Cow<'static, [u8]>),
}

impl FileBytes {
    /// Maps a file.
    ///
    /// The file must not be written or truncated while it is mapped: its tensors would change under the model, and a
    /// read past a new end kills the process. Replacing it by renaming another file over it is safe.
    ///
    /// # Errors
    /// `FailedPrecondition` that names the file where it cannot be opened or is no regular file.
    pub fn map(path: &Path) -> Result<Self> {
        let io = |error: std::io::Error| Error::bad_file(path, "open", error);
        // Asked before opening, because opening a FIFO blocks.
        if !path.metadata().map_err(io)?.is_file() {
            return Err(Error::bad_file(path, "open", "is not a regular file"));
        }
        let file = File::open(path).map_err(io)?;
        // SAFETY: the map is read-only, and all reads of it treat its bytes as untrusted input (lengths come from the
        // map itself). What remains is a file that is changed while it is mapped, which the contract above excludes.
        let map = unsafe { Mmap::map(&file) }.map_err(io)?;
        Ok(Self::Mapped(map))
    }
}

impl Deref for FileBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Held(bytes) => bytes,
        }
    }
}

/// Reads a small text file (a configuration, an index) of at most `limit_bytes`.
///
/// # Errors
/// `FailedPrecondition` that names the file where it cannot be read or is larger.
pub fn read_small(path: &Path, limit_bytes: u64) -> Result<Vec<u8>> {
    let io = |error: std::io::Error| Error::bad_file(path, "open", error);
    let metadata = path.metadata().map_err(io)?;
    if !metadata.is_file() {
        return Err(Error::bad_file(path, "open", "is not a regular file"));
    }
    if metadata.len() > limit_bytes {
        let why = format!("has {} bytes, at most {limit_bytes} are read", metadata.len());
        return Err(Error::bad_file(path, "size", why));
    }
    std::fs::read(path).map_err(io)
}
