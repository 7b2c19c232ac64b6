//! RMS norm.

use candle_core::Tensor;

use crate::kernels::{linear::Inputs, rope::HeadNorm};

/// `x / sqrt(mean(x²) + eps) * weight` over the last dimension (Zhang and Sennrich 2019, arXiv 1910.07467), computed by
/// whoever reads it.
pub struct RmsNorm {
    weight: Tensor,
    eps: f64,
}

impl RmsNorm {
    /// `weight` is float32 of the last dimension's size.
    pub(crate) fn new(weight: Tensor, eps: f64) -> Self {
        Self { weight, eps }
    }

    /// The norms of the rows of `x`, for a Linear.
    #[must_use]
    pub fn of<'a>(&'a self, x: &'a Tensor) -> Inputs<'a> {
        Inputs::Normed { x, weight: &self.weight, eps: self.eps }
    }

    /// The norms of heads, for rotary positions.
    #[must_use]
    pub fn of_heads(&self) -> HeadNorm<'_> {
        HeadNorm { weight: &self.weight, eps: self.eps }
    }
}
