//! How the kernels of rms_norm.cu are launched.

use crate::kernels::cuda::{Call, NormLaunch};

/// The norms that are described.
pub(super) fn call(norm: &NormLaunch) -> Call<6> {
    Call { kernel: norm.kernel, launch: norm.launch(1), args: norm.args() }
}
