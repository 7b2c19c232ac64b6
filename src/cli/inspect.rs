//! `candlewick inspect`: what a model file is, what it would take in memory, and which kernels it gets.

use std::{
    collections::BTreeMap,
    io::{self, Write},
    path::{Path, PathBuf},
};

use clap::Args;
use serde_json::{Value, json};

use super::Stop;
use crate::{
    arch::{config::ModelConfig, kv_dtype},
    config::{Dtype, KvCacheDtype},
    error::Result,
    kernels::{linear::format::WeightFormat, linear::stored::StoredFormat, machine::instruction_set},
    text::TOKENIZER_FILES,
    weights::{
        file::read_small,
        files::{ModelDirectory, ModelFiles, model_files},
        gguf::Gguf,
        safetensors::SafetensorsSource,
        shown,
    },
};

/// Most bytes of a config.json.
const MAX_CONFIG_BYTES: u64 = 4 << 20;

/// What `inspect` takes.
#[derive(Args, Clone, Debug)]
pub(super) struct InspectArgs {
    /// GGUF file (any part of a split one), or directory as the hub lays it out.
    pub(super) model: PathBuf,
    /// Tokens to reckon the KV cache for; the model's own context if left out.
    #[arg(long, value_name = "TOKENS")]
    context: Option<u32>,
    /// Print one JSON object instead of lines.
    #[arg(long)]
    json: bool,
}

/// Tensors of one kind.
#[derive(Default)]
struct Kind {
    tensors: usize,
    bytes: u64,
    kept: Option<WeightFormat>,
}

/// What was found.
struct Report {
    format: String,
    files: usize,
    /// Or why it cannot be served.
    config: Result<ModelConfig>,
    parameters: u64,
    kinds: BTreeMap<String, Kind>,
    /// Bytes of all tensors as they would be kept.
    weight_bytes: u64,
    unread: Vec<String>,
    tokenizer: Option<String>,
    has_chat_template: bool,
    /// Of the largest part of the weights.
    main: WeightFormat,
}

pub(super) fn run(args: InspectArgs) -> Result<(), Stop> {
    let report = match model_files(&args.model)? {
        ModelFiles::Gguf(path) => Report::of_gguf(&path)?,
        ModelFiles::Directory(files) => Report::of_directory(&files)?,
    };
    let value = report.to_json(&args.model, args.context);
    if args.json {
        writeln!(io::stdout(), "{value}")?;
    } else {
        print(&value, "", &mut io::stdout())?;
    }
    Ok(())
}

impl Report {
    fn new(format: String, files: usize, config: Result<ModelConfig>) -> Self {
        Self {
            format,
            files,
            config,
            parameters: 0,
            kinds: BTreeMap::new(),
            weight_bytes: 0,
            unread: Vec::new(),
            tokenizer: None,
            has_chat_template: false,
            main: WeightFormat::F32,
        }
    }

    fn of_gguf(path: &Path) -> Result<Self> {
        let gguf = Gguf::open(path)?;
        let mut report = Self::new(format!("GGUF v{}", gguf.version()), gguf.parts(), ModelConfig::from_gguf(&gguf));
        for (name, tensor) in gguf.tensors() {
            match (tensor.format, gguf.tensor_bytes(tensor)) {
                (Some(format), Some(bytes)) => report.add(tensor.kind_name(), &tensor.shape, format, bytes.len()),
                _ => report.unread.push(format!("{} ({})", shown(name), tensor.kind_name())),
            }
        }
        let tokens = gguf.array_strings("tokenizer.ggml.tokens")?.map_or(0, |tokens| tokens.len());
        report.tokenizer = gguf.string("tokenizer.ggml.model")?.map(|model| {
            let pre = gguf.string("tokenizer.ggml.pre").ok().flatten().map(|pre| format!(" ({})", shown(pre)));
            format!("{}{}, {tokens} tokens", shown(model), pre.unwrap_or_default())
        });
        report.has_chat_template = gguf.string("tokenizer.chat_template")?.is_some();
        Ok(report.finished())
    }

    fn of_directory(files: &ModelDirectory) -> Result<Self> {
        let source = SafetensorsSource::open(&files.path)?;
        let text = read_small(&files.config_json, MAX_CONFIG_BYTES)?;
        let config = ModelConfig::from_hf_json(&files.config_json, &String::from_utf8_lossy(&text));
        let mut report = Self::new("safetensors".to_owned(), source.files(), config);
        for tensor in source.facts() {
            report.add(tensor.dtype, &tensor.shape, tensor.format.into(), tensor.bytes);
        }
        report.unread = source.unread();
        report.tokenizer =
            TOKENIZER_FILES.iter().find(|name| files.path.join(name).is_file()).map(|name| (*name).to_owned());
        let config = files.tokenizer_config.as_deref().map(|path| read_small(path, MAX_CONFIG_BYTES)).transpose()?;
        let config: Value = config.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
        report.has_chat_template = files.chat_template.is_some() || !config["chat_template"].is_null();
        Ok(report.finished())
    }

    fn add(&mut self, kind: String, shape: &[usize], format: StoredFormat, bytes: usize) {
        let elements: usize = shape.iter().product();
        // Norms and biases are kept in float32.
        let kept = if shape.len() < 2 { WeightFormat::F32 } else { format.kept() };
        self.parameters += elements as u64;
        self.weight_bytes += kept.bytes_for(elements).unwrap_or(bytes) as u64;
        let row = self.kinds.entry(kind).or_default();
        row.tensors += 1;
        row.bytes += bytes as u64;
        row.kept = Some(format.kept());
    }

    fn finished(mut self) -> Self {
        let largest = self.kinds.values().max_by_key(|kind| kind.bytes);
        self.main = largest.and_then(|kind| kind.kept).unwrap_or(WeightFormat::F32);
        self
    }

    fn to_json(&self, path: &Path, context: Option<u32>) -> Value {
        let kinds = self.kinds.iter().map(|(kind, row)| {
            let kept = row.kept.map(|kept| kept.to_string());
            (kind.clone(), json!({"tensors": row.tensors, "bytes": row.bytes, "kept_as": kept}))
        });
        let mut report = json!({
            "path": path.display().to_string(),
            "format": self.format,
            "files": self.files,
            "parameters": self.parameters,
            "tensors": kinds.collect::<serde_json::Map<_, _>>(),
            "tensors_not_read": self.unread,
            "tokenizer": self.tokenizer,
            "chat_template": self.has_chat_template,
        });
        match &self.config {
            Err(error) => report["not_supported"] = json!(error.message),
            Ok(config) => {
                let dtype = kv_dtype(KvCacheDtype::Auto, Dtype::Auto, self.main);
                let numbers = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim;
                let per_token = (numbers * dtype.size_in_bytes()) as u64;
                let context = context.map_or(config.max_position_embeddings as u64, u64::from);
                let kv_bytes = per_token.saturating_mul(context);
                report["architecture"] = json!(config.architecture);
                report["layers"] = json!(config.num_hidden_layers);
                report["hidden_size"] = json!(config.hidden_size);
                report["vocab_size"] = json!(config.vocab_size);
                report["context_tokens"] = json!(config.max_position_embeddings);
                report["memory"] = json!({
                    "weight_bytes": self.weight_bytes,
                    "kv_bytes_per_token": per_token,
                    "kv_dtype": dtype.as_str(),
                    "context_tokens": context,
                    "kv_bytes": kv_bytes,
                    "total_bytes": self.weight_bytes.saturating_add(kv_bytes),
                });
                let mut kept: Vec<_> =
                    self.kinds.values().filter_map(|kind| kind.kept).map(|k| k.to_string()).collect();
                kept.sort();
                kept.dedup();
                report["kernels"] = json!({"instruction_set": instruction_set(), "linear": kept});
            }
        }
        report
    }
}

/// Prints an object a line a field, nested ones indented.
fn print(value: &Value, indent: &str, out: &mut impl Write) -> io::Result<()> {
    for (key, value) in value.as_object().into_iter().flatten() {
        match value {
            Value::Object(_) => {
                writeln!(out, "{indent}{key}:")?;
                print(value, &format!("{indent}  "), out)?;
            }
            Value::Array(list) => {
                let list: Vec<_> = list.iter().map(|entry| entry.as_str().unwrap_or_default()).collect();
                writeln!(out, "{indent}{key}: {}", list.join(", "))?;
            }
            // Of what a file says, nothing moves a terminal's cursor.
            Value::String(text) => {
                writeln!(out, "{indent}{key}: {}", text.replace(|c: char| c.is_control() && c != '\n', "\u{fffd}"))?;
            }
            Value::Number(number) if key.contains("bytes") => {
                let bytes = number.as_u64().unwrap_or_default();
                writeln!(out, "{indent}{key}: {bytes} ({:.1} MB)", bytes as f64 / 1e6)?;
            }
            other => writeln!(out, "{indent}{key}: {other}")?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_file_says_moves_no_cursor() {
        let mut out = Vec::new();
        print(&json!({"tokenizer": "gpt2\u{1b}[2J", "more": {"parts": ["a"]}}), "", &mut out).expect("is written");
        assert_eq!(String::from_utf8(out).expect("text"), "tokenizer: gpt2\u{fffd}[2J\nmore:\n  parts: a\n");
        assert_eq!(shown("a\u{1b}b"), "a\\u{1b}b");
    }
}
