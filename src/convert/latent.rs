//! DeepSeek V3's files: one head of the latent that all queries share, the matrix that expands it in two halves, and
//! experts whose choice files spell out.

use std::path::Path;

use super::turn::Turn;
use crate::{
    arch::{
        config::ModelConfig,
        deepseek_v3::LATENT_EPS,
        gguf_latent::{LOG_MULTIPLIER, SIGMOID},
    },
    error::{Error, Result},
    layers::{
        latent_attention::LatentSizes,
        rope::{RopeScaling, RopeStyle},
    },
    weights::gguf::writer::NewValue,
};

/// `general.architecture`.
pub(super) const NAME: &str = "deepseek2";

/// The keys of such attention.
pub(super) fn keys(latent: &LatentSizes, config: &ModelConfig) -> Vec<(&'static str, NewValue)> {
    let rope = latent.rope;
    let sizes = [
        ("attention.head_count_kv", 1),
        ("attention.key_length", latent.kv_rank + rope),
        ("attention.value_length", latent.kv_rank),
        ("attention.key_length_mla", latent.key()),
        ("attention.value_length_mla", latent.value),
        ("attention.kv_lora_rank", latent.kv_rank),
        // llama.cpp takes none for one that is missing.
        ("attention.q_lora_rank", latent.q_rank.unwrap_or(0)),
    ];
    let mut keys: Vec<_> = sizes.into_iter().map(|(key, size)| (key, NewValue::u32(size as u32))).collect();
    if let Some(mscale) = config.multipliers.mscale_all_dim {
        keys.push(("rope.scaling.yarn_log_multiplier", NewValue::f32((LOG_MULTIPLIER * mscale) as f32)));
    }
    let Some(moe) = &config.moe else { return keys };
    let dense = (0..config.num_hidden_layers).take_while(|&layer| !moe.in_layer(layer)).count();
    let counts = [
        ("leading_dense_block_count", dense),
        ("expert_shared_count", moe.shared_experts),
        ("expert_group_count", moe.groups.0),
        ("expert_group_used_count", moe.groups.1),
        ("expert_gating_func", SIGMOID),
    ];
    keys.extend(counts.map(|(key, count)| (key, NewValue::u32(count as u32))));
    keys.push(("expert_weights_norm", NewValue::bool(moe.renormalize.unwrap_or(true))));
    keys.push(("expert_weights_scale", NewValue::f32(moe.routed_scale.unwrap_or(1.0) as f32)));
    keys
}

/// The two halves of `kv_b_proj`: each head's keys, with the latent outermost, and its values.
///
/// # Errors
/// What is wrong with its shape.
pub(super) fn halves(turn: &Turn, config: &ModelConfig) -> Result<Vec<Turn>, String> {
    let Some(LatentSizes { nope, value, kv_rank, .. }) = config.latent else { return Ok(vec![turn.clone()]) };
    let (heads, both) = (config.num_attention_heads, nope + value);
    if turn.shape != [heads * both, kv_rank] {
        return Err(format!("has shape {:?}, must be {:?}", turn.shape, [heads * both, kv_rank]));
    }
    let half = |name: &str, first: usize, rows: usize, shape: [usize; 3]| Turn {
        name: turn.name.replace("attn_kv_b", name),
        shape: shape.to_vec(),
        rows: Some((0..heads).flat_map(|head| head * both + first..head * both + first + rows).collect()),
        ..turn.clone()
    };
    let keys = half("attn_k_b", 0, nope, [heads, kv_rank, nope]);
    Ok(vec![Turn { transposed: true, ..keys }, half("attn_v_b", nope, value, [heads, value, kv_rank])])
}

/// Refuses what llama.cpp would compute in another way.
pub(super) fn check(path: &Path, config: &ModelConfig) -> Result<()> {
    let wrong = |field: &str, why: &str| Err(Error::bad_file(path, field, why));
    if config.attention_bias == Some(true) {
        return wrong("attention_bias", "is true, and GGUF has no such biases for this architecture");
    }
    if config.rope.style != RopeStyle::Interleaved {
        return wrong("rope_interleave", "is false, which GGUF cannot say of this architecture");
    }
    if config.norm_eps as f32 != LATENT_EPS as f32 {
        return wrong("rms_norm_eps", "is not 1e-6, which latents' norms have: GGUF has one number for all");
    }
    match &config.rope.scaling {
        RopeScaling::Default => {}
        // Scores and positions share one factor in its files, which scores take twice.
        RopeScaling::Yarn(yarn) if config.multipliers.mscale_all_dim.is_none() || yarn.attention_factor != 1.0 => {
            return wrong("rope_scaling.mscale_all_dim", "must be there and be mscale: GGUF has one number for both");
        }
        RopeScaling::Yarn(_) => {}
        _ => {
            return wrong(
                "rope_scaling",
                "is neither YaRN's nor none, which is all that GGUF knows of this architecture",
            );
        }
    }
    let Some(moe) = &config.moe else {
        return wrong("n_routed_experts", "is missing, and llama.cpp runs no such model without experts");
    };
    let dense = (0..config.num_hidden_layers).take_while(|&layer| !moe.in_layer(layer)).count();
    if (dense..config.num_hidden_layers).any(|layer| !moe.in_layer(layer)) {
        return wrong("mlp_only_layers", "has layers behind some with experts, which GGUF cannot say");
    }
    if moe.shared_experts == 0 {
        return wrong("n_shared_experts", "is 0, and llama.cpp runs no such model without them");
    }
    Ok(())
}
