//! What attention and feed-forward layers have in common, and how their results join the residual stream.

use candle_core::Tensor;

use crate::{
    error::Result,
    kernels::linear::Inputs,
    layers::{context::StepContext, norm::Norm},
};

/// A layer between two states of the residual stream.
pub trait Sublayer: Send + Sync {
    /// What it makes of `x`, `[tokens, hidden]`, added to `onto` where that is given.
    ///
    /// # Errors
    /// `Internal` where the shapes do not fit.
    fn forward(&self, x: Inputs<'_>, onto: Option<&Tensor>, step: &StepContext<'_>) -> Result<Tensor>;
}

/// A sublayer with what stands before and after it.
pub struct Branch {
    /// Of what it reads; the stream as it is, where there is none.
    pub before: Option<Norm>,
    /// The layer.
    pub layer: Box<dyn Sublayer>,
    /// Of its result.
    pub after: Option<Norm>,
    /// What the result is multiplied with before it is added.
    pub multiplier: Option<f64>,
}

impl Branch {
    /// A layer behind a norm, as most are.
    pub fn behind(before: Norm, layer: impl Sublayer + 'static) -> Self {
        Self { before: Some(before), layer: Box::new(layer), after: None, multiplier: None }
    }

    /// Adds what the layer makes of the stream `x` to `onto`, both `[tokens, hidden]`.
    ///
    /// # Errors
    /// `Internal` where the shapes do not fit.
    pub fn forward(&self, x: &Tensor, onto: &Tensor, step: &StepContext<'_>) -> Result<Tensor> {
        let read = self.before.as_ref().map_or(Inputs::Rows(x), |norm| norm.of(x));
        if self.after.is_none() && self.multiplier.is_none() {
            return self.layer.forward(read, Some(onto), step);
        }
        let mut y = self.layer.forward(read, None, step)?;
        if let Some(norm) = &self.after {
            y = norm.forward(&y)?;
        }
        if let Some(multiplier) = self.multiplier {
            y = (y * multiplier)?;
        }
        Ok((onto + y)?)
    }
}
