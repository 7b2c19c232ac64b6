//! What the kernels for NVIDIA cards have in common.

#[cfg(all(test, target_os = "linux"))]
pub(crate) mod host_twin;
mod launch;

pub(crate) use launch::{Arg, Call, Launch};
