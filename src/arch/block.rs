//! A block: everything between two states of the residual stream, as branches of it.

use candle_core::Tensor;

use crate::{
    error::Result,
    kernels::spare::give_back,
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
        let mut stream = None;
        for branch in &self.branches {
            let now = stream.as_ref().unwrap_or(x);
            let next = branch.forward(if self.parallel { x } else { now }, now, step)?;
            if let Some(last) = stream.replace(next) {
                give_back(last);
            }
        }
        Ok(stream.unwrap_or_else(|| x.clone()))
    }
}
