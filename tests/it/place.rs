//! Where the repository's files and its program are: as cargo says when tests run, not as it said when they were compiled, so that
//! a test program that was carried to another machine, fixtures beside it, finds them there (`deploy/cuda/pack.sh`).

use std::{env, path::PathBuf};

/// A file or folder of the repository.
pub(crate) fn repository(path: &str) -> PathBuf {
    let root = env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    PathBuf::from(root).join(path)
}

/// The server.
pub(crate) fn program() -> PathBuf {
    env::var_os("CARGO_BIN_EXE_candlewick").unwrap_or_else(|| env!("CARGO_BIN_EXE_candlewick").into()).into()
}
