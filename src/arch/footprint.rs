//! What a model takes in memory, told from its configuration and its files' headers alone.

use crate::{
    arch::{
        ARCHITECTURES, KeepOptions,
        config::{Conventions, ModelConfig},
        keep, kv_dtype, kv_shape,
        outline::Outline,
    },
    config::{KvCacheGroups, ModelFacts, Quantization},
    kernels::linear::format::WeightFormat,
    layers::keep::Role,
    weights::TensorHeader,
};

/// Copies of the residual stream that a layer holds at once: before and after it, a norm's result, a branch's, and what
/// its inputs are rounded to.
const STREAMS: usize = 5;
/// Ends of names of the matrices that are kept as float32.
const EXACT: [&str; 7] = [
    ".gate.weight",
    ".router.weight",
    ".shared_expert_gate.weight",
    ".in_proj_a.weight",
    ".in_proj_b.weight",
    ".in_proj_ba.weight",
    ".conv1d.weight",
];
/// Copies of a row of logits until a token is chosen: the logits, those scaled or capped, and what the sampler sorts.
const LOGIT_COPIES: usize = 4;

impl KeepOptions {
    /// What memory it takes to serve the model of these tensors, and what else the engine's limits depend on.
    #[must_use]
    pub fn facts(&self, config: &ModelConfig, headers: &[TensorHeader]) -> ModelFacts {
        let row = ARCHITECTURES.iter().find(|row| row.name == config.architecture);
        let outline = row.map_or_else(|| Outline::usual(config), |row| (row.outline)(config));
        let mut facts = ModelFacts {
            max_position_embeddings: config.max_position_embeddings,
            activation_bytes_per_token: activation_bytes(config),
            state_bytes_per_sequence: config
                .linear_attention
                .as_ref()
                .map_or(0, |linear| linear.state_shape().bytes_per_sequence()),
            prefixes_are_shared: row.is_none_or(|row| row.prefixes_are_shared),
            logit_row_bytes: config.vocab_size.saturating_mul(LOGIT_COPIES * size_of::<f32>()),
            ..ModelFacts::default()
        };
        if self.quantization == Some(Quantization::Fp8) {
            facts.activation_bytes_per_token = facts.activation_bytes_per_token.saturating_add(widest_inputs(config));
        }
        let embedding = headers.iter().any(|header| header.name.ends_with(&format!("{}.weight", outline.embedding)));
        let head = format!("{}.weight", outline.head);
        let mut block_format = None;
        let transposed =
            row.is_some_and(|row| row.name == "GPT2LMHeadModel") && config.conventions == Conventions::HuggingFace;
        for header in headers.iter().filter(|header| outline.has(&header.name)) {
            if config.tie_word_embeddings && embedding && header.name == head {
                continue;
            }
            let layer = layer_of(&outline, &header.name);
            // What predicts tokens further ahead stands behind the last layer (DeepSeek V3), and is not loaded.
            if layer.is_some_and(|layer| layer >= config.num_hidden_layers) {
                continue;
            }
            let role = if layer.is_some() { Role::Block } else { Role::Vocabulary };
            let (format, inputs) = self.format(header, role, transposed && layer.is_some());
            let elements = header.elements().unwrap_or(usize::MAX);
            let bytes = format.matrix_bytes(elements.checked_div(inputs).unwrap_or(0), inputs).unwrap_or(usize::MAX);
            facts.weight_bytes = facts.weight_bytes.saturating_add(bytes);
            if header.decoded && header.shape.len() == 2 {
                // Query, key and value, or gate and up, are decoded before they are packed as one.
                let decoded = header.format.kept().bytes_for(elements).unwrap_or(usize::MAX);
                facts.loading_bytes = facts.loading_bytes.max(decoded.saturating_mul(2));
            }
            if let (Some(_), [outputs, inputs]) = (layer, header.shape.as_slice())
                && !header.name.contains(".experts.")
            {
                let numbers = outputs.saturating_add(*inputs);
                facts.adapter_bytes_per_rank =
                    facts.adapter_bytes_per_rank.saturating_add(numbers.saturating_mul(size_of::<f32>()));
            }
            if layer == Some(0) && header.shape.len() >= 2 {
                let of_query = ["q_proj", "qkv", "query_key_value", "c_attn"].iter().any(|q| header.name.contains(q));
                if block_format.is_none() || of_query {
                    block_format = Some(format);
                }
            }
        }
        let dtype = kv_dtype(self.kv_cache_dtype, self.dtype, block_format.unwrap_or(WeightFormat::F32));
        facts.kv_bytes_per_token = kv_shape(config, dtype).bytes_per_token();
        let windows = row.map_or_else(|| vec![None; config.num_hidden_layers], |row| row.kv_windows(config));
        facts.kv_groups = KvCacheGroups::of(&windows);
        facts
    }

    /// The format that a tensor is kept in, which may lie `[in, out]` in the file, and how many numbers a row of it has.
    fn format(&self, header: &TensorHeader, role: Role, transposed: bool) -> (WeightFormat, usize) {
        // Norms and biases are small and matter, routers decide, and errors of recurrent gates add up.
        let exact = EXACT.iter().any(|name| header.name.ends_with(name));
        let inputs = match *header.shape.as_slice() {
            // Experts' matrices of gpt-oss lie `[in, out]`, but for those in MXFP4.
            [inputs, _] if transposed => inputs,
            [_, inputs, _] if !header.name.ends_with(".weight") && !header.decoded => inputs,
            [.., inputs] => inputs,
            [] => 1,
        };
        if header.shape.len() < 2 || exact || header.name.ends_with("bias") {
            return (WeightFormat::F32, inputs);
        }
        (keep(self.dtype, self.quantization).format(header.format, inputs, role), inputs)
    }
}

/// Which block a tensor belongs to.
fn layer_of(outline: &Outline, name: &str) -> Option<usize> {
    let name = name.strip_prefix(outline.base).and_then(|rest| rest.strip_prefix('.')).unwrap_or(name);
    name.strip_prefix(outline.layers)?.strip_prefix('.')?.split('.').next()?.parse().ok()
}

/// Bytes of a token's rows on their way through a layer. Buffers that were freed stay for the next step, so that what
/// attention and what feed-forward layers take stand beside each other.
fn activation_bytes(config: &ModelConfig) -> usize {
    let (q, kv) = (config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim);
    // Projected, normed and turned; and what was attended to.
    let attention = 2 * (q + 2 * kv) + 2 * q;
    let linear = config.linear_attention.as_ref().map_or(0, |linear| {
        let heads = &linear.sizes.heads;
        // Projected and convolved; the gates, what was answered, normed, and both as the output reads them.
        2 * heads.qkv() + 5 * heads.values() + 4 * heads.value_heads
    });
    // Queries with gates, and both as the output reads them.
    let gated = if linear > 0 { 4 * q } else { 0 };
    let dense = 3 * config.intermediate_size;
    let experts = config.moe.as_ref().map_or(0, |moe| {
        let width = moe.intermediate_size.unwrap_or(config.intermediate_size);
        let weighed = moe.weighed_expert_size.map_or(0, |width| 3 * width + 3 * config.hidden_size);
        moe.experts_per_token * (3 * width + 3 * config.hidden_size) + weighed + 2 * moe.num_experts
    });
    (STREAMS * config.hidden_size + attention + gated + linear + dense.max(experts)).saturating_mul(size_of::<f32>())
}

/// Inputs of the widest Linear: what of them is rounded to eight bits stands beside the float32 that they are made as.
fn widest_inputs(config: &ModelConfig) -> usize {
    let experts = config
        .moe
        .as_ref()
        .map_or(0, |moe| moe.experts_per_token * moe.intermediate_size.unwrap_or(config.intermediate_size));
    let heads = config.num_attention_heads * config.head_dim;
    [config.hidden_size, heads, config.intermediate_size, experts].into_iter().max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use candle_core::Device;

    use super::*;
    use crate::{
        arch::{ModelLoad, load},
        config::{Dtype, KvCacheDtype},
        weights::{Weights, safetensors::SafetensorsSource},
    };

    /// A model of the fixtures.
    fn fixture(name: &str) -> (ModelConfig, Weights) {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/golden").join(name);
        let path = directory.join("config.json");
        let text = fs::read_to_string(&path).expect("a fixture");
        let config = ModelConfig::from_hf_json(&path, &text).expect("a good file");
        let weights = Weights::new(Box::new(SafetensorsSource::open(&directory).expect("a good file")));
        let weights = if config.tie_word_embeddings { weights.tied() } else { weights };
        (config, weights)
    }

    #[test]
    fn layers_behind_the_last_one_are_not_loaded_and_take_nothing() {
        let (config, weights) = fixture("deepseek_v3");
        let mut headers = weights.headers();
        let told = KeepOptions::default().facts(&config, &headers);
        let last = format!("model.layers.{}.", config.num_hidden_layers - 1);
        let behind = format!("model.layers.{}.", config.num_hidden_layers);
        let more: Vec<_> = headers.iter().filter(|header| header.name.starts_with(&last)).cloned().collect();
        assert!(!more.is_empty());
        headers.extend(more.into_iter().map(|header| {
            let name = header.name.replace(&last, &behind);
            TensorHeader { name, ..header }
        }));
        assert_eq!(KeepOptions::default().facts(&config, &headers), told);
    }

    #[test]
    fn weights_of_eight_bit_floats_take_half_and_their_inputs_a_byte_each() {
        let (config, weights) = fixture("llama");
        let facts =
            |quantization| KeepOptions { quantization, ..KeepOptions::default() }.facts(&config, &weights.headers());
        let (stored, eight) = (facts(None), facts(Some(Quantization::Fp8)));
        assert!(eight.weight_bytes < stored.weight_bytes);
        assert_eq!(
            eight.activation_bytes_per_token,
            stored.activation_bytes_per_token + config.intermediate_size.max(config.hidden_size)
        );
        assert_eq!(eight.kv_bytes_per_token, facts(Some(Quantization::Q8_0)).kv_bytes_per_token);
    }

    #[test]
    fn what_headers_tell_is_what_loading_makes() {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/golden");
        let names = fs::read_dir(directory).expect("fixtures").map(|entry| entry.expect("an entry").file_name());
        let mut seen = 0;
        for name in names {
            let name = name.to_str().expect("a name");
            let (config, weights) = fixture(name);
            for (dtype, quantization, kv_cache_dtype) in [
                (Dtype::Auto, None, KvCacheDtype::Auto),
                (Dtype::Bfloat16, None, KvCacheDtype::Fp8),
                (Dtype::Auto, Some(Quantization::Q8_0), KvCacheDtype::Auto),
                (Dtype::Auto, Some(Quantization::Q4K), KvCacheDtype::Float16),
                (Dtype::Auto, Some(Quantization::Fp8), KvCacheDtype::Auto),
            ] {
                let keep = KeepOptions { dtype, quantization, kv_cache_dtype };
                let facts = keep.facts(&config, &weights.headers());
                let (weights, config, device, progress) = (&weights, &config, &Device::Cpu, &|_, _| ());
                let wanted = ModelLoad { weights, config, device, dtype, quantization, kv_cache_dtype, progress };
                let model = load(&wanted).expect("a good model");
                let info = model.info();
                // A norm that two branches read is loaded for each of them.
                let far = facts.weight_bytes.abs_diff(info.weight_bytes);
                let (told, made) = (facts.weight_bytes, info.weight_bytes);
                assert!(far * 100 <= made, "{name} {keep:?}: {told} told, {made} made");
                assert_eq!(facts.kv_bytes_per_token, info.kv_shape.bytes_per_token(), "{name} {keep:?}");
                assert_eq!(facts.kv_groups, info.kv_groups, "{name} {keep:?}");
            }
            seen += 1;
        }
        assert!(seen >= 4, "{seen} fixtures");
    }
}
