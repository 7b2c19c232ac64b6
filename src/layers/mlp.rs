//! Feed-forward layers: gated, `down(act(gate(x)) * up(x))` (Shazeer 2020, arXiv 2002.05202), and plain,
//! `down(act(up(x)))`.

use candle_core::Tensor;

use crate::{
    error::Result,
    kernels::{
        activation::{Activation, Gate},
        linear::Inputs,
        spare::give_back,
    },
    layers::{context::StepContext, experts::Experts, linear::Linear, loader::TensorLoader, sublayer::Sublayer},
};

/// Sizes of a feed-forward layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MlpSizes {
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width between the two products.
    pub intermediate: usize,
    /// Whether its Linears have biases.
    pub bias: bool,
}

/// How a file names the Linears of a gated layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GatedNames {
    /// Gate, up and down.
    Apart([&'static str; 3]),
    /// Gate and up as one, and down.
    Fused([&'static str; 2]),
}

impl GatedNames {
    /// What most call them.
    pub const USUAL: Self = Self::Apart(["gate_proj", "up_proj", "down_proj"]);
}

/// Gate and up as one product, then down.
pub struct GatedMlp {
    gate_up: Linear,
    down: Linear,
    gate: Gate,
}

impl GatedMlp {
    /// Loads its Linears under the loader's prefix.
    ///
    /// # Errors
    /// `FailedPrecondition` that names a tensor which is missing or misshapen.
    pub fn load(loader: &TensorLoader<'_>, names: GatedNames, sizes: MlpSizes, gate: Gate) -> Result<Self> {
        let MlpSizes { hidden, intermediate, bias } = sizes;
        let (gate_up, down) = match names {
            GatedNames::Apart([gate, up, down]) => {
                let parts = [(gate, intermediate), (up, intermediate)];
                (loader.stacked_linear("gate_up_proj", &parts, hidden, bias)?, down)
            }
            GatedNames::Fused([gate_up, down]) => (loader.linear(gate_up, 2 * intermediate, hidden, bias)?, down),
        };
        Ok(Self::new(gate_up, loader.linear(down, hidden, intermediate, bias)?, gate))
    }

    /// Of Linears `[2 * intermediate, hidden]`, the gate's rows first, and `[hidden, intermediate]`.
    #[must_use]
    pub fn new(gate_up: Linear, down: Linear, gate: Gate) -> Self {
        Self { gate_up, down, gate }
    }

    /// These as experts that are multiplied together; none where they are not alike.
    ///
    /// # Errors
    /// candle's.
    pub(super) fn together(experts: &[Self]) -> Result<Option<Experts>> {
        let Some(first) = experts.first() else { return Ok(None) };
        let of = |linear: fn(&Self) -> &Linear| {
            let linears: Vec<&Linear> = experts.iter().map(linear).collect();
            Linear::of_experts(&linears)
        };
        let (gate_up, down) = (of(|expert| &expert.gate_up)?, of(|expert| &expert.down)?);
        let alike = experts.iter().all(|expert| expert.gate == first.gate);
        Ok(gate_up.zip(down).filter(|_| alike).map(|(gate_up, down)| Experts { gate_up, down, gate: first.gate }))
    }
}

impl Sublayer for GatedMlp {
    fn forward(&self, x: Inputs<'_>, onto: Option<&Tensor>, step: &StepContext<'_>) -> Result<Tensor> {
        let gate_up = self.gate_up.forward(x, None, step)?;
        let y = self.down.forward(Inputs::Gated(&gate_up, self.gate), onto, step);
        give_back(gate_up);
        y
    }
}

/// Up, an activation, down.
pub struct PlainMlp {
    up: Linear,
    down: Linear,
    activation: Activation,
}

impl PlainMlp {
    /// Loads `up` and `down` by the names given under the loader's prefix.
    ///
    /// # Errors
    /// `FailedPrecondition` that names a tensor which is missing or misshapen.
    pub fn load(
        loader: &TensorLoader<'_>,
        [up, down]: [&str; 2],
        sizes: MlpSizes,
        activation: Activation,
    ) -> Result<Self> {
        let MlpSizes { hidden, intermediate, bias } = sizes;
        Ok(Self {
            up: loader.linear(up, intermediate, hidden, bias)?,
            down: loader.linear(down, hidden, intermediate, bias)?,
            activation,
        })
    }
}

impl Sublayer for PlainMlp {
    fn forward(&self, x: Inputs<'_>, onto: Option<&Tensor>, step: &StepContext<'_>) -> Result<Tensor> {
        let up = self.up.forward(x, None, step)?;
        let y = self.down.forward(Inputs::Activated(&up, self.activation), onto, step);
        give_back(up);
        y
    }
}
