//! A block: everything between two states of the residual stream, as branches of it.

use candle_core::Tensor;

use crate::{
    error::Result,
    layers::{context::StepContext, sublayer::Branch},
};

/// One block of a model.
pub struct Block {
    branches: Vec<Branch>,
    /// Whether all branches read the stream as it comes, rather than each what the one before it left.
    parallel: bool,
}

impl Block {
    /// One branch after the other, as Llama set it: attention, then feed-forward.
    #[must_use]
    pub fn sequential(branches: impl Into<Vec<Branch>>) -> Self {
        Self { branches: branches.into(), parallel: false }
    }

    /// Branches beside each other, as GPT-J set it (Wang and Komatsuzaki 2021).
    #[must_use]
    pub fn parallel(branches: impl Into<Vec<Branch>>) -> Self {
        Self { branches: branches.into(), parallel: true }
    }

    /// Runs it over all tokens of a step, `[tokens, hidden]`.
    ///
    /// # Errors
    /// `Internal` where an operation fails.
    pub fn forward(&self, x: &Tensor, step: &StepContext<'_>) -> Result<Tensor> {
        let mut stream = x.clone();
        for branch in &self.branches {
            stream = branch.forward(if self.parallel { x } else { &stream }, &stream, step)?;
        }
        Ok(stream)
    }
}
