//! What Hugging Face and GGUF call the same tensor, family by family.
//!
//! GGUF's names are those of the GGUF specification, "Standardized tensor names", and of llama.cpp's `gguf` package.

/// Tensors as (Hugging Face, GGUF), without `.weight` or `.bias`.
type Rows = &'static [(&'static str, &'static str)];

/// Where a family's names differ from Llama's.
struct Family {
    /// `general.architecture` of its GGUF files.
    architectures: &'static [&'static str],
    /// What a layer's number follows in Hugging Face's names.
    hf_layer: &'static str,
    /// Tensors that a model has once.
    model: Rows,
    /// Tensors of each layer.
    layer: Rows,
}

/// Tensors that a model has once.
const MODEL: Rows = &[
    ("model.embed_tokens", "token_embd"),
    ("model.norm", "output_norm"),
    ("lm_head", "output"),
    // What each rotary frequency is divided by (Llama 3). Hugging Face computes it from the configuration, so that it
    // has no name there, and keeps its own here.
    ("rope_freqs", "rope_freqs"),
];

/// Tensors of each decoder layer, after `model.layers.N.` and `blk.N.`.
const LAYER: Rows = &[
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

/// Llama's names, but for experts, which Mixtral's files have.
const LLAMA: Family = Family {
    architectures: &["llama"],
    hf_layer: "model.layers.",
    model: &[],
    layer: &[
        ("block_sparse_moe.gate", "ffn_gate_inp"),
        ("block_sparse_moe.experts.w1", "ffn_gate_exps"),
        ("block_sparse_moe.experts.w3", "ffn_up_exps"),
        ("block_sparse_moe.experts.w2", "ffn_down_exps"),
    ],
};

const FAMILIES: &[Family] = &[
    LLAMA,
    Family {
        architectures: &["qwen3moe"],
        layer: &[
            ("mlp.gate", "ffn_gate_inp"),
            ("mlp.experts.gate_proj", "ffn_gate_exps"),
            ("mlp.experts.up_proj", "ffn_up_exps"),
            ("mlp.experts.down_proj", "ffn_down_exps"),
        ],
        ..LLAMA
    },
    Family {
        architectures: &["qwen35", "qwen35moe", "qwen3next"],
        layer: &[
            ("post_attention_layernorm", "post_attention_norm"),
            ("linear_attn.in_proj_qkv", "attn_qkv"),
            ("linear_attn.in_proj_z", "attn_gate"),
            ("linear_attn.in_proj_b", "ssm_beta"),
            ("linear_attn.in_proj_a", "ssm_alpha"),
            // Qwen3-Next's own, the first in its older files alone.
            ("linear_attn.in_proj_qkvz", "ssm_in"),
            ("linear_attn.in_proj_ba", "ssm_ba"),
            ("linear_attn.conv1d", "ssm_conv1d"),
            ("linear_attn.norm", "ssm_norm"),
            ("linear_attn.out_proj", "ssm_out"),
            ("mlp.gate", "ffn_gate_inp"),
            ("mlp.experts.gate_proj", "ffn_gate_exps"),
            ("mlp.experts.up_proj", "ffn_up_exps"),
            ("mlp.experts.down_proj", "ffn_down_exps"),
            ("mlp.shared_expert_gate", "ffn_gate_inp_shexp"),
            ("mlp.shared_expert.gate_proj", "ffn_gate_shexp"),
            ("mlp.shared_expert.up_proj", "ffn_up_shexp"),
            ("mlp.shared_expert.down_proj", "ffn_down_shexp"),
        ],
        ..LLAMA
    },
    Family {
        architectures: &["gpt-oss"],
        layer: &[
            ("post_attention_layernorm", "post_attention_norm"),
            ("mlp.router", "ffn_gate_inp"),
            ("mlp.experts.gate_proj", "ffn_gate_exps"),
            ("mlp.experts.up_proj", "ffn_up_exps"),
            ("mlp.experts.down_proj", "ffn_down_exps"),
        ],
        ..LLAMA
    },
    Family {
        architectures: &["deepseek2"],
        layer: &[
            ("self_attn.q_a_proj", "attn_q_a"),
            ("self_attn.q_a_layernorm", "attn_q_a_norm"),
            ("self_attn.q_b_proj", "attn_q_b"),
            ("self_attn.kv_a_proj_with_mqa", "attn_kv_a_mqa"),
            ("self_attn.kv_a_layernorm", "attn_kv_a_norm"),
            // In older files. In others its two halves, which Hugging Face has no names for, and keys turned.
            ("self_attn.kv_b_proj", "attn_kv_b"),
            ("self_attn.k_b_proj", "attn_k_b"),
            ("self_attn.v_b_proj", "attn_v_b"),
            ("mlp.gate", "ffn_gate_inp"),
            ("mlp.experts.gate_proj", "ffn_gate_exps"),
            ("mlp.experts.up_proj", "ffn_up_exps"),
            ("mlp.experts.down_proj", "ffn_down_exps"),
            ("mlp.shared_experts.gate_proj", "ffn_gate_shexp"),
            ("mlp.shared_experts.up_proj", "ffn_up_shexp"),
            ("mlp.shared_experts.down_proj", "ffn_down_shexp"),
        ],
        ..LLAMA
    },
    Family {
        architectures: &["phi3"],
        layer: &[("self_attn.qkv_proj", "attn_qkv"), ("mlp.gate_up_proj", "ffn_up")],
        ..LLAMA
    },
    Family {
        architectures: &["gemma2", "gemma3"],
        layer: &[
            ("post_attention_layernorm", "post_attention_norm"),
            ("pre_feedforward_layernorm", "ffn_norm"),
            ("post_feedforward_layernorm", "post_ffw_norm"),
        ],
        ..LLAMA
    },
    Family {
        architectures: &["olmo2", "exaone4"],
        layer: &[("post_attention_layernorm", "post_attention_norm"), ("post_feedforward_layernorm", "post_ffw_norm")],
        ..LLAMA
    },
    Family {
        architectures: &["glm4"],
        layer: &[
            ("post_self_attn_layernorm", "post_attention_norm"),
            ("post_mlp_layernorm", "post_ffw_norm"),
            ("mlp.gate_up_proj", "ffn_up"),
        ],
        ..LLAMA
    },
    Family { architectures: &["starcoder2"], layer: &[("mlp.c_fc", "ffn_up"), ("mlp.c_proj", "ffn_down")], ..LLAMA },
    Family {
        architectures: &["gpt2"],
        hf_layer: "transformer.h.",
        model: &[
            ("transformer.wte", "token_embd"),
            ("transformer.wpe", "position_embd"),
            ("transformer.ln_f", "output_norm"),
        ],
        layer: &[
            ("ln_1", "attn_norm"),
            ("attn.c_attn", "attn_qkv"),
            ("attn.c_proj", "attn_output"),
            ("ln_2", "ffn_norm"),
            ("mlp.c_fc", "ffn_up"),
            ("mlp.c_proj", "ffn_down"),
        ],
    },
    Family {
        architectures: &["gptneox"],
        hf_layer: "gpt_neox.layers.",
        model: &[
            ("gpt_neox.embed_in", "token_embd"),
            ("gpt_neox.final_layer_norm", "output_norm"),
            ("embed_out", "output"),
        ],
        layer: &[
            ("attention.query_key_value", "attn_qkv"),
            ("attention.dense", "attn_output"),
            ("mlp.dense_h_to_4h", "ffn_up"),
            ("mlp.dense_4h_to_h", "ffn_down"),
        ],
    },
];

/// Tensors of a layer whose names have no kind in Hugging Face's files.
const BARE: Rows = &[
    ("self_attn.sinks", "attn_sinks.weight"),
    ("linear_attn.A_log", "ssm_a"),
    ("linear_attn.dt_bias", "ssm_dt.bias"),
    ("mlp.gate.e_score_correction_bias", "exp_probs_b.bias"),
];

const GGUF_LAYER: &str = "blk.";

/// The family of GGUF files of this architecture: Llama's where the table has none.
fn family(architecture: &str) -> &'static Family {
    FAMILIES.iter().find(|family| family.architectures.contains(&architecture)).unwrap_or(&LLAMA)
}

/// GGUF's name of a tensor that Hugging Face calls `name`, in files of this architecture, where the table has it.
#[must_use]
pub fn to_gguf(architecture: &str, name: &str) -> Option<String> {
    let family = family(architecture);
    let find = |own: Rows, all: Rows, stem: &str| own.iter().chain(all).find(|row| row.0 == stem).map(|row| row.1);
    if let Some((number, stem)) = name.strip_prefix(family.hf_layer).and_then(|rest| rest.split_once('.'))
        && let Some((_, bare)) = BARE.iter().find(|row| row.0 == stem)
    {
        return Some(format!("{GGUF_LAYER}{number}.{bare}"));
    }
    translate(
        name,
        family.hf_layer,
        GGUF_LAYER,
        |stem| find(family.model, MODEL, stem),
        |stem| find(family.layer, LAYER, stem),
    )
}

/// Hugging Face's name of a tensor that files of this architecture call `name`, where the table has it.
#[must_use]
pub fn to_hf(architecture: &str, name: &str) -> Option<String> {
    let family = family(architecture);
    let find = |own: Rows, all: Rows, stem: &str| own.iter().chain(all).find(|row| row.1 == stem).map(|row| row.0);
    if let Some((number, stem)) = name.strip_prefix(GGUF_LAYER).and_then(|rest| rest.split_once('.'))
        && let Some((bare, _)) = BARE.iter().find(|row| row.1 == stem)
    {
        return Some(format!("{}{number}.{bare}", family.hf_layer));
    }
    translate(
        name,
        GGUF_LAYER,
        family.hf_layer,
        |stem| find(family.model, MODEL, stem),
        |stem| find(family.layer, LAYER, stem),
    )
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
            assert_eq!(to_gguf("llama", hf).as_deref(), Some(gguf));
            assert_eq!(to_hf("qwen3", gguf).as_deref(), Some(hf));
        }
    }

    #[test]
    fn each_family_has_its_own_names_and_no_two_for_one_tensor() {
        for (family, hf, gguf) in [
            ("gemma2", "model.layers.1.pre_feedforward_layernorm.weight", "blk.1.ffn_norm.weight"),
            ("gemma3", "model.layers.1.post_attention_layernorm.weight", "blk.1.post_attention_norm.weight"),
            ("glm4", "model.layers.1.post_attention_layernorm.weight", "blk.1.ffn_norm.weight"),
            ("gpt2", "transformer.h.2.attn.c_attn.bias", "blk.2.attn_qkv.bias"),
            ("gpt2", "transformer.wpe.weight", "position_embd.weight"),
            ("gpt-oss", "model.layers.0.self_attn.sinks", "blk.0.attn_sinks.weight"),
            ("gpt-oss", "model.layers.0.mlp.experts.gate_proj.bias", "blk.0.ffn_gate_exps.bias"),
            ("llama", "model.layers.0.block_sparse_moe.experts.w2.weight", "blk.0.ffn_down_exps.weight"),
            ("gptneox", "embed_out.weight", "output.weight"),
            ("deepseek2", "model.layers.3.mlp.gate.e_score_correction_bias", "blk.3.exp_probs_b.bias"),
            ("deepseek2", "model.layers.3.mlp.shared_experts.up_proj.weight", "blk.3.ffn_up_shexp.weight"),
            ("qwen35", "model.layers.0.linear_attn.A_log", "blk.0.ssm_a"),
            ("qwen35", "model.layers.0.linear_attn.dt_bias", "blk.0.ssm_dt.bias"),
            ("qwen3next", "model.layers.0.mlp.shared_expert_gate.weight", "blk.0.ffn_gate_inp_shexp.weight"),
        ] {
            assert_eq!(to_gguf(family, hf).as_deref(), Some(gguf));
            assert_eq!(to_hf(family, gguf).as_deref(), Some(hf));
        }
    }

    #[test]
    fn unknown_names_translate_to_nothing() {
        for name in ["", ".", "blk.", "blk..attn_q.weight", "blk.+1.attn_q.weight", "blk.1.attn_q", "blk.1.nope.weight"]
        {
            assert_eq!(to_hf("llama", name), None, "{name}");
        }
        assert_eq!(to_gguf("llama", "model.layers.x.mlp.up_proj.weight"), None);
    }
}
