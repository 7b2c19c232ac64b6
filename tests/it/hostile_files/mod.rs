//! Files that lie: each gives an error that names the file and the field, never a panic, never a huge allocation.

mod gguf;
mod gguf_file;
mod mutations;
mod mutator;
mod safetensors;
mod tokenizer;

use std::path::Path;

use candlewick::error::{Code, Error};

use crate::allocations::{self, Measured};

/// No reading of a file of a few kilobytes may take more than this.
const ALLOCATION_CAP_BYTES: usize = 64 << 20;

/// What a test calls its file.
fn named(name: &str) -> &Path {
    Path::new(name)
}

/// Runs a reading under the allocation cap.
fn capped<T>(reading: impl FnOnce() -> T) -> T {
    let (result, Measured { peak_bytes, largest_bytes }) = allocations::measure(reading);
    assert!(peak_bytes <= ALLOCATION_CAP_BYTES, "held {peak_bytes} bytes at once, the largest request {largest_bytes}");
    assert!(largest_bytes <= ALLOCATION_CAP_BYTES, "asked for {largest_bytes} bytes at once");
    result
}

/// Asserts that an error names this file and this field, and says this.
#[track_caller]
fn assert_names(error: &Error, file: &str, field: &str, why: &str) {
    assert_eq!(error.code, Code::FailedPrecondition, "{error}");
    assert!(error.message.starts_with(&format!("{file}: {field}: ")), "{error}\nshould name {file}: {field}");
    assert!(error.message.contains(why), "{error}\nshould say {why}");
    assert_eq!(error.violations.len(), 1, "{error}");
    assert_eq!(error.violations.first().map(|violation| violation.field.as_str()), Some(field));
}
