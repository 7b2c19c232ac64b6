//! Which adapters are served, as vLLM's flags say it.

use clap::Args;
use serde_json::Value;

use super::values::count;

/// An adapter to load at the start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoraModule {
    /// What requests call it.
    pub name: String,
    /// Its directory.
    pub path: String,
}

/// LoRA adapters beside the model.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Adapters")]
pub struct LoraArgs {
    /// Serve LoRA adapters (directories that PEFT wrote).
    #[arg(long)]
    pub enable_lora: bool,
    /// Adapters to load at the start: name=path, or {"name": …, "path": …}; requests name them as their model.
    #[arg(long, value_name = "NAME=PATH", num_args = 1.., value_parser = lora_module)]
    pub lora_modules: Vec<LoraModule>,
    /// Adapters that are in memory at once; any of them may be mixed in a batch.
    #[arg(long, value_name = "N", default_value = "16", value_parser = count(1, 1024))]
    pub max_loras: usize,
    /// Greatest rank of an adapter.
    #[arg(long, value_name = "RANK", default_value = "16", value_parser = count(1, 1024))]
    pub max_lora_rank: usize,
    /// Let clients load adapters from this machine's directories, and unload them (/v1/load_lora_adapter).
    #[arg(long)]
    pub allow_runtime_lora_updating: bool,
}

impl Default for LoraArgs {
    fn default() -> Self {
        Self {
            enable_lora: false,
            lora_modules: Vec::new(),
            max_loras: 16,
            max_lora_rank: 16,
            allow_runtime_lora_updating: false,
        }
    }
}

impl LoraArgs {
    /// Whether there may be any.
    #[must_use]
    pub fn enabled(&self) -> bool {
        self.enable_lora || !self.lora_modules.is_empty()
    }
}

fn lora_module(text: &str) -> Result<LoraModule, String> {
    let wrong = "must be name=path, or an object with \"name\" and \"path\"";
    let module = if text.starts_with('{') {
        let value: Value = serde_json::from_str(text).map_err(|error| format!("{wrong}: {error}"))?;
        let field = |name: &str| value.get(name).and_then(Value::as_str).map(str::to_owned).ok_or(wrong);
        LoraModule { name: field("name")?, path: field("path")? }
    } else {
        let (name, path) = text.split_once('=').ok_or(wrong)?;
        LoraModule { name: name.to_owned(), path: path.to_owned() }
    };
    if module.name.is_empty() || module.path.is_empty() { Err(wrong.to_owned()) } else { Ok(module) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_is_a_pair_or_an_object() {
        let module = |name: &str, path: &str| LoraModule { name: name.into(), path: path.into() };
        assert_eq!(lora_module("sql=/a/b=c"), Ok(module("sql", "/a/b=c")));
        let json = r#"{"name": "sql", "path": "/a", "base_model_name": "m"}"#;
        assert_eq!(lora_module(json), Ok(module("sql", "/a")));
        for text in ["sql", "=/a", "sql=", "{", r#"{"name": "x"}"#] {
            assert!(lora_module(text).is_err(), "{text}");
        }
    }
}
