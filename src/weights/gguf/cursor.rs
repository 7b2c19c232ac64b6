//! A reader that cannot leave its bytes, and names the field at which it would have.

use std::{fmt, ops::Range, path::Path};

use crate::error::{Error, Result};

/// Reads little-endian values from the front of a file.
pub(super) struct Cursor<'a> {
    path: &'a Path,
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(path: &'a Path, bytes: &'a [u8]) -> Self {
        Self { path, bytes, at: 0 }
    }

    /// Bytes of the whole file.
    pub(super) fn file_bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Bytes read so far.
    pub(super) fn at(&self) -> usize {
        self.at
    }

    /// Bytes left to read.
    pub(super) fn remaining(&self) -> usize {
        self.bytes.len() - self.at
    }

    /// An error about a field of this file.
    pub(super) fn wrong(&self, field: impl fmt::Display, why: impl fmt::Display) -> Error {
        Error::bad_file(self.path, field.to_string(), why)
    }

    /// Goes over the next `length` bytes, giving their place in the file.
    pub(super) fn skip(&mut self, length: u64, field: fmt::Arguments<'_>) -> Result<Range<usize>> {
        let start = self.at;
        let end = usize::try_from(length).ok().and_then(|length| start.checked_add(length));
        let Some(end) = end.filter(|&end| end <= self.bytes.len()) else {
            let why = format_args!("needs {length} bytes, but the file ends after {}", self.remaining());
            return Err(self.wrong(field, why));
        };
        self.at = end;
        Ok(start..end)
    }

    /// The next `length` bytes.
    pub(super) fn take(&mut self, length: u64, field: fmt::Arguments<'_>) -> Result<&'a [u8]> {
        let range = self.skip(length, field)?;
        Ok(&self.bytes[range])
    }

    pub(super) fn array<const N: usize>(&mut self, field: fmt::Arguments<'_>) -> Result<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N as u64, field)?);
        Ok(array)
    }

    pub(super) fn u32(&mut self, field: fmt::Arguments<'_>) -> Result<u32> {
        self.array(field).map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self, field: fmt::Arguments<'_>) -> Result<u64> {
        self.array(field).map(u64::from_le_bytes)
    }

    /// A string's place: a length and as many bytes.
    pub(super) fn skip_string(&mut self, field: fmt::Arguments<'_>) -> Result<Range<usize>> {
        let length = self.u64(format_args!("{field}: length"))?;
        self.skip(length, field)
    }

    /// A string, which must be UTF-8.
    pub(super) fn string(&mut self, field: fmt::Arguments<'_>) -> Result<&'a str> {
        let range = self.skip_string(field)?;
        std::str::from_utf8(&self.bytes[range]).map_err(|_| self.wrong(field, "is not UTF-8"))
    }

    /// A count of things that take at least `least_bytes` each, which therefore cannot exceed what remains.
    pub(super) fn check_count(&self, count: u64, least_bytes: usize, field: fmt::Arguments<'_>) -> Result<usize> {
        let most = self.remaining() / least_bytes;
        usize::try_from(count).ok().filter(|&count| count <= most).ok_or_else(|| {
            let remaining = self.remaining();
            self.wrong(field, format_args!("is {count}, but the {remaining} bytes that follow hold at most {most}"))
        })
    }
}
