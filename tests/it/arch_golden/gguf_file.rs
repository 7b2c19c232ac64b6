//! Golden checkpoints written as GGUF files, turned and named as llama.cpp's converter does it.

use std::{collections::BTreeMap, fs::File, path::Path};

use candle_core::{
    DType, Device, Tensor,
    quantized::{GgmlDType, QTensor, gguf_file},
    safetensors,
};
use candlewick::{arch::config::ModelConfig, layers::rope::RopeScaling, weights::names::to_gguf};

use super::driver::{config, fixture};

/// What a GGUF file calls the architecture of a checkpoint, where that is not the checkpoint's name.
const ARCHITECTURES: &[(&str, &str)] = &[
    ("llama3-rope", "llama"),
    ("llama-biases", "llama"),
    ("llama-mha", "llama"),
    ("mistral", "llama"),
    ("mixtral", "llama"),
    ("gemma3_text", "gemma3"),
    ("qwen3_moe", "qwen3moe"),
    ("gpt_oss", "gpt-oss"),
    ("gpt_neox", "gptneox"),
    ("llama-linear", "llama"),
    ("qwen3-yarn", "qwen3"),
];

/// Those whose rows of queries and keys the converter interleaves.
const INTERLEAVED: [&str; 3] = ["llama", "granite", "smollm3"];

fn architecture(name: &str) -> &str {
    ARCHITECTURES.iter().find(|row| row.0 == name).map_or(name, |row| row.1)
}

type Tensors = BTreeMap<String, Tensor>;

/// Writes a golden checkpoint as a GGUF file, its matrices in `format` where their rows are whole blocks of it. Gives the
/// file's tensors as they were written, dequantized, by their Hugging Face names where they have such.
pub(super) fn write(name: &str, format: GgmlDType, path: &Path) -> candle_core::Result<Tensors> {
    let (config, arch) = (config(name), architecture(name));
    let mut quantized = BTreeMap::new();
    for (gguf_name, tensor) in tensors(name, &config)? {
        let block = format.block_size();
        let fits = tensor.rank() > 1 && tensor.dim(tensor.rank() - 1)?.is_multiple_of(block);
        // A converter keeps what decides in full: routers, and all vectors.
        let exact = !fits || gguf_name.contains("ffn_gate_inp") || gguf_name.ends_with(".bias");
        quantized.insert(gguf_name, QTensor::quantize(&tensor, if exact { GgmlDType::F32 } else { format })?);
    }
    let metadata = metadata(&config, arch);
    let metadata = metadata.iter().map(|(key, value)| (key.as_str(), value)).collect::<Vec<_>>();
    let tensors = quantized.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect::<Vec<_>>();
    gguf_file::write(&mut File::create(path)?, &metadata, &tensors)?;
    let hf = |name: &str| candlewick::weights::names::to_hf(arch, name).expect("a name of the table");
    quantized.iter().map(|(name, tensor)| Ok((hf(name), tensor.dequantize(&Device::Cpu)?))).collect()
}

fn metadata(config: &ModelConfig, arch: &str) -> Vec<(String, gguf_file::Value)> {
    let mut metadata = vec![("general.architecture".to_owned(), gguf_file::Value::String(arch.to_owned()))];
    let moe = config.moe.as_ref();
    let mut sizes = vec![
        ("embedding_length", config.hidden_size),
        ("feed_forward_length", config.intermediate_size),
        ("block_count", config.num_hidden_layers),
        ("context_length", config.max_position_embeddings),
        ("attention.head_count", config.num_attention_heads),
        ("attention.head_count_kv", config.num_key_value_heads),
        ("attention.key_length", config.head_dim),
        ("attention.value_length", config.head_dim),
        ("attention.sliding_window", config.sliding_window.size.unwrap_or(0)),
        ("rope.dimension_count", config.rope.rotary_dim),
        ("expert_count", moe.map_or(0, |moe| moe.num_experts)),
        ("expert_used_count", moe.map_or(0, |moe| moe.experts_per_token)),
    ];
    sizes.extend(moe.and_then(|moe| moe.intermediate_size).map(|size| ("expert_feed_forward_length", size)));
    let layer_norms = ["starcoder2", "gpt2", "gptneox", "stablelm", "cohere2"].contains(&arch);
    let eps = if layer_norms { "attention.layer_norm_epsilon" } else { "attention.layer_norm_rms_epsilon" };
    let m = &config.multipliers;
    let mut numbers = vec![("rope.freq_base", config.rope.theta), (eps, config.norm_eps)];
    for (key, number) in [
        ("embedding_scale", m.embedding),
        ("residual_scale", m.residual),
        ("attention.scale", m.attention),
        ("logit_scale", m.logits.or(m.logits_divisor)),
        ("attn_logit_softcapping", m.attention_softcap),
        ("final_logit_softcapping", m.logit_softcap),
    ] {
        numbers.extend(number.map(|number| (key, number)));
    }
    if let RopeScaling::Yarn(yarn) = &config.rope.scaling {
        let kind = gguf_file::Value::String("yarn".to_owned());
        metadata.push((format!("{arch}.rope.scaling.type"), kind));
        sizes.push(("rope.scaling.original_context_length", yarn.original_max_position_embeddings));
        numbers.push(("rope.scaling.factor", yarn.factor));
    }
    if let RopeScaling::Linear { factor } = config.rope.scaling {
        metadata.push((format!("{arch}.rope.scaling.type"), gguf_file::Value::String("linear".to_owned())));
        numbers.push(("rope.scaling.factor", factor));
    }
    let key = |key: &str| format!("{arch}.{key}");
    metadata.extend(sizes.iter().map(|&(name, size)| (key(name), gguf_file::Value::U32(size as u32))));
    metadata.extend(numbers.iter().map(|&(name, number)| (key(name), gguf_file::Value::F32(number as f32))));
    if let Some(parallel) = config.parallel_residual {
        metadata.push((key("use_parallel_residual"), gguf_file::Value::Bool(parallel)));
    }
    metadata
}

/// All tensors by their GGUF names.
fn tensors(name: &str, config: &ModelConfig) -> candle_core::Result<Tensors> {
    let arch = architecture(name);
    let mut all = Tensors::new();
    for (hf_name, tensor) in safetensors::load(fixture(name).join("model.safetensors"), &Device::Cpu)? {
        for (hf_name, tensor) in turned(arch, config, hf_name, tensor.to_dtype(DType::F32)?)? {
            all.insert(hf_name, tensor);
        }
    }
    let mut named = Tensors::new();
    for (hf_name, tensor) in stacked(all)? {
        named.insert(to_gguf(arch, &hf_name).unwrap_or_else(|| panic!("{hf_name} is not in the table")), tensor);
    }
    if let RopeScaling::Llama3 { .. } = &config.rope.scaling {
        let mut plain = config.rope.clone();
        plain.scaling = RopeScaling::Default;
        let divisors = plain.inv_freq().iter().zip(config.rope.inv_freq()).map(|(p, s)| p / s).collect::<Vec<_>>();
        named.insert("rope_freqs.weight".to_owned(), Tensor::new(divisors, &Device::Cpu)?);
    }
    Ok(named)
}

/// A tensor as the converter turns it; gpt-oss's gate and up become two.
fn turned(
    arch: &str,
    config: &ModelConfig,
    name: String,
    tensor: Tensor,
) -> candle_core::Result<Vec<(String, Tensor)>> {
    let heads = match name.split('.').nth(4) {
        Some("q_proj") if INTERLEAVED.contains(&arch) => Some(config.num_attention_heads),
        Some("k_proj") if INTERLEAVED.contains(&arch) => Some(config.num_key_value_heads),
        _ => None,
    };
    let tensor = match (arch, heads) {
        (_, Some(heads)) => interleave(&tensor, heads)?,
        ("gemma2" | "gemma3", _) if name.ends_with("norm.weight") => (tensor + 1.0)?,
        ("gpt2", _) if name.contains(".c_") && tensor.rank() == 2 => tensor.t()?.contiguous()?,
        ("gptneox", _) if name.contains("query_key_value") => {
            let rest = tensor.elem_count() / (3 * config.hidden_size);
            let by_head = tensor.reshape((config.num_attention_heads, 3, config.head_dim, rest))?;
            by_head.transpose(0, 1)?.contiguous()?.reshape(tensor.dims())?
        }
        _ => tensor,
    };
    let Some(stem) = name.strip_suffix("_proj").or(name.strip_suffix("_proj_bias")).filter(|_| arch == "gpt-oss")
    else {
        return Ok(vec![(name, tensor)]);
    };
    let kind = if name.ends_with("_bias") { "bias" } else { "weight" };
    let tensor = if kind == "weight" { tensor.transpose(1, 2)?.contiguous()? } else { tensor };
    let Some(experts) = stem.strip_suffix("gate_up") else {
        return Ok(vec![(format!("{stem}_proj.{kind}"), tensor)]);
    };
    let rows = tensor.dim(1)? as u32;
    let half = |first: u32| {
        let rows = (first..rows).step_by(2).collect::<Vec<_>>();
        tensor.index_select(&Tensor::new(rows, &Device::Cpu)?, 1)
    };
    Ok(vec![(format!("{experts}gate_proj.{kind}"), half(0)?), (format!("{experts}up_proj.{kind}"), half(1)?)])
}

/// Interleaves the two halves of each head's rows, or of its biases, as converters of Llama do.
fn interleave(tensor: &Tensor, heads: usize) -> candle_core::Result<Tensor> {
    let half = tensor.dim(0)? / heads / 2;
    tensor.reshape((heads, 2, half, ()))?.transpose(1, 2)?.contiguous()?.reshape(tensor.dims())
}

/// Tensors with those of single experts put together.
fn stacked(all: Tensors) -> candle_core::Result<Tensors> {
    let mut experts = BTreeMap::<String, BTreeMap<usize, Tensor>>::new();
    let mut stacked = Tensors::new();
    for (name, tensor) in all {
        let parts = name.split_once(".experts.").and_then(|(before, after)| {
            let (number, after) = after.split_once('.')?;
            Some((format!("{before}.experts.{after}"), number.parse::<usize>().ok()?))
        });
        match parts {
            Some((of_all, number)) => drop(experts.entry(of_all).or_default().insert(number, tensor)),
            None => drop(stacked.insert(name, tensor)),
        }
    }
    for (name, parts) in experts {
        stacked.insert(name, Tensor::stack(&parts.into_values().collect::<Vec<_>>(), 0)?);
    }
    Ok(stacked)
}
