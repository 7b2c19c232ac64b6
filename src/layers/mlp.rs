//! The gated MLP: `down(silu(gate(x)) * up(x))` (Shazeer 2020, arXiv 2002.05202).

use candle_core::Tensor;

use crate::{
    error::Result,
    kernels::linear::Inputs,
    layers::{context::StepContext, linear::Linear, loader::TensorLoader},
};

/// Gate and up as one product, then down.
pub struct GatedMlp {
    gate_up: Linear,
    down: Linear,
}

impl GatedMlp {
    /// Loads `gate_proj`, `up_proj` and `down_proj` under the loader's prefix.
    ///
    /// # Errors
    /// `FailedPrecondition` that names a tensor which is missing or misshapen.
    pub fn load(loader: &TensorLoader<'_>, hidden_size: usize, intermediate_size: usize, bias: bool) -> Result<Self> {
        let parts = [("gate_proj", intermediate_size), ("up_proj", intermediate_size)];
        Ok(Self {
            gate_up: loader.stacked_linear("gate_up_proj", &parts, hidden_size, bias)?,
            down: loader.linear("down_proj", hidden_size, intermediate_size, bias)?,
        })
    }

    /// Adds what it makes of `x` to the residual stream `onto`, both `[tokens, hidden]`.
    ///
    /// # Errors
    /// `Internal` where the shapes do not fit.
    pub fn forward_onto(&self, onto: &Tensor, x: Inputs<'_>, step: &StepContext<'_>) -> Result<Tensor> {
        let gate_up = self.gate_up.forward(x, step)?;
        self.down.forward_onto(onto, Inputs::Gated(&gate_up), step)
    }
}
