//! Whether a file is the one that the hub announced: its size, and the sum that it is kept under.
//!
//! The hub's tag of a file is the SHA-256 of a large one and git's name of a small one, and it is the name of the file in the
//! cache. Sums are taken of what lies on the disk, not of what the wire brought, so a download that was resumed is checked
//! whole.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

use aws_lc_rs::digest::{Algorithm, Context, SHA1_FOR_LEGACY_USE_ONLY, SHA256};

use super::choice::RepoFile;
use crate::{
    error::{Code, Error, Result},
    weights::shown,
};

const BUFFER_BYTES: usize = 1 << 20;

/// Whether something of that size is there.
pub(super) fn is_there(path: &Path, size: u64) -> bool {
    path.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.len() == size)
}

/// Checks the file at `path`, which shall be what the hub lists as `file` and keeps under `etag`. Of a tag that is no sum
/// that we know, as some mirrors have it, only the size can be checked.
///
/// # Errors
/// `DataLoss` that names the file and both sizes or both sums; `FailedPrecondition` where it cannot be read.
pub(super) fn check(path: &Path, file: &RepoFile, etag: &str) -> Result<()> {
    let wrong = |what: &str, is: String, says: String| {
        let file = shown(&file.path);
        Error::new(Code::DataLoss, format!("{file}: {what} is {is}, but the hub says {says}"))
    };
    let unreadable = |error: io::Error| Error::bad_file(path, "download", format!("cannot be read: {error}"));
    let mut input = File::open(path).map_err(unreadable)?;
    let size = input.metadata().map_err(unreadable)?.len();
    if size != file.size {
        return Err(wrong("size", size.to_string(), file.size.to_string()));
    }
    let is_hex = etag.bytes().all(|byte| byte.is_ascii_hexdigit());
    let (what, algorithm, head): (_, &'static Algorithm, _) = match etag.len() {
        64 if is_hex => ("sha256", &SHA256, String::new()),
        // What git hashes begins with what it is.
        40 if is_hex => ("git's sha1", &SHA1_FOR_LEGACY_USE_ONLY, format!("blob {size}\0")),
        _ => return Ok(()),
    };
    let sum = digest(algorithm, &head, &mut input).map_err(unreadable)?;
    if sum.eq_ignore_ascii_case(etag) { Ok(()) } else { Err(wrong(what, sum, etag.to_owned())) }
}

fn digest(algorithm: &'static Algorithm, head: &str, input: &mut File) -> io::Result<String> {
    let mut context = Context::new(algorithm);
    context.update(head.as_bytes());
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        match input.read(&mut buffer) {
            Ok(0) => break,
            Ok(bytes) => context.update(&buffer[..bytes]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(context.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_those_of_sha256sum_and_of_git() {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let path = folder.path().join("x");
        std::fs::write(&path, b"hello\n").expect("is written");
        let file = |size| RepoFile { path: "x".into(), size };
        // `echo hello | sha256sum`, `echo hello | git hash-object --stdin`.
        let sums = [
            "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03",
            "ce013625030ba8dba906f756967f9e9ca394464a",
        ];
        for etag in sums.into_iter().chain(["some-mirror"]) {
            check(&path, &file(6), etag).expect("is what it should be");
            let error = check(&path, &file(7), etag).expect_err("is too short");
            assert_eq!(error.message, "x: size is 6, but the hub says 7");
        }
        std::fs::write(&path, b"hullo\n").expect("is written");
        for etag in sums {
            let error = check(&path, &file(6), etag).expect_err("was changed");
            assert_eq!(error.code, Code::DataLoss);
            assert!(error.message.ends_with(&format!("but the hub says {etag}")), "{error}");
        }
        check(&path, &file(6), "some-mirror").expect("nobody can know");
    }
}
