//! Feed-forward layers of several experts that are multiplied together, rows by expert, so that nothing waits for the host.

use candle_core::Tensor;

use crate::{
    error::Result,
    kernels::{
        activation::Gate,
        grouped_linear::{ExpertWeights, grouped_linear},
        linear::Inputs,
        route::Routes,
    },
    layers::context::StepContext,
};

/// One Linear of each expert.
pub(super) struct ExpertLinear {
    /// That of the first.
    pub(super) name: String,
    pub(super) weights: ExpertWeights,
}

impl ExpertLinear {
    fn forward(
        &self,
        x: Inputs<'_>,
        tokens: Option<&Tensor>,
        routes: &Routes,
        step: &StepContext<'_>,
    ) -> Result<Tensor> {
        if let Some(observer) = step.observer {
            observer.linear(&self.name, tokens.unwrap_or(x.rows()).dim(0)?);
        }
        grouped_linear(x, tokens, &self.weights, &routes.tiles)
    }
}

/// Gated layers, one an expert, alike in everything but their weights' numbers.
pub(super) struct Experts {
    /// Gate and up as one, `[2 * intermediate, hidden]`.
    pub(super) gate_up: ExpertLinear,
    /// `[hidden, intermediate]`.
    pub(super) down: ExpertLinear,
    pub(super) gate: Gate,
}

impl Experts {
    /// Whether a launch each multiplies all experts' rows.
    pub(super) fn are_one_launch(&self) -> bool {
        self.gate_up.weights.is_one_launch() && self.down.weights.is_one_launch()
    }

    /// The experts' rows for tokens `x`, `[tokens, hidden]`, where the routes say: `[rows, hidden]`.
    ///
    /// # Errors
    /// `Internal` where the routes are those of other tokens or experts.
    pub(super) fn forward(&self, x: &Tensor, routes: &Routes, step: &StepContext<'_>) -> Result<Tensor> {
        let gate_up = self.gate_up.forward(Inputs::Rows(x), Some(&routes.tokens), routes, step)?;
        self.down.forward(Inputs::Gated(&gate_up, self.gate), None, routes, step)
    }
}
