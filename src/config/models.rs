//! Several models in one server.

use std::time::Duration;

use clap::Args;

use super::values::{count, seconds};

/// A model to load beside the first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelModule {
    /// What requests call it; told by its path where there is none.
    pub name: Option<String>,
    /// Directory, GGUF file or Hugging Face repository.
    pub path: String,
}

/// Models beside the first.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Several models")]
pub struct ModelsArgs {
    /// More models to load at the start, each with its own KV cache: [name=]path; requests name them as their model.
    #[arg(long, value_name = "[NAME=]MODEL", num_args = 1.., value_parser = model_module)]
    pub models: Vec<ModelModule>,
    /// Models in memory at once, those on their way in or out included; as many as are named here if left out.
    #[arg(long, value_name = "N", value_parser = count(1, 64))]
    pub max_models: Option<usize>,
    /// Unload a model that nobody has used for this long; the next request for it waits until it is loaded again.
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub model_idle_timeout: Option<Duration>,
    /// A model that nobody has used for this long makes room where another is to be loaded and --max-models or memory is
    /// full; the next request for it loads it again.
    #[arg(long, value_name = "SECONDS", default_value = "60", value_parser = seconds)]
    pub model_evict_after: Duration,
}

impl Default for ModelsArgs {
    fn default() -> Self {
        let (models, max_models, model_idle_timeout) = (Vec::new(), None, None);
        Self { models, max_models, model_idle_timeout, model_evict_after: Duration::from_secs(60) }
    }
}

impl ModelsArgs {
    /// Models in memory at once.
    #[must_use]
    pub fn max_models(&self) -> usize {
        self.max_models.unwrap_or(0).max(self.models.len() + 1)
    }
}

fn model_module(text: &str) -> Result<ModelModule, String> {
    // A path may have the sign too, and then begins with neither a name nor nothing.
    let (name, path) = match text.split_once('=') {
        Some((name, path)) if !name.contains('/') => (Some(name.to_owned()), path),
        _ => (None, text),
    };
    if path.is_empty() || name.as_deref() == Some("") {
        return Err("must be a path, or name=path".to_owned());
    }
    Ok(ModelModule { name, path: path.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_is_a_path_or_a_name_and_a_path() {
        let module = |name: Option<&str>, path: &str| Ok(ModelModule { name: name.map(Into::into), path: path.into() });
        assert_eq!(model_module("small=/a/b=c.gguf"), module(Some("small"), "/a/b=c.gguf"));
        assert_eq!(model_module("Qwen/Qwen3-0.6B"), module(None, "Qwen/Qwen3-0.6B"));
        assert_eq!(model_module("/a/b=c.gguf"), module(None, "/a/b=c.gguf"));
        for text in ["", "=", "=/a", "a="] {
            assert!(model_module(text).is_err(), "{text}");
        }
    }

    #[test]
    fn there_is_room_for_all_that_are_named() {
        let named = ModelModule { name: None, path: "x".into() };
        let args = |max_models| ModelsArgs { models: vec![named.clone()], max_models, ..ModelsArgs::default() };
        assert_eq!([None, Some(1), Some(5)].map(|max| args(max).max_models()), [2, 2, 5]);
    }
}
