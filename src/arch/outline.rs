//! What surrounds a model's blocks: names, the last norm, and what embeddings and logits are multiplied with.

use crate::{arch::config::ModelConfig, layers::norm::NormOptions};

/// All of a model but its blocks. Names stand under `base`, or at the root where a file leaves that away.
#[derive(Clone, Debug, PartialEq)]
pub struct Outline {
    /// What all names but the head's begin with.
    pub base: &'static str,
    /// The embedding.
    pub embedding: &'static str,
    /// Learned positions `[max_position_embeddings, hidden]`, which are added to it.
    pub positions: Option<&'static str>,
    /// The blocks.
    pub layers: &'static str,
    /// The last norm.
    pub norm: (&'static str, NormOptions),
    /// The head.
    pub head: &'static str,
    /// What names of tensors begin with that are in its files and no part of it.
    pub others: &'static [&'static str],
    /// What embeddings are multiplied with.
    pub embedding_multiplier: Option<f64>,
    /// What logits are multiplied with.
    pub logit_multiplier: Option<f64>,
    /// Then they become `cap * tanh(logit / cap)`.
    pub logit_softcap: Option<f64>,
}

impl Outline {
    /// Whether the tensor is a part of the model.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        !self.others.iter().any(|other| name.starts_with(other))
    }

    /// Llama's.
    #[must_use]
    pub fn usual(config: &ModelConfig) -> Self {
        Self {
            base: "model",
            embedding: "embed_tokens",
            positions: None,
            layers: "layers",
            norm: ("norm", NormOptions::rms(config.norm_eps)),
            head: "lm_head",
            others: &[],
            embedding_multiplier: None,
            logit_multiplier: None,
            logit_softcap: None,
        }
    }
}
