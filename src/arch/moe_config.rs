//! What a config.json says of experts.

use crate::{
    arch::{config::limits, fields::Fields},
    error::Result,
};

/// Experts of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct MoeConfig {
    /// How many there are.
    pub num_experts: usize,
    /// How many a token gets.
    pub experts_per_token: usize,
    /// Width of each, where it differs from the width of a layer without experts.
    pub intermediate_size: Option<usize>,
    /// Whether a token's weights are made to sum to 1, where the file says.
    pub renormalize: Option<bool>,
    /// Layers that have no experts: those of `mlp_only_layers`, and all but every `decoder_sparse_step`-th.
    pub dense_layers: Vec<usize>,
    /// `decoder_sparse_step`.
    pub sparse_step: usize,
}

/// Most experts that are taken for meant.
const EXPERTS: std::ops::RangeInclusive<usize> = 1..=4096;

impl MoeConfig {
    /// Reads the fields of a config.json; none where there are no experts.
    ///
    /// # Errors
    /// `FailedPrecondition` that names the field that is impossible.
    pub(crate) fn from_fields(fields: &Fields<'_>) -> Result<Option<Self>> {
        let Some(num_experts) = fields.size("num_local_experts", 0..=*EXPERTS.end())?.filter(|&n| n > 0) else {
            return Ok(None);
        };
        let dense = fields.numbers("mlp_only_layers", *limits::LAYERS.end())?.unwrap_or_default();
        Ok(Some(Self {
            num_experts,
            experts_per_token: fields.required_size("num_experts_per_tok", 1..=num_experts)?,
            intermediate_size: fields.size("moe_intermediate_size", limits::INTERMEDIATE)?,
            renormalize: fields.flag("norm_topk_prob")?,
            dense_layers: dense.into_iter().map(|layer| layer as usize).collect(),
            sparse_step: fields.size("decoder_sparse_step", limits::LAYERS)?.unwrap_or(1),
        }))
    }

    /// Whether a layer has experts.
    #[must_use]
    pub fn in_layer(&self, layer: usize) -> bool {
        !self.dense_layers.contains(&layer) && (layer + 1).is_multiple_of(self.sparse_step)
    }
}
