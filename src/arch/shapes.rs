//! Which tensors a model of this crate's architectures consists of; for models whose weights are drawn, not read.

use crate::{
    arch::{config::ModelConfig, linear_attention::LinearAttention, moe_config::MoeConfig},
    layers::gated_delta_net::DeltaNetSizes,
};

/// Names (Hugging Face's) and shapes of all tensors that a model of this configuration loads.
#[must_use]
pub fn tensor_shapes(config: &ModelConfig) -> Vec<(String, Vec<usize>)> {
    if let Some(linear) = &config.linear_attention {
        return with_states(config, linear);
    }
    let (hidden, mlp, head) = (config.hidden_size, config.intermediate_size, config.head_dim);
    let (q, kv) = (config.num_attention_heads * head, config.num_key_value_heads * head);
    let has_bias = config.attention_bias.unwrap_or(false);
    let (qkv_bias, output_bias) = match config.architecture.as_str() {
        "Qwen2ForCausalLM" => (true, false),
        "MistralForCausalLM" | "Mistral3ForConditionalGeneration" => (false, false),
        _ => (has_bias, has_bias),
    };
    let mlp_bias = config.mlp_bias.unwrap_or(false);
    let qk_norm = config.architecture == "Qwen3ForCausalLM";

    let linears = [
        ("self_attn.q_proj", q, hidden, qkv_bias),
        ("self_attn.k_proj", kv, hidden, qkv_bias),
        ("self_attn.v_proj", kv, hidden, qkv_bias),
        ("self_attn.o_proj", hidden, q, output_bias),
        ("mlp.gate_proj", mlp, hidden, mlp_bias),
        ("mlp.up_proj", mlp, hidden, mlp_bias),
        ("mlp.down_proj", hidden, mlp, mlp_bias),
    ];
    let norms = [
        ("input_layernorm", hidden, true),
        ("post_attention_layernorm", hidden, true),
        ("self_attn.q_norm", head, qk_norm),
        ("self_attn.k_norm", head, qk_norm),
    ];
    let base = base(config);
    let mut shapes = vec![
        (format!("{base}.embed_tokens.weight"), vec![config.vocab_size, hidden]),
        (format!("{base}.norm.weight"), vec![hidden]),
    ];
    if !config.tie_word_embeddings {
        shapes.push(("lm_head.weight".to_owned(), vec![config.vocab_size, hidden]));
    }
    for layer in 0..config.num_hidden_layers {
        for (name, out, input, bias) in linears {
            shapes.push((format!("{base}.layers.{layer}.{name}.weight"), vec![out, input]));
            shapes.extend(bias.then(|| (format!("{base}.layers.{layer}.{name}.bias"), vec![out])));
        }
        let norms = norms.iter().filter(|(_, _, wanted)| *wanted);
        shapes.extend(norms.map(|(name, size, _)| (format!("{base}.layers.{layer}.{name}.weight"), vec![*size])));
    }
    shapes
}

/// What all names but the head's begin with.
fn base(config: &ModelConfig) -> &'static str {
    if config.architecture.ends_with("ForConditionalGeneration") { "model.language_model" } else { "model" }
}

/// The same of Qwen3.5 and Qwen3-Next, most of whose layers keep a state.
fn with_states(config: &ModelConfig, linear: &LinearAttention) -> Vec<(String, Vec<usize>)> {
    let (hidden, head) = (config.hidden_size, config.head_dim);
    let base = base(config);
    let mut shapes = vec![
        (format!("{base}.embed_tokens.weight"), vec![config.vocab_size, hidden]),
        (format!("{base}.norm.weight"), vec![hidden]),
    ];
    if !config.tie_word_embeddings {
        shapes.push(("lm_head.weight".to_owned(), vec![config.vocab_size, hidden]));
    }
    for layer in 0..config.num_hidden_layers {
        let mut put =
            |name: &str, shape: &[usize]| shapes.push((format!("{base}.layers.{layer}.{name}"), shape.to_vec()));
        put("input_layernorm.weight", &[hidden]);
        put("post_attention_layernorm.weight", &[hidden]);
        if linear.of_layer(layer).0 {
            delta_net(&linear.sizes, hidden, config.architecture == "Qwen3NextForCausalLM", &mut put);
        } else {
            let (q, kv) = (config.num_attention_heads * head, config.num_key_value_heads * head);
            // A gate behind each head's query.
            for (name, out, input) in
                [("q_proj", 2 * q, hidden), ("k_proj", kv, hidden), ("v_proj", kv, hidden), ("o_proj", hidden, q)]
            {
                put(&format!("self_attn.{name}.weight"), &[out, input]);
                if config.attention_bias.unwrap_or(false) {
                    put(&format!("self_attn.{name}.bias"), &[out]);
                }
            }
            put("self_attn.q_norm.weight", &[head]);
            put("self_attn.k_norm.weight", &[head]);
        }
        match config.moe.as_ref().filter(|moe| moe.in_layer(layer)) {
            Some(moe) => experts(moe, config, &mut put),
            None => gated_mlp("mlp", config.intermediate_size, hidden, &mut put),
        }
    }
    shapes
}

fn delta_net(sizes: &DeltaNetSizes, hidden: usize, is_fused: bool, put: &mut impl FnMut(&str, &[usize])) {
    let DeltaNetSizes { heads, taps } = sizes;
    let (channels, values, count) = (heads.qkv(), heads.values(), heads.value_heads);
    if is_fused {
        put("linear_attn.in_proj_qkvz.weight", &[channels + values, hidden]);
        put("linear_attn.in_proj_ba.weight", &[2 * count, hidden]);
    } else {
        put("linear_attn.in_proj_qkv.weight", &[channels, hidden]);
        put("linear_attn.in_proj_z.weight", &[values, hidden]);
        put("linear_attn.in_proj_b.weight", &[count, hidden]);
        put("linear_attn.in_proj_a.weight", &[count, hidden]);
    }
    put("linear_attn.conv1d.weight", &[channels, 1, *taps]);
    put("linear_attn.A_log", &[count]);
    put("linear_attn.dt_bias", &[count]);
    put("linear_attn.norm.weight", &[heads.value_dim]);
    put("linear_attn.out_proj.weight", &[hidden, values]);
}

fn experts(moe: &MoeConfig, config: &ModelConfig, put: &mut impl FnMut(&str, &[usize])) {
    let hidden = config.hidden_size;
    put("mlp.gate.weight", &[moe.num_experts, hidden]);
    let width = moe.intermediate_size.unwrap_or(config.intermediate_size);
    for expert in 0..moe.num_experts {
        gated_mlp(&format!("mlp.experts.{expert}"), width, hidden, put);
    }
    if let Some(width) = moe.weighed_expert_size {
        put("mlp.shared_expert_gate.weight", &[1, hidden]);
        gated_mlp("mlp.shared_expert", width, hidden, put);
    }
}

fn gated_mlp(name: &str, width: usize, hidden: usize, put: &mut impl FnMut(&str, &[usize])) {
    put(&format!("{name}.gate_proj.weight"), &[width, hidden]);
    put(&format!("{name}.up_proj.weight"), &[width, hidden]);
    put(&format!("{name}.down_proj.weight"), &[hidden, width]);
}
