//! RMS norm, and the residual stream that it reads.

use candle_core::Tensor;

use crate::{
    error::Result,
    kernels::rms_norm::{add_rms_norm, rms_norm},
};

/// `x / sqrt(mean(x²) + eps) * weight` over the last dimension (Zhang and Sennrich 2019, arXiv 1910.07467).
pub struct RmsNorm {
    weight: Tensor,
    eps: f64,
}

impl RmsNorm {
    /// `weight` is float32 of the last dimension's size.
    pub(crate) fn new(weight: Tensor, eps: f64) -> Self {
        Self { weight, eps }
    }

    /// The norm of each row of `x`, any shape whose last dimension is the weight's.
    ///
    /// # Errors
    /// `Internal` where the shapes do not fit.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        rms_norm(x, &self.weight, self.eps)
    }
}

/// The residual stream `[rows, hidden]` between two layers. What the last layer adds to it is kept apart until the
/// next norm, which adds and norms in one pass.
pub struct Residual {
    sum: Tensor,
    pending: Option<Tensor>,
}

impl Residual {
    /// A stream that begins with the embeddings.
    #[must_use]
    pub fn new(x: Tensor) -> Self {
        Self { sum: x, pending: None }
    }

    /// The stream with a layer's output added.
    ///
    /// # Errors
    /// `Internal` where the shapes differ.
    pub fn plus(self, delta: Tensor) -> Result<Self> {
        let sum = self.sum()?;
        Ok(Self { sum, pending: Some(delta) })
    }

    /// The norm of the stream, and the stream.
    ///
    /// # Errors
    /// `Internal` where the shapes do not fit.
    pub fn norm(self, norm: &RmsNorm) -> Result<(Tensor, Self)> {
        match self.pending {
            None => Ok((norm.forward(&self.sum)?, self)),
            Some(delta) => {
                let (normed, sum) = add_rms_norm(&delta, &self.sum, &norm.weight, norm.eps)?;
                Ok((normed, Self::new(sum)))
            }
        }
    }

    /// These rows of the stream.
    ///
    /// # Errors
    /// `Internal` where a row is not of this step.
    pub fn rows(self, rows: &[u32]) -> Result<Self> {
        let index = Tensor::new(rows, self.sum.device())?;
        let pending = self.pending.map(|delta| delta.index_select(&index, 0)).transpose()?;
        Ok(Self { sum: self.sum.index_select(&index, 0)?, pending })
    }

    /// The stream as one tensor.
    ///
    /// # Errors
    /// `Internal` where the shapes differ.
    pub fn sum(self) -> Result<Tensor> {
        Ok(match self.pending {
            None => self.sum,
            Some(delta) => (self.sum + delta)?,
        })
    }
}
