//! The same checkpoints as GGUF files, which this test writes with candle's writer, in every format that fits them; and
//! models of every head size.

use std::{path::Path, sync::Arc};

use candle_core::{quantized::GgmlDType, safetensors};
use candlewick::{
    arch::{Model, config::ModelConfig, shapes::tensor_shapes},
    config::Dtype,
    weights::{
        Weights,
        gguf::{Gguf, GgufSource},
        seeded::SeededSource,
    },
};

use super::{
    CHECKPOINTS, ROUTED,
    bfloat16::allowed,
    driver::{Driver, config, distance, golden, load_model, load_weights, tokens},
    experts::{Bounds, hold_to_float32},
    gguf_file::write as write_gguf,
};

/// Checkpoints that llama.cpp's converter has no way to write, or that differ from others only in what it does not;
/// DeepSeek's, Qwen3.5's and Qwen3-Next's and those that see pictures too, which our own converter writes (`converted.rs`).
const WITHOUT_GGUF: [&str; 14] = [
    "llama-dynamic",
    "ministral",
    "ministral3",
    "mistral3-vision",
    "gemma3-vision",
    "phi3-longrope",
    "stablelm-parallel",
    "deepseek_v3",
    "deepseek_v3-direct",
    "qwen3_5",
    "qwen3_5-tied",
    "qwen3_5-vision",
    "qwen3_5_moe",
    "qwen3_next",
];

pub(super) fn load_gguf(path: &Path, name: &str, dtype: Dtype) -> Arc<dyn Model> {
    let gguf = Arc::new(Gguf::open(path).expect("the file opens"));
    let mut config = ModelConfig::from_gguf(&gguf).expect("metadata");
    if name == "mistral" {
        // GGUF files of Mistral are Llama's, which has no window.
        config.architecture = "MistralForCausalLM".to_owned();
    }
    let source = GgufSource::new(gguf).expect("tensors");
    load_weights(&Weights::new(Box::new(source)), &config, dtype)
}

/// The prompt of 80 tokens.
const LONG_PROMPT: usize = 3;

/// The logits after the prompt of 80 tokens.
pub(super) fn last_logits(model: Arc<dyn Model>, name: &str) -> Vec<f32> {
    let ids = tokens(&golden(name).prompts[LONG_PROMPT].ids);
    Driver::new(model).all_logits(&ids, ids.len()).pop().expect("80 rows")
}

#[test]
fn a_gguf_file_of_any_format_gives_what_its_safetensors_give() {
    for name in CHECKPOINTS.into_iter().filter(|name| !WITHOUT_GGUF.contains(name)) {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("model.gguf");
        let exact = last_logits(load_model(name, Dtype::Float32), name);
        let bfloat16 = last_logits(load_model(name, Dtype::Bfloat16), name);
        // Four bits are too few for random weights to keep their logits: the next test says what is right for those.
        let near = allowed(name)[LONG_PROMPT].farthest;
        for (format, own, near) in [
            (GgmlDType::F32, "float32", 1e-5),
            (GgmlDType::F16, "float16", near),
            (GgmlDType::BF16, "bfloat16", near),
            (GgmlDType::Q8_0, "q8_0", 0.2),
        ] {
            write_gguf(name, format, &path).expect("the file is written");
            let model = load_gguf(&path, name, Dtype::Auto);
            assert_eq!(model.info().dtype, own);
            assert_eq!(model.info().num_parameters, load_model(name, Dtype::Auto).info().num_parameters);
            let logits = last_logits(model, name);
            let far = distance(&logits, &exact);
            if ROUTED.contains(&name) && format != GgmlDType::F32 {
                // Some tokens stand between two experts; beside those logits are as near as everywhere.
                let (exact, bounds) = match format {
                    GgmlDType::Q8_0 => (load_gguf(&path, name, Dtype::Float32), Bounds::q8_0(name)),
                    _ => (load_model(name, Dtype::Float32), Bounds::bfloat16(name)),
                };
                hold_to_float32(name, own, [exact, load_gguf(&path, name, Dtype::Auto)], bounds);
            } else {
                assert!(far < near, "{name} in {own}: {far:e} away from float32");
            }
            if format == GgmlDType::BF16 {
                assert!(distance(&logits, &bfloat16) < 1e-6, "{name}: BF16 in a GGUF file is not bfloat16 safetensors");
            }
        }
    }
}

#[test]
fn quantized_weights_as_float32_are_what_candle_dequantizes() {
    let name = "qwen3";
    let directory = tempfile::tempdir().expect("a directory");
    let (path, wide) = (directory.path().join("model.gguf"), directory.path().join("model.safetensors"));
    for format in [GgmlDType::Q8_0, GgmlDType::Q4_0] {
        let tensors = write_gguf(name, format, &path).expect("the file is written");
        let ours = last_logits(load_gguf(&path, name, Dtype::Float32), name);
        safetensors::save(&tensors.into_iter().collect(), &wide).expect("the file is written");
        let source = candlewick::weights::safetensors::SafetensorsSource::open(directory.path()).expect("safetensors");
        let theirs = load_weights(&Weights::new(Box::new(source)), &config(name), Dtype::Float32);
        let far = distance(&ours, &last_logits(theirs, name));
        assert!(far < 1e-5, "{format:?}: {far:e} away");
        // Run as they are, quantized weights differ by what activations are rounded to: eight bits.
        let far = distance(&last_logits(load_gguf(&path, name, Dtype::Auto), name), &ours);
        assert!(far < 5e-2, "{format:?} as it is: {far:e} away");
    }
}

#[test]
fn every_even_head_size_from_8_to_256_runs() {
    for head_dim in (8..=256).step_by(2) {
        let mut config = config("qwen3");
        (config.head_dim, config.rope.rotary_dim, config.num_hidden_layers) = (head_dim, head_dim, 1);
        let source = SeededSource::new(head_dim as u64, tensor_shapes(&config));
        let model = load_weights(&Weights::new(Box::new(source)), &config, Dtype::Auto);
        let ids = tokens(&[1, 5, 9, 200, 31, 77, 4]);
        let mut driver = Driver::new(model);
        let logits = driver.all_logits(&ids, 3);
        assert!(logits.iter().flatten().all(|x| x.is_finite()), "heads of {head_dim}");
        assert!(logits == driver.all_logits(&ids, 7), "heads of {head_dim}: chunks differ");
    }
}
