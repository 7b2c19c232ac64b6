//! Layers of Qwen3.5 and Qwen3-Next that keep a state, as llama.cpp's converter writes them: what Qwen3-Next has as one is
//! two, rates stand for their logarithms, and in files of Qwen3.5 value heads that share a key stand as far apart as there
//! are key heads, so that ggml can repeat keys.

use std::sync::Arc;

use super::turn::Turn;
use crate::{
    arch::{config::ModelConfig, linear_attention::LinearAttention},
    kernels::gated_delta::DeltaHeads,
    layers::gated_delta_net::by_key_head,
    weights::gguf::writer::NewValue,
};

/// What is under this in a layer.
const PREFIX: &str = ".linear_attn.";
/// The architecture whose value heads stay in their order.
const NEIGHBOURS: &str = "qwen3next";

/// The keys of such layers.
pub(super) fn keys(linear: &LinearAttention) -> Vec<(&'static str, NewValue)> {
    let heads = &linear.sizes.heads;
    let sizes = [
        ("ssm.conv_kernel", linear.sizes.taps),
        ("ssm.state_size", heads.key_dim),
        ("ssm.group_count", heads.key_heads),
        ("ssm.time_step_rank", heads.value_heads),
        ("ssm.inner_size", heads.values()),
    ];
    let mut keys: Vec<_> = sizes.into_iter().map(|(key, size)| (key, NewValue::u32(size as u32))).collect();
    keys.push(("attention.recurrent_layers", NewValue::bools(&linear.layers)));
    // What readers go by that do not know the list.
    let is_every = |interval: &usize| {
        let attends = |layer: usize| (layer + 1).is_multiple_of(*interval);
        linear.layers.iter().enumerate().all(|(layer, &recurrent)| recurrent != attends(layer))
    };
    let interval = (1..=linear.layers.len()).find(is_every);
    keys.extend(interval.map(|interval| ("full_attention_interval", NewValue::u32(interval as u32))));
    keys
}

/// What a tensor of a model that has such layers becomes.
pub(super) fn turns(turn: Turn, name: &str, architecture: &str, config: &ModelConfig) -> Vec<Turn> {
    let Some(linear) = &config.linear_attention else { return vec![turn] };
    let heads = &linear.sizes.heads;
    let Some((_, part)) = name.split_once(PREFIX) else {
        // Norms hold how far a weight is from 1.
        let number: Option<fn(f32) -> f32> = name.ends_with("norm.weight").then_some(|weight| weight + 1.0);
        return vec![Turn { number, ..turn }];
    };
    let order = value_order(heads, architecture);
    let values = |order: &[usize], first: usize, dim: usize| -> Arc<[usize]> {
        (0..first).chain(order.iter().flat_map(|head| (0..dim).map(move |d| first + head * dim + d))).collect()
    };
    let rows = |first: usize, dim: usize| order.as_deref().map(|order| values(order, first, dim));
    let (dim, keys) = (heads.value_dim, 2 * heads.keys());
    let turned = match part {
        "in_proj_qkv.weight" => Turn { rows: rows(keys, dim), ..turn },
        "in_proj_z.weight" => Turn { rows: rows(0, dim), ..turn },
        "in_proj_a.weight" | "in_proj_b.weight" | "dt_bias" => Turn { rows: rows(0, 1), ..turn },
        "A_log" => {
            let number: fn(f32) -> f32 = |log| -f64::from(log).exp() as f32;
            Turn { rows: rows(0, 1), number: Some(number), ..turn }
        }
        "conv1d.weight" => {
            let shape = vec![heads.qkv(), linear.sizes.taps];
            Turn { rows: rows(keys, dim), shape, exact: true, ..turn }
        }
        "out_proj.weight" => Turn { runs: order.map(|order| (dim, order)), ..turn },
        "in_proj_qkvz.weight" => return apart(&turn, heads, config.hidden_size),
        _ => turn,
    };
    vec![turned]
}

/// Which of Hugging Face's value heads stand where, in files that have them in another order.
fn value_order(heads: &DeltaHeads, architecture: &str) -> Option<Arc<[usize]>> {
    let DeltaHeads { key_heads, value_heads, .. } = *heads;
    let each = value_heads / key_heads;
    let moves = architecture != NEIGHBOURS && key_heads > 1 && each > 1;
    moves.then(|| (0..value_heads).map(|head| head % key_heads * each + head / key_heads).collect())
}

/// Queries, keys and values, and the gate, which Qwen3-Next has key head by key head as one.
fn apart(turn: &Turn, heads: &DeltaHeads, hidden: usize) -> Vec<Turn> {
    let (channels, values) = (heads.qkv(), heads.values());
    let from = |row| by_key_head(row, heads.key_heads, &[heads.keys(), heads.keys(), values, values]);
    let of = |gguf_name: &str, rows: std::ops::Range<usize>| Turn {
        name: turn.name.replace("ssm_in", gguf_name),
        shape: vec![rows.len(), hidden],
        rows: Some(rows.map(from).collect()),
        ..turn.clone()
    };
    vec![of("attn_qkv", 0..channels), of("attn_gate", channels..channels + values)]
}
