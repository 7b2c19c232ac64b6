//! Experts as Qwen3.5's published files have them, those of a layer stacked as one tensor: the same bits as one by one.

use std::collections::HashMap;

use candle_core::{Device, Tensor, safetensors};
use candlewick::{
    config::Dtype,
    weights::{Weights, safetensors::SafetensorsSource},
};

use super::driver::{Driver, config, fixture, golden, load_model, load_weights, tokens};

pub(super) const NAME: &str = "qwen3_5_moe";

/// Its tensors with the experts of a layer as one.
pub(super) fn tensors() -> HashMap<String, Tensor> {
    let tensors = safetensors::load(fixture(NAME).join("model.safetensors"), &Device::Cpu).expect("a fixture");
    let (of_experts, mut all): (HashMap<_, _>, HashMap<_, _>) =
        tensors.into_iter().partition(|(name, _)| name.contains(".experts."));
    let config = config(NAME);
    let count = config.moe.as_ref().expect("experts").num_experts;
    for layer in 0..config.num_hidden_layers {
        let prefix = format!("model.layers.{layer}.mlp.experts");
        let one = |expert: usize, name: &str| of_experts[&format!("{prefix}.{expert}.{name}.weight")].clone();
        let both = |expert| Tensor::cat(&[one(expert, "gate_proj"), one(expert, "up_proj")], 0);
        let gate_up = (0..count).map(both).collect::<Result<Vec<_>, _>>().expect("matrices");
        let down = (0..count).map(|expert| one(expert, "down_proj")).collect::<Vec<_>>();
        all.insert(format!("{prefix}.gate_up_proj"), Tensor::stack(&gate_up, 0).expect("a stack"));
        all.insert(format!("{prefix}.down_proj"), Tensor::stack(&down, 0).expect("a stack"));
    }
    all
}

#[test]
fn stacked_experts_are_the_experts() {
    let directory = tempfile::tempdir().expect("a directory");
    safetensors::save(&tensors(), directory.path().join("model.safetensors")).expect("the file is written");
    let weights = Weights::new(Box::new(SafetensorsSource::open(directory.path()).expect("safetensors")));
    let ids = tokens(&golden(NAME).prompts[2].ids);
    for dtype in [Dtype::Float32, Dtype::Bfloat16] {
        let stacked = Driver::new(load_weights(&weights, &config(NAME), dtype)).all_logits(&ids, ids.len());
        assert!(stacked == Driver::new(load_model(NAME, dtype)).all_logits(&ids, ids.len()), "{dtype:?}");
    }
}
