//! What the kernels, the formats of weights and those of the KV cache cost in quality: nats a token over text, of models
//! that were trained.

use std::{
    fs::File,
    path::{Path, PathBuf},
    sync::Arc,
};

use candle_core::{
    Device,
    quantized::{GgmlDType, QTensor, gguf_file},
};
use candlewick::{
    arch::{Model, config::ModelConfig},
    config::{Dtype, KvCacheDtype, ModelArgs, Quantization},
    engine::load::{LoadedModel, load},
    ids::TokenId,
    weights::{
        Weights,
        gguf::{Gguf, GgufSource},
    },
};

use super::driver::{Driver, lacks_fp8, load_quantized};
use crate::{model_files::shared, place::repository};

/// Most tokens of a text, so that all fit the test's cache.
const MOST_TOKENS: usize = 480;

fn demo() -> PathBuf {
    repository("models/demo/demo.gguf")
}

/// Answers as the demo model was trained to give them, some to a text.
fn answers() -> Vec<String> {
    let lines = include_str!("../../../models/demo/data/chat.jsonl").lines();
    let entries = lines.map(|line| serde_json::from_str::<serde_json::Value>(line).expect("a line of JSON"));
    let answers = entries.flat_map(|entry| entry["answers"].as_array().expect("answers").clone());
    let answers = answers.map(|answer| answer.as_str().expect("a text").to_owned()).collect::<Vec<_>>();
    answers.chunks(20).take(5).map(|answers| answers.join("\n")).collect()
}

/// Mean negative log-likelihood of each token of the texts, in nats.
fn loss(path: &Path, dtype: Dtype, kv_cache_dtype: KvCacheDtype, texts: &[String]) -> f64 {
    let model = Some(path.display().to_string());
    let args = ModelArgs { model, dtype, kv_cache_dtype, ..ModelArgs::default() };
    let loaded = load(&args, None, &mut |_| ()).expect("a good model");
    let model = loaded.model.paged().expect("a model of ours").clone();
    loss_of(model, loaded, texts)
}

/// The same of a model beside which another was loaded from the same file.
fn loss_of(model: Arc<dyn Model>, loaded: LoadedModel, texts: &[String]) -> f64 {
    let tokenizer = loaded.text.tokenizer.expect("the file has a tokenizer");
    let mut driver = Driver::new(model);
    let mut surprises = Vec::new();
    for text in texts {
        let ids = loaded.info.bos_token_id.into_iter().chain(tokenizer.encode(text, false).expect("the text's tokens"));
        let ids = ids.take(MOST_TOKENS).collect::<Vec<_>>();
        let logits = driver.all_logits(&ids, ids.len());
        surprises.extend(logits.iter().zip(&ids[1..]).map(|(logits, next)| surprise(logits, *next)));
    }
    assert!(surprises.len() > 500, "{} tokens are too few", surprises.len());
    surprises.iter().sum::<f64>() / surprises.len() as f64
}

/// Negative log of the probability that logits give a token.
fn surprise(logits: &[f32], token: TokenId) -> f64 {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum = logits.iter().map(|logit| f64::from(logit - largest).exp()).sum::<f64>();
    sum.ln() - f64::from(logits[token.index()] - largest)
}

/// Prints and gives the difference, as a share of `reference`.
fn costs(what: &str, got: f64, reference: f64) -> f64 {
    let share = got / reference - 1.0;
    println!("{what}: {got:.5} nats a token, {reference:.5} without it, {:+.3} %", share * 100.0);
    share
}

/// The demo model with its matrices in another format.
fn demo_in(format: GgmlDType, path: &Path) -> candle_core::Result<()> {
    let mut file = File::open(demo())?;
    let content = gguf_file::Content::read(&mut file)?;
    let mut tensors = Vec::new();
    for (name, info) in &content.tensor_infos {
        let tensor = content.tensor(&mut file, name, &Device::Cpu)?;
        let kept = if info.shape.rank() == 1 { tensor.dtype() } else { format };
        tensors.push((name.as_str(), QTensor::quantize(&tensor.dequantize(&Device::Cpu)?, kept)?));
    }
    let metadata = content.metadata.iter().map(|(key, value)| (key.as_str(), value)).collect::<Vec<_>>();
    let tensors = tensors.iter().map(|(name, tensor)| (*name, tensor)).collect::<Vec<_>>();
    gguf_file::write(&mut File::create(path)?, &metadata, &tensors)
}

#[test]
fn computing_with_a_format_costs_next_to_nothing_beside_widening_it_to_float32() {
    let texts = answers();
    let folder = tempfile::tempdir().expect("a folder");
    for format in [GgmlDType::BF16, GgmlDType::Q8_0, GgmlDType::Q4_0, GgmlDType::Q4K, GgmlDType::Q5K, GgmlDType::Q6K] {
        let path = folder.path().join(format!("{format:?}.gguf"));
        demo_in(format, &path).expect("a file");
        // Float32 takes the same weights, widened.
        let [ours, widened] =
            [Dtype::Auto, Dtype::Float32].map(|dtype| loss(&path, dtype, KvCacheDtype::Float32, &texts));
        let bound = if format == GgmlDType::BF16 { 1e-3 } else { 2e-3 };
        // Inputs in bytes move the loss either way; a gain is no harm.
        assert!(costs(&format!("{format:?}"), ours, widened) < bound);
    }
}

#[test]
fn eight_bits_of_keys_and_values_cost_less_than_a_hundredth_of_the_loss() {
    let texts = answers();
    // Weights in bfloat16: inputs in bytes would answer the least change with more than the cache itself costs.
    let of = |kv_cache_dtype| loss(&demo(), Dtype::Bfloat16, kv_cache_dtype, &texts);
    let exact = of(KvCacheDtype::Float32);
    assert!(costs("bfloat16 cache", of(KvCacheDtype::Bfloat16), exact).abs() < 1e-3);
    assert!(costs("float16 cache", of(KvCacheDtype::Float16), exact).abs() < 1e-3);
    assert!(costs("fp8 cache", of(KvCacheDtype::Fp8), exact).abs() < 1e-2);
}

#[test]
fn weights_of_eight_bit_floats_cost_less_than_a_fiftieth_of_the_loss() {
    if lacks_fp8() {
        return;
    }
    let texts = answers();
    let gguf = Arc::new(Gguf::open(&demo()).expect("the file opens"));
    let config = ModelConfig::from_gguf(&gguf).expect("metadata");
    let weights = Weights::new(Box::new(GgufSource::new(gguf).expect("tensors")));
    let of = |quantization| {
        let args = ModelArgs { model: Some(demo().display().to_string()), ..ModelArgs::default() };
        let loaded = load(&args, None, &mut |_| ()).expect("a good model");
        loss_of(load_quantized(&weights, &config, Dtype::Bfloat16, quantization), loaded, &texts)
    };
    let cost = costs("fp8", of(Some(Quantization::Fp8)), of(None));
    assert!(cost != 0.0 && cost.abs() < 2e-2);
}

#[test]
fn stories260k_keeps_its_loss_in_bfloat16() {
    let Some(path) = shared("data/checkpoints/stories260K/stories260K.gguf") else { return };
    let Some(text) = shared("data/text/tinystories_sample.txt") else { return };
    let text = std::fs::read_to_string(text).expect("a text");
    let stories = text.split("<|endoftext|>").map(|story| story.trim().to_owned()).collect::<Vec<_>>();
    let of = |dtype| loss(&path, dtype, KvCacheDtype::Auto, &stories);
    let float32 = of(Dtype::Float32);
    assert!((1.1..1.45).contains(&float32), "{float32} nats a token");
    assert!(costs("bfloat16", of(Dtype::Bfloat16), float32).abs() < 1e-3);
}
