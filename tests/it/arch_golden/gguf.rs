//! The same checkpoints as GGUF files, which this test writes with candle's writer, in every format that fits them; and
//! models of every head size.

use std::{collections::BTreeMap, fs::File, path::Path, sync::Arc};

use candle_core::{
    DType, Device, Tensor,
    quantized::{GgmlDType, QTensor, gguf_file},
    safetensors,
};
use candlewick::{
    arch::{Model, config::ModelConfig, shapes::tensor_shapes},
    config::Dtype,
    weights::{
        Weights,
        gguf::{Gguf, GgufSource},
        names::to_gguf,
        seeded::SeededSource,
    },
};

use super::driver::{Driver, config, distance, fixture, golden, load_model, load_weights, tokens};

/// What a GGUF file calls the architecture of a checkpoint.
fn gguf_architecture(name: &str) -> &'static str {
    match name {
        "qwen2" => "qwen2",
        "qwen3" => "qwen3",
        _ => "llama",
    }
}

/// Interleaves the two halves of each head's rows, as converters of Llama do.
fn interleave(weight: &Tensor, heads: usize) -> candle_core::Result<Tensor> {
    let (rows, columns) = weight.dims2()?;
    weight.reshape((heads, 2, rows / heads / 2, columns))?.transpose(1, 2)?.contiguous()?.reshape((rows, columns))
}

/// Writes a golden checkpoint as a GGUF file, its matrices in `format`. Gives the file's tensors as they were written,
/// dequantized, by their GGUF names.
fn write_gguf(name: &str, format: GgmlDType, path: &Path) -> candle_core::Result<BTreeMap<String, Tensor>> {
    let config = config(name);
    let arch = gguf_architecture(name);
    let mut metadata = vec![("general.architecture".to_owned(), gguf_file::Value::String(arch.to_owned()))];
    for (key, value) in [
        ("embedding_length", config.hidden_size),
        ("feed_forward_length", config.intermediate_size),
        ("block_count", config.num_hidden_layers),
        ("context_length", config.max_position_embeddings),
        ("attention.head_count", config.num_attention_heads),
        ("attention.head_count_kv", config.num_key_value_heads),
        ("attention.key_length", config.head_dim),
        ("attention.value_length", config.head_dim),
        ("attention.sliding_window", config.sliding_window.size.unwrap_or(0)),
    ] {
        metadata.push((format!("{arch}.{key}"), gguf_file::Value::U32(value as u32)));
    }
    for (key, value) in
        [("rope.freq_base", config.rope.theta as f32), ("attention.layer_norm_rms_epsilon", config.rms_norm_eps as f32)]
    {
        metadata.push((format!("{arch}.{key}"), gguf_file::Value::F32(value)));
    }
    let mut quantized = BTreeMap::new();
    for (hf_name, tensor) in safetensors::load(fixture(name).join("model.safetensors"), &Device::Cpu)? {
        let tensor = tensor.to_dtype(DType::F32)?;
        let heads = match (arch, hf_name.split('.').nth(4)) {
            ("llama", Some("q_proj")) => Some(config.num_attention_heads),
            ("llama", Some("k_proj")) => Some(config.num_key_value_heads),
            _ => None,
        };
        let tensor = match heads {
            Some(heads) => interleave(&tensor, heads)?,
            None => tensor,
        };
        let format = if tensor.rank() == 1 { GgmlDType::F32 } else { format };
        let gguf_name = to_gguf(&hf_name).expect("a name of the table");
        quantized.insert(gguf_name, QTensor::quantize(&tensor, format)?);
    }
    if let candlewick::layers::rope::RopeScaling::Llama3 { .. } = &config.rope.scaling {
        let mut plain = config.rope.clone();
        plain.scaling = candlewick::layers::rope::RopeScaling::Default;
        let divisors = plain.inv_freq().iter().zip(config.rope.inv_freq()).map(|(p, s)| p / s).collect::<Vec<_>>();
        let divisors = Tensor::new(divisors, &Device::Cpu)?;
        quantized.insert("rope_freqs.weight".to_owned(), QTensor::quantize(&divisors, GgmlDType::F32)?);
    }
    let metadata = metadata.iter().map(|(key, value)| (key.as_str(), value)).collect::<Vec<_>>();
    let tensors = quantized.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect::<Vec<_>>();
    gguf_file::write(&mut File::create(path)?, &metadata, &tensors)?;
    quantized.iter().map(|(name, tensor)| Ok((name.clone(), tensor.dequantize(&Device::Cpu)?))).collect()
}

fn load_gguf(path: &Path, name: &str, dtype: Dtype) -> Arc<dyn Model> {
    let gguf = Arc::new(Gguf::open(path).expect("the file opens"));
    let mut config = ModelConfig::from_gguf(&gguf).expect("metadata");
    if name == "mistral" {
        // GGUF files of Mistral are Llama's, which has no window.
        config.architecture = "MistralForCausalLM".to_owned();
    }
    let source = GgufSource::new(gguf).expect("tensors");
    load_weights(&Weights::new(Box::new(source)), &config, dtype)
}

/// The logits after the prompt of 80 tokens.
fn last_logits(model: Arc<dyn Model>, name: &str) -> Vec<f32> {
    let ids = tokens(&golden(name).prompts[3].ids);
    Driver::new(model).all_logits(&ids, ids.len()).pop().expect("80 rows")
}

#[test]
fn a_gguf_file_of_any_format_gives_what_its_safetensors_give() {
    for name in ["llama", "llama3-rope", "mistral", "qwen2", "qwen3"] {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("model.gguf");
        let exact = last_logits(load_model(name, Dtype::Float32), name);
        let bfloat16 = last_logits(load_model(name, Dtype::Bfloat16), name);
        for (format, own, near) in [
            (GgmlDType::F32, "float32", 1e-5),
            (GgmlDType::F16, "float16", 2e-2),
            (GgmlDType::BF16, "bfloat16", 2e-2),
            (GgmlDType::Q8_0, "q8_0", 0.1),
            (GgmlDType::Q4_0, "q4_0", 0.8),
        ] {
            write_gguf(name, format, &path).expect("the file is written");
            let model = load_gguf(&path, name, Dtype::Auto);
            assert_eq!(model.info().dtype, own);
            assert_eq!(model.info().num_parameters, load_model(name, Dtype::Auto).info().num_parameters);
            let logits = last_logits(model, name);
            let far = distance(&logits, &exact);
            assert!(far < near, "{name} in {own}: {far:e} away from float32");
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
        let hf = |name: &str| candlewick::weights::names::to_hf(name).expect("a name of the table");
        let tensors = tensors.into_iter().map(|(name, tensor)| (hf(&name), tensor)).collect();
        safetensors::save(&tensors, &wide).expect("the file is written");
        let source = candlewick::weights::safetensors::SafetensorsSource::open(directory.path()).expect("safetensors");
        let theirs = load_weights(&Weights::new(Box::new(source)), &config(name), Dtype::Float32);
        let far = distance(&ours, &last_logits(theirs, name));
        assert!(far < 1e-5, "{format:?}: {far:e} away");
        // Run as they are, quantized weights differ by what activations are rounded to.
        let far = distance(&last_logits(load_gguf(&path, name, Dtype::Auto), name), &ours);
        assert!(far < 2e-2, "{format:?} as it is: {far:e} away");
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
