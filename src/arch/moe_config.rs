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
    /// Experts that every token gets, as one that is so many times as wide.
    pub shared_experts: usize,
    /// Width of one more that every token gets, which counts as far as a gate says.
    pub weighed_expert_size: Option<usize>,
    /// Groups that experts stand in, and how many of them are open to a token (`n_group`, `topk_group`); one of one is all.
    pub groups: (usize, usize),
    /// What a token's weights are multiplied with at last, where the file says.
    pub routed_scale: Option<f64>,
}

/// Most experts that are taken for meant.
const EXPERTS: std::ops::RangeInclusive<usize> = 1..=4096;
/// Most experts that every token gets.
pub(super) const SHARED: usize = 64;

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
        let first_dense = fields.size("first_k_dense_replace", 0..=*limits::LAYERS.end())?.unwrap_or(0);
        let groups = fields.size("n_group", 1..=num_experts)?.unwrap_or(1);
        if !num_experts.is_multiple_of(groups) {
            return Err(fields.error("n_group", format!("is {groups}, must divide the {num_experts} experts")));
        }
        let open = fields.size("topk_group", 1..=groups)?.unwrap_or(groups);
        let experts_per_token = fields.required_size("num_experts_per_tok", 1..=num_experts)?;
        let size = num_experts / groups;
        if open * size < experts_per_token {
            let why =
                format!("opens {open} groups of {size} experts, fewer than the {experts_per_token} that a token gets");
            return Err(fields.error("topk_group", why));
        }
        Ok(Some(Self {
            num_experts,
            experts_per_token,
            intermediate_size: fields.size("moe_intermediate_size", limits::INTERMEDIATE)?,
            renormalize: fields.flag("norm_topk_prob")?,
            dense_layers: (0..first_dense).chain(dense.into_iter().map(|layer| layer as usize)).collect(),
            sparse_step: fields.size("decoder_sparse_step", limits::LAYERS)?.unwrap_or(1),
            shared_experts: fields.size("n_shared_experts", 0..=SHARED)?.unwrap_or(0),
            weighed_expert_size: fields.size("shared_expert_intermediate_size", limits::INTERMEDIATE)?,
            groups: (groups, open),
            routed_scale: fields.positive("routed_scaling_factor")?,
        }))
    }

    /// Whether a layer has experts.
    #[must_use]
    pub fn in_layer(&self, layer: usize) -> bool {
        !self.dense_layers.contains(&layer) && (layer + 1).is_multiple_of(self.sparse_step)
    }
}
