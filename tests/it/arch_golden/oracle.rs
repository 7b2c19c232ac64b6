//! A second oracle: candle-transformers' Llama on the same weights.

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::llama::{Cache, Llama, LlamaConfig};
use candlewick::{config::Dtype, ids::TokenId};

use super::driver::{Driver, distance, fixture, golden, load_model, tokens};

#[test]
fn candle_transformers_llama_gives_the_same_logits_on_the_same_weights() {
    for name in ["llama", "llama3-rope"] {
        let directory = fixture(name);
        let text = std::fs::read_to_string(directory.join("config.json")).expect("config.json");
        let config = serde_json::from_str::<LlamaConfig>(&text).expect("candle reads config.json").into_config(false);
        let files = [directory.join("model.safetensors")];
        // SAFETY: nothing writes to the fixtures while tests run.
        let weights =
            unsafe { VarBuilder::from_mmaped_safetensors(&files, DType::F32, &Device::Cpu) }.expect("weights");
        let oracle = Llama::load(weights, &config).expect("candle loads the model");
        let mut driver = Driver::new(load_model(name, Dtype::Float32));
        for prompt in golden(name).prompts {
            // Continue past the prompt, so that the oracle's cache and ours are read as well.
            let ids = tokens(&[prompt.ids.as_slice(), &prompt.greedy[..8]].concat());
            let ours = driver.all_logits(&ids, ids.len());
            let mut cache = Cache::new(true, DType::F32, &config, &Device::Cpu).expect("a cache");
            let mut forward = |ids: &[TokenId], at: usize| {
                let ids = ids.iter().map(|id| id.0).collect::<Vec<_>>();
                let input = Tensor::new(ids, &Device::Cpu).and_then(|ids| ids.unsqueeze(0)).expect("input");
                let logits = oracle.forward(&input, at, &mut cache).and_then(|logits| logits.squeeze(0));
                logits.and_then(|logits| logits.to_vec1::<f32>()).expect("candle's logits")
            };
            let prompt_len = prompt.ids.len();
            let mut theirs = forward(&ids[..prompt_len], 0);
            for at in prompt_len..=ids.len() {
                let far = distance(&ours[at - 1], &theirs);
                assert!(far < 1e-4, "{name}, position {}: {far:e} away from candle", at - 1);
                if at < ids.len() {
                    theirs = forward(&ids[at..=at], at);
                }
            }
        }
    }
}
