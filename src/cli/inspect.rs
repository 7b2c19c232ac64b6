//! `candlewick inspect`: what a model file is, what it would take in memory, and which kernels it gets.

use std::{
    collections::BTreeMap,
    io::{self, Write},
    path::Path,
    sync::Arc,
};

use clap::Args;
use serde_json::{Value, json};

use super::Stop;
use crate::{
    arch::{KeepOptions, config::ModelConfig, keep, served::ServedConfig},
    config::{
        Dtype, EngineArgs, HubArgs, KvCacheDtype, MachineFacts, MemoryPlan, ModelFacts, Quantization, plan_memory,
    },
    engine::load::{Wanted, find},
    error::Result,
    kernels::{linear::format::WeightFormat, linear::stored::StoredFormat, machine::instruction_set},
    layers::keep::Role,
    text::TOKENIZER_FILES,
    weights::{
        TensorHeader, TensorSource,
        file::read_small,
        files::{ModelDirectory, ModelFiles, model_files},
        gguf::{Gguf, GgufSource},
        safetensors::SafetensorsSource,
        shown,
    },
};

/// Most bytes of a config.json.
const MAX_CONFIG_BYTES: u64 = 4 << 20;

/// What `inspect` takes.
#[derive(Args, Clone, Debug)]
pub(super) struct InspectArgs {
    /// Directory, GGUF file (any part of a split one) or Hugging Face repository,
    /// org/name[:file-or-quantization][@revision], that was downloaded before.
    pub(super) model: String,
    #[command(flatten)]
    hub: HubArgs,
    /// Tokens to reckon the KV cache for; the model's own context if left out.
    #[arg(long, value_name = "TOKENS")]
    context: Option<u32>,
    /// Numbers that it would compute with.
    #[arg(long, value_enum, default_value = "auto")]
    dtype: Dtype,
    /// What plain numbers would be quantized to.
    #[arg(long, short, value_enum)]
    quantization: Option<Quantization>,
    /// Numbers that it would keep keys and values in.
    #[arg(long, value_enum, default_value = "auto")]
    kv_cache_dtype: KvCacheDtype,
    /// The limits that it would be served with.
    #[command(flatten)]
    engine: EngineArgs,
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
    config: Result<ServedConfig>,
    options: KeepOptions,
    parameters: u64,
    kinds: BTreeMap<String, Kind>,
    headers: Vec<TensorHeader>,
    unread: Vec<String>,
    tokenizer: Option<String>,
    has_chat_template: bool,
}

pub(super) fn run(args: InspectArgs) -> Result<(), Stop> {
    let &InspectArgs { dtype, quantization, kv_cache_dtype, .. } = &args;
    let options = KeepOptions { dtype, quantization, kv_cache_dtype };
    // What is asked about is not worth a download.
    let hub = HubArgs { offline: true, ..args.hub.clone() };
    let path = find(&args.model, &hub, Wanted::Model, &mut |_| {})?;
    let report = match model_files(&path)? {
        ModelFiles::Gguf(path) => Report::of_gguf(&path, options)?,
        ModelFiles::Directory(files) => Report::of_directory(&files, options)?,
    };
    let value = report.to_json(&path, &args);
    if args.json {
        writeln!(io::stdout(), "{value}")?;
    } else {
        print(&value, "", &mut io::stdout())?;
    }
    Ok(())
}

impl Report {
    fn new(format: String, files: usize, config: Result<ServedConfig>, options: KeepOptions) -> Self {
        Self {
            format,
            files,
            config,
            options,
            parameters: 0,
            kinds: BTreeMap::new(),
            headers: Vec::new(),
            unread: Vec::new(),
            tokenizer: None,
            has_chat_template: false,
        }
    }

    fn of_gguf(path: &Path, options: KeepOptions) -> Result<Self> {
        let gguf = Arc::new(Gguf::open(path)?);
        let config = ModelConfig::from_gguf(&gguf).map(|config| ServedConfig::Ours(Box::new(config)));
        let mut report = Self::new(format!("GGUF v{}", gguf.version()), gguf.parts(), config, options);
        match GgufSource::new(Arc::clone(&gguf)) {
            Ok(source) => report.headers = source.headers(),
            Err(error) => report.config = report.config.and(Err(error)),
        }
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
        Ok(report)
    }

    fn of_directory(files: &ModelDirectory, options: KeepOptions) -> Result<Self> {
        let source = SafetensorsSource::open(&files.path)?;
        let text = read_small(&files.config_json, MAX_CONFIG_BYTES)?;
        let config = ServedConfig::from_hf_json(&files.config_json, &String::from_utf8_lossy(&text));
        let mut report = Self::new("safetensors".to_owned(), source.files(), config, options);
        report.headers = source.headers();
        for tensor in source.facts() {
            report.add(tensor.dtype, &tensor.shape, tensor.format, tensor.bytes);
        }
        report.unread = source.unread();
        report.tokenizer =
            TOKENIZER_FILES.iter().find(|name| files.path.join(name).is_file()).map(|name| (*name).to_owned());
        let config = files.tokenizer_config.as_deref().map(|path| read_small(path, MAX_CONFIG_BYTES)).transpose()?;
        let config: Value = config.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
        report.has_chat_template = files.chat_template.is_some() || !config["chat_template"].is_null();
        Ok(report)
    }

    fn add(&mut self, kind: String, shape: &[usize], format: StoredFormat, bytes: usize) {
        let options = self.options;
        let kept = keep(options.dtype, options.quantization);
        let kept = kept.format(format, shape.last().copied().unwrap_or(0), Role::Block);
        self.parameters += shape.iter().product::<usize>() as u64;
        let row = self.kinds.entry(kind).or_default();
        row.tensors += 1;
        row.bytes += bytes as u64;
        row.kept = Some(kept);
    }

    /// What it would take, and whether it would be served here.
    fn memory(&self, facts: &ModelFacts, args: &InspectArgs) -> Value {
        let context = args.context.map_or(facts.max_position_embeddings, |context| context as usize);
        let groups = facts.kv_groups;
        let kv_bytes = groups.bytes(facts.kv_bytes_per_token, context);
        let mut memory = json!({
            "weight_bytes": facts.weight_bytes,
            "kv_bytes_per_token": facts.kv_bytes_per_token,
            "kv_block_tables": groups.count(),
            "kv_window_tokens": groups.windows().find(|&window| window < usize::MAX),
            "context_tokens": context,
            "kv_bytes": kv_bytes,
            "total_bytes": facts.weight_bytes.saturating_add(kv_bytes),
        });
        if facts.state_bytes_per_sequence > 0 {
            memory["state_bytes_per_sequence"] = json!(facts.state_bytes_per_sequence);
        }
        match plan_memory(&args.engine, facts, &MachineFacts::here()) {
            Err(error) => memory["refused"] = json!(error.message),
            Ok((blocks, plan)) => {
                let MemoryPlan { kv, states, activations, room, available, .. } = plan;
                let (size, step) = (args.engine.block_size, args.engine.max_num_batched_tokens);
                memory["served_here"] = json!({
                    "kv_blocks": blocks,
                    "longest_sequence_tokens": groups.longest(blocks, size, step).min(facts.max_position_embeddings),
                    "sequences_of_context": blocks / groups.blocks(context, size, step).max(1),
                    "kv_cache_bytes": kv,
                    "activation_bytes": activations,
                    "room_bytes": room,
                    "available_bytes": available,
                    "sum": plan.to_string(),
                });
                if states > 0 {
                    memory["served_here"]["state_bytes"] = json!(states);
                }
            }
        }
        memory
    }

    fn to_json(&self, path: &Path, args: &InspectArgs) -> Value {
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
                let common = config.common();
                report["architecture"] = json!(common.architecture);
                report["hidden_size"] = json!(common.hidden_size);
                report["vocab_size"] = json!(common.vocab_size);
                match config.facts(&self.options, &self.headers) {
                    Err(error) => report["not_supported"] = json!(error.message),
                    Ok(facts) => {
                        report["context_tokens"] = json!(facts.max_position_embeddings);
                        report["memory"] = self.memory(&facts, args);
                    }
                }
                let ServedConfig::Ours(config) = config else {
                    report["model_impl"] = json!("candle-transformers");
                    return report;
                };
                report["layers"] = json!(config.num_hidden_layers);
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
