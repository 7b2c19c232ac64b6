//! How the kernels of layer_norm.cu are launched.

use crate::kernels::cuda::{Arg, Call, NormLaunch};

/// The norms that are described, with a bias, float32 `[width]`, that is added to each; 0 for none.
pub(super) fn call(norm: &NormLaunch, bias: u64) -> Call<7> {
    let [x, stride, weight, out, width, eps] = norm.args();
    Call { kernel: norm.kernel, launch: norm.launch(2), args: [x, stride, weight, out, width, eps, Arg::Ptr(bias)] }
}
