//! What Hugging Face and GGUF call the same tensor, for Llama, Mistral, Qwen2 and Qwen3.
//!
//! GGUF's names are those of the GGUF specification, "Standardized tensor names".

/// Tensors that a model has once, as (Hugging Face, GGUF), without `.weight` or `.bias`.
const MODEL: [(&str, &str); 4] = [
    ("model.embed_tokens", "token_embd"),
    ("model.norm", "output_norm"),
    ("lm_head", "output"),
    // What each rotary frequency is divided by (Llama 3). Hugging Face computes it from the configuration, so that it
    // has no name there, and keeps its own here.
    ("rope_freqs", "rope_freqs"),
];

/// Tensors of each decoder layer, after `model.layers.N.` and `blk.N.`.
const LAYER: [(&str, &str); 11] = [
    ("input_layernorm", "attn_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
    ("post_attention_layernorm", "ffn_norm"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
];

const HF_LAYER: &str = "model.layers.";
const GGUF_LAYER: &str = "blk.";

/// GGUF's name of a tensor that Hugging Face calls `name`, where the table has it.
#[must_use]
pub fn to_gguf(name: &str) -> Option<String> {
    let find = |table: &[(&str, &'static str)], stem: &str| table.iter().find(|row| row.0 == stem).map(|row| row.1);
    translate(name, HF_LAYER, GGUF_LAYER, |stem| find(&MODEL, stem), |stem| find(&LAYER, stem))
}

/// Hugging Face's name of a tensor that GGUF calls `name`, where the table has it.
#[must_use]
pub fn to_hf(name: &str) -> Option<String> {
    let find = |table: &[(&'static str, &str)], stem: &str| table.iter().find(|row| row.1 == stem).map(|row| row.0);
    translate(name, GGUF_LAYER, HF_LAYER, |stem| find(&MODEL, stem), |stem| find(&LAYER, stem))
}

fn translate(
    name: &str,
    layer_from: &str,
    layer_to: &str,
    model: impl Fn(&str) -> Option<&'static str>,
    layer: impl Fn(&str) -> Option<&'static str>,
) -> Option<String> {
    let (stem, kind) = name.rsplit_once('.').filter(|(_, kind)| matches!(*kind, "weight" | "bias"))?;
    let Some(in_layer) = stem.strip_prefix(layer_from) else {
        return Some(format!("{}.{kind}", model(stem)?));
    };
    let (number, stem) = in_layer.split_once('.')?;
    let is_number = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| Some(format!("{layer_to}{number}.{}.{kind}", layer(stem)?)))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_translate_both_ways() {
        for (hf, gguf) in [
            ("model.embed_tokens.weight", "token_embd.weight"),
            ("model.norm.weight", "output_norm.weight"),
            ("lm_head.weight", "output.weight"),
            ("model.layers.0.input_layernorm.weight", "blk.0.attn_norm.weight"),
            ("model.layers.12.self_attn.q_proj.bias", "blk.12.attn_q.bias"),
            ("model.layers.12.self_attn.o_proj.weight", "blk.12.attn_output.weight"),
            ("model.layers.3.self_attn.k_norm.weight", "blk.3.attn_k_norm.weight"),
            ("model.layers.3.post_attention_layernorm.weight", "blk.3.ffn_norm.weight"),
            ("model.layers.127.mlp.down_proj.weight", "blk.127.ffn_down.weight"),
            ("rope_freqs.weight", "rope_freqs.weight"),
        ] {
            assert_eq!(to_gguf(hf).as_deref(), Some(gguf));
            assert_eq!(to_hf(gguf).as_deref(), Some(hf));
        }
    }

    #[test]
    fn unknown_names_translate_to_nothing() {
        for name in ["", ".", "blk.", "blk..attn_q.weight", "blk.+1.attn_q.weight", "blk.1.attn_q", "blk.1.nope.weight"]
        {
            assert_eq!(to_hf(name), None, "{name}");
        }
        assert_eq!(to_gguf("model.layers.x.mlp.up_proj.weight"), None);
    }
}
