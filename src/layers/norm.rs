//! Norms over the last dimension.

use candle_core::Tensor;

use crate::{
    error::Result,
    kernels::{linear::Inputs, rms_norm::rms_norm, rope::HeadNorm},
};

/// Which norm an architecture has.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NormOptions {
    /// How it is computed.
    pub kind: NormKind,
    /// What is added before the root.
    pub eps: f64,
    /// Whether the file has a bias; only of [`NormKind::Layer`].
    pub bias: bool,
    /// What is added to the file's weight: 1 where a file stores how far a weight is from 1 (Gemma).
    pub offset: f64,
}

impl NormOptions {
    /// RMS norm with the weight as it is.
    #[must_use]
    pub fn rms(eps: f64) -> Self {
        Self { kind: NormKind::Rms, eps, bias: false, offset: 0.0 }
    }

    /// Layer norm with a bias.
    #[must_use]
    pub fn layer(eps: f64) -> Self {
        Self { kind: NormKind::Layer, eps, bias: true, offset: 0.0 }
    }
}

/// How a norm is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormKind {
    /// `x / sqrt(mean(x²) + eps) * weight` (Zhang and Sennrich 2019, arXiv 1910.07467).
    Rms,
    /// `(x - mean) / sqrt(variance + eps) * weight + bias` (Ba, Kiros and Hinton 2016, arXiv 1607.06450).
    Layer,
}

/// A norm, computed by whoever reads it.
pub struct Norm {
    weight: Tensor,
    bias: Option<Tensor>,
    options: NormOptions,
}

impl Norm {
    /// `weight` and `bias` are float32 of the last dimension's size.
    pub(crate) fn new(weight: Tensor, bias: Option<Tensor>, options: NormOptions) -> Self {
        Self { weight, bias, options }
    }

    /// The norms of the rows of `x`, for a Linear.
    #[must_use]
    pub fn of<'a>(&'a self, x: &'a Tensor) -> Inputs<'a> {
        let Self { weight, bias, options: NormOptions { kind, eps, .. } } = self;
        match kind {
            NormKind::Rms => Inputs::Normed { x, weight, eps: *eps },
            NormKind::Layer => Inputs::LayerNormed { x, weight, bias: bias.as_ref(), eps: *eps },
        }
    }

    /// The norms of the last dimension of `x`, for anybody else.
    ///
    /// # Errors
    /// `Internal` where the shapes do not fit.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self.options.kind {
            NormKind::Rms => rms_norm(x, &self.weight, self.options.eps),
            NormKind::Layer => self.of(x).tensor(),
        }
    }

    /// How it is computed.
    #[must_use]
    pub fn kind(&self) -> NormKind {
        self.options.kind
    }

    /// The RMS norms of heads, for rotary positions.
    #[must_use]
    pub fn of_heads(&self) -> HeadNorm<'_> {
        HeadNorm { weight: &self.weight, eps: self.options.eps }
    }
}
