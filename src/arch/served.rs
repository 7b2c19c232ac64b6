//! The configuration of a model that can be served, whatever computes it.

use std::path::Path;

use crate::{
    arch::{KeepOptions, config::ModelConfig, long_tail::LongTailConfig},
    config::ModelFacts,
    error::Result,
    ids::TokenId,
    weights::TensorHeader,
};

/// What a config.json is read as.
pub enum ServedConfig {
    /// One of the architectures here.
    Ours(Box<ModelConfig>),
    /// One that runs through candle-transformers.
    LongTail(Box<LongTailConfig>),
}

/// What both kinds of it know.
#[derive(Clone, Debug, PartialEq)]
pub struct CommonConfig {
    /// Hugging Face's class name.
    pub architecture: String,
    /// The family's short name.
    pub model_type: String,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Tokens that end a sequence.
    pub eos_token_ids: Vec<TokenId>,
    /// The token that begins one.
    pub bos_token_id: Option<TokenId>,
}

impl ServedConfig {
    /// Reads a config.json; `path` is for messages.
    ///
    /// # Errors
    /// `FailedPrecondition` that names the file and the field that is missing, impossible or not supported.
    pub fn from_hf_json(path: &Path, text: &str) -> Result<Self> {
        match LongTailConfig::from_hf_json(path, text)? {
            Some(config) => Ok(Self::LongTail(Box::new(config))),
            None => Ok(Self::Ours(Box::new(ModelConfig::from_hf_json(path, text)?))),
        }
    }

    /// What is known of it whatever computes it.
    #[must_use]
    pub fn common(&self) -> CommonConfig {
        match self {
            Self::Ours(config) => CommonConfig {
                architecture: config.architecture.clone(),
                model_type: config.model_type.clone(),
                vocab_size: config.vocab_size,
                hidden_size: config.hidden_size,
                eos_token_ids: config.eos_token_ids.clone(),
                bos_token_id: config.bos_token_id,
            },
            Self::LongTail(config) => CommonConfig {
                architecture: config.family().architecture.to_owned(),
                model_type: config.model_type.clone(),
                vocab_size: config.vocab_size(),
                hidden_size: config.hidden_size(),
                eos_token_ids: config.eos_token_ids.clone(),
                bos_token_id: config.bos_token_id,
            },
        }
    }

    /// The same where sequences end at so many tokens.
    #[must_use]
    pub fn up_to(self, max_model_len: usize) -> Self {
        match self {
            Self::Ours(config) => Self::Ours(Box::new(config.up_to(max_model_len))),
            other => other,
        }
    }

    /// What memory it takes to serve the model of these tensors, and what else the engine's limits depend on.
    ///
    /// # Errors
    /// `InvalidArgument` that names the flag which asks for numbers that it cannot be computed with.
    pub fn facts(&self, keep: &KeepOptions, headers: &[TensorHeader]) -> Result<ModelFacts> {
        match self {
            Self::Ours(config) => Ok(keep.facts(config, headers)),
            Self::LongTail(config) => config.check(keep).map(|()| config.facts(headers)),
        }
    }
}
