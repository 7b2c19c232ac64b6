//! The model inside the program: what `models/demo` holds, and weights drawn from a seed. Nothing has trained it: it
//! says nothing sensible, but everything around it works as with any other model.

use std::path::{Path, PathBuf};

use super::Parts;
use crate::{
    arch::{config::ModelConfig, generation_config::GenerationDefaults, shapes::tensor_shapes},
    error::Result,
    text::{ChatTemplate, Tokenizer, TokenizerConfig},
    weights::{Weights, seeded::SeededSource},
};

const CONFIG: &str = include_str!("../../../models/demo/config.json");
const TOKENIZER: &[u8] = include_bytes!("../../../models/demo/tokenizer.json");
const TOKENIZER_CONFIG: &[u8] = include_bytes!("../../../models/demo/tokenizer_config.json");
/// Any would do; all machines draw the same weights from it.
const SEED: u64 = 0;

pub(super) fn parts() -> Result<Parts> {
    let path = |file: &str| Path::new("models/demo").join(file);
    let config = ModelConfig::from_hf_json(&path("config.json"), CONFIG)?;
    let tokenizer_config = TokenizerConfig::from_json_bytes(&path("tokenizer_config.json"), TOKENIZER_CONFIG)?;
    let tokenizer = Tokenizer::from_json_bytes(&path("tokenizer.json"), TOKENIZER)?.with_config(&tokenizer_config)?;
    Ok(Parts {
        name: "demo".to_owned(),
        path: PathBuf::from("models/demo"),
        weights: Weights::new(Box::new(SeededSource::new(SEED, tensor_shapes(&config)))),
        tokenizer: Some(tokenizer),
        chat_template: Some(ChatTemplate::from_tokenizer_config(&tokenizer_config, None)?),
        generation: GenerationDefaults::default(),
        config,
    })
}
