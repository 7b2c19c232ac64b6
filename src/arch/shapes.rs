//! Which tensors a model of this crate's architectures consists of; for models whose weights are drawn, not read.

use crate::arch::config::ModelConfig;

/// Names (Hugging Face's) and shapes of all tensors that a model of this configuration loads.
#[must_use]
pub fn tensor_shapes(config: &ModelConfig) -> Vec<(String, Vec<usize>)> {
    let (hidden, mlp, head) = (config.hidden_size, config.intermediate_size, config.head_dim);
    let (q, kv) = (config.num_attention_heads * head, config.num_key_value_heads * head);
    let has_bias = config.attention_bias.unwrap_or(false);
    let (qkv_bias, output_bias) = match config.architecture.as_str() {
        "Qwen2ForCausalLM" => (true, false),
        "MistralForCausalLM" => (false, false),
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
    let mut shapes = vec![
        ("model.embed_tokens.weight".to_owned(), vec![config.vocab_size, hidden]),
        ("model.norm.weight".to_owned(), vec![hidden]),
    ];
    if !config.tie_word_embeddings {
        shapes.push(("lm_head.weight".to_owned(), vec![config.vocab_size, hidden]));
    }
    for layer in 0..config.num_hidden_layers {
        for (name, out, input, bias) in linears {
            shapes.push((format!("model.layers.{layer}.{name}.weight"), vec![out, input]));
            shapes.extend(bias.then(|| (format!("model.layers.{layer}.{name}.bias"), vec![out])));
        }
        let norms = norms.iter().filter(|(_, _, wanted)| *wanted);
        shapes.extend(norms.map(|(name, size, _)| (format!("model.layers.{layer}.{name}.weight"), vec![*size])));
    }
    shapes
}
