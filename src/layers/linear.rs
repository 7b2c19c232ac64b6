//! `y = x Wᵀ + b`: a Linear owns its weight in whatever format it has, so one architecture file serves all of them.

use std::sync::Arc;

use candle_core::Tensor;

use crate::{
    error::Result,
    kernels::{
        grouped_linear::ExpertWeights,
        linear::{Extras, Inputs, PackedWeight, Terms, linear},
    },
    layers::{context::StepContext, experts::ExpertLinear},
};

/// A weight `[out, in]`, perhaps with a bias. It may be several weights stacked along `out` (query, key and value;
/// gate and up): one product where their formats agree, one a format where a quantizer mixed them.
pub struct Linear {
    name: String,
    parts: Vec<Arc<PackedWeight>>,
    bias: Option<Tensor>,
    terms: Terms,
}

impl Linear {
    /// A Linear called `name` of weights stacked in order; `bias` is `[out]` of all of them.
    pub(crate) fn new(name: String, parts: Vec<Arc<PackedWeight>>, bias: Option<Tensor>) -> Self {
        Self { name, parts, bias, terms: Terms::One }
    }

    /// What its tensors' names begin with.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// The same with inputs in two terms.
    #[must_use]
    pub(crate) fn in_two_terms(self) -> Self {
        Self { terms: Terms::Two, ..self }
    }

    /// The weights of these, one an expert, and their biases; none where they are not alike.
    ///
    /// # Errors
    /// candle's.
    pub(super) fn of_experts(linears: &[&Self]) -> Result<Option<ExpertLinear>> {
        let weight = |linear: &&Self| match linear.parts.as_slice() {
            [weight] => Some(Arc::clone(weight)),
            _ => None,
        };
        let shape = |weight: &Arc<PackedWeight>| (weight.out_features(), weight.in_features());
        let Some(first) = linears.first() else { return Ok(None) };
        let Some(weights) = linears.iter().map(weight).collect::<Option<Vec<_>>>() else { return Ok(None) };
        let biases: Vec<&Tensor> = linears.iter().filter_map(|linear| linear.bias.as_ref()).collect();
        let alike = weights.windows(2).all(|pair| shape(&pair[0]) == shape(&pair[1]));
        if !alike || !(biases.is_empty() || biases.len() == weights.len()) {
            return Ok(None);
        }
        let biases = if biases.is_empty() { None } else { Some(Tensor::stack(&biases, 0)?) };
        Ok(Some(ExpertLinear { name: first.name.clone(), weights: ExpertWeights::new(weights, biases)? }))
    }

    /// `x` is `[rows, in]`, the result `[rows, out]`, both float32; added to `onto`, `[rows, out]`, where that is given.
    ///
    /// # Errors
    /// `Internal` where the shapes do not fit.
    pub fn forward(&self, x: Inputs<'_>, onto: Option<&Tensor>, step: &StepContext<'_>) -> Result<Tensor> {
        if let Some(observer) = step.observer {
            observer.linear(&self.name, x.rows().dim(0)?);
        }
        let y = self.plain(x, onto)?;
        match step.adapters {
            Some(adapters) => adapters.add(&self.name, x, y),
            None => Ok(y),
        }
    }

    /// The product without what adapters add.
    fn plain(&self, x: Inputs<'_>, onto: Option<&Tensor>) -> Result<Tensor> {
        let terms = self.terms;
        if let [weight] = self.parts.as_slice() {
            return linear(x, weight, Extras { bias: self.bias.as_ref(), onto, terms });
        }
        let part = |weight: &Arc<PackedWeight>| linear(x, weight, Extras { terms, ..Extras::default() });
        let mut y = Tensor::cat(&self.parts.iter().map(part).collect::<Result<Vec<_>>>()?, 1)?;
        if let Some(bias) = &self.bias {
            y = y.broadcast_add(bias)?;
        }
        Ok(match onto {
            Some(onto) => (y + onto)?,
            None => y,
        })
    }
}
