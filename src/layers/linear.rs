//! `y = x Wᵀ + b`: a Linear owns its weight in whatever format it has, so one architecture file serves all of them.

use std::sync::Arc;

use candle_core::Tensor;

use crate::{
    error::Result,
    kernels::linear::{Inputs, PackedWeight, linear},
    layers::context::StepContext,
};

/// A weight `[out, in]`, perhaps with a bias. It may be several weights stacked along `out` (query, key and value;
/// gate and up): one product where their formats agree, one a format where a quantizer mixed them.
pub struct Linear {
    name: String,
    parts: Vec<Arc<PackedWeight>>,
    bias: Option<Tensor>,
    inputs: Inputs,
}

impl Linear {
    /// A Linear called `name` of weights stacked in order; `bias` is `[out]` of all of them.
    pub(crate) fn new(name: String, parts: Vec<Arc<PackedWeight>>, bias: Option<Tensor>) -> Self {
        Self { name, parts, bias, inputs: Inputs::Rounded }
    }

    /// The same with inputs in two terms.
    #[must_use]
    pub(crate) fn in_two_terms(self) -> Self {
        Self { inputs: Inputs::TwoTerms, ..self }
    }

    /// `x` is `[rows, in]`, the result `[rows, out]`, both float32.
    ///
    /// # Errors
    /// `Internal` where the shapes do not fit.
    pub fn forward(&self, x: &Tensor, step: &StepContext<'_>) -> Result<Tensor> {
        if let Some(observer) = step.observer {
            observer.linear(&self.name, x.dim(0)?);
        }
        if let [weight] = self.parts.as_slice() {
            return linear(x, weight, self.bias.as_ref(), self.inputs);
        }
        let outputs =
            self.parts.iter().map(|weight| linear(x, weight, None, self.inputs)).collect::<Result<Vec<_>>>()?;
        let y = Tensor::cat(&outputs, 1)?;
        Ok(match &self.bias {
            Some(bias) => y.broadcast_add(bias)?,
            None => y,
        })
    }
}
