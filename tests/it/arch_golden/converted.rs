//! The same checkpoints as GGUF files that `candlewick convert` writes, and as weights that are drawn.

use std::{collections::HashMap, fs, fs::File, path::Path, sync::Arc};

use candle_core::{
    Device, Tensor,
    quantized::{GgmlDType, QTensor, gguf_file},
    safetensors,
};
use candlewick::{
    arch::{KeepOptions, Model, config::ModelConfig, shapes::tensor_shapes},
    config::Dtype,
    convert::{Draft, Mixture},
    weights::{
        TensorSource, Weights,
        files::{ModelFiles, model_files},
        gguf::{Gguf, GgufSource},
        safetensors::SafetensorsSource,
        seeded::SeededSource,
    },
};
use serde_json::{Value, json};

use super::{
    ROUTED,
    driver::{Driver, config, distance, fixture, load_model, load_weights, tokens},
    experts::{Bounds, hold_to_float32},
    gguf::{last_logits, load_gguf},
    stacked,
};

/// Checkpoints that are converted.
const CONVERTED: [&str; 31] = [
    "llama",
    "llama-biases",
    "llama-mha",
    "mistral3-vision",
    "gemma3-vision",
    "llama3-rope",
    "llama-linear",
    "mixtral",
    "qwen2",
    "qwen3",
    "qwen3_moe",
    "qwen3_5",
    "qwen3_5-tied",
    "qwen3_5-vision",
    "qwen3_5_moe",
    "qwen3_next",
    "qwen3-yarn",
    "phi3",
    "phi3-longrope",
    "gemma2",
    "gemma3_text",
    "smollm3",
    "olmo2",
    "granite",
    "glm4",
    "gpt2",
    "gpt_oss",
    "cohere2",
    "stablelm",
    "stablelm-parallel",
    "gpt_neox",
];

/// Checkpoints with other configurations: of those that say what GGUF cannot, it is taken away.
fn configured() -> Vec<(&'static str, Value)> {
    let deep = |mscale: f64| {
        let yarn =
            json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 10000.0});
        let mut rope = yarn;
        rope["mscale"] = json!(mscale);
        rope["mscale_all_dim"] = json!(mscale);
        json!({"rope_parameters": rope})
    };
    let everything = json!({"sliding_window": null, "layer_types": null, "sliding_window_pattern": null});
    let mut stretched = deep(1.0)["rope_parameters"].clone();
    stretched["attention_factor"] = json!(1.25);
    vec![
        ("mistral", everything.clone()),
        ("ministral", everything.clone()),
        ("exaone4", everything.clone()),
        // As long as any sequence.
        ("starcoder2", json!({"sliding_window": 512})),
        ("deepseek_v3", deep(1.0)),
        ("deepseek_v3", deep(0.7)),
        (
            "deepseek_v3-direct",
            json!({"rope_interleave": true, "norm_topk_prob": false, "n_group": 1, "topk_group": 1}),
        ),
        ("phi3", json!({"sliding_window": 24})),
        ("gemma2", json!({"layer_types": ["full_attention", "full_attention", "sliding_attention"]})),
        ("gemma2", everything),
        ("qwen3-yarn", json!({"rope_parameters": stretched})),
    ]
}
/// Those whose layers keep states.
const WITH_STATES: [&str; 5] = ["qwen3_5", "qwen3_5-tied", "qwen3_5-vision", "qwen3_5_moe", "qwen3_next"];

fn convert(directory: &Path, path: &Path, mixture: Option<Mixture>) {
    let ModelFiles::Directory(files) = model_files(directory).expect("a directory") else { panic!("is a file") };
    let source = SafetensorsSource::open(directory).expect("safetensors");
    let draft = Draft::from_directory(&files, &source).expect("is converted");
    draft.write(path, mixture, &mut |_, _| ()).expect("is written");
}

/// A directory with the configuration of a checkpoint and these tensors.
fn directory(name: &str, tensors: &HashMap<String, Tensor>) -> tempfile::TempDir {
    let directory = tempfile::tempdir().expect("a directory");
    fs::copy(fixture(name).join("config.json"), directory.path().join("config.json")).expect("is copied");
    safetensors::save(tensors, directory.path().join("model.safetensors")).expect("is written");
    directory
}

#[test]
fn a_converted_checkpoint_gives_the_logits_of_its_directory() {
    for name in CONVERTED {
        let folder = tempfile::tempdir().expect("a directory");
        let path = folder.path().join("model.gguf");
        convert(&fixture(name), &path, None);
        let of_directory = load_model(name, Dtype::Float32);
        let of_file = load_gguf(&path, name, Dtype::Float32);
        assert_eq!(of_file.info().num_parameters, of_directory.info().num_parameters, "{name}");
        let exact = last_logits(of_directory, name);
        let far = distance(&last_logits(of_file, name), &exact);
        assert!(far < 1e-5, "{name}: {far:e} away");

        // Rows as they lie in the file, whatever order they are in. Random weights magnify what rounding them does, so they
        // themselves are held to what they were, and the model that runs them as they are to their float32.
        let rounded = folder.path().join("q8_0.gguf");
        convert(&fixture(name), &rounded, Some(Mixture::Q8_0));
        hold_weights(name, [&path, &rounded]);
        let both = [Dtype::Float32, Dtype::Auto].map(|dtype| load_gguf(&rounded, name, dtype));
        if ROUTED.contains(&name) {
            hold_to_float32(name, "q8_0", both, Bounds::q8_0(name));
        } else {
            let [exact, own] = both.map(|model| last_logits(model, name));
            let far = distance(&own, &exact);
            assert!(far < 0.2, "{name} in q8_0: {far:e} away");
        }
    }
}

/// Holds that each tensor of a file in fewer bits is that of the other file but for rounding.
fn hold_weights(name: &str, files: [&Path; 2]) {
    let [plain, rounded] = files.map(|path| {
        let gguf = Gguf::open(path).expect("a good file");
        GgufSource::new(Arc::new(gguf)).expect("tensors")
    });
    let mut names = plain.names();
    names.sort_unstable();
    let mut num_rounded = 0;
    for tensor in names {
        let [plain, rounded] = [&plain, &rounded].map(|file| file.get(&tensor).expect("is there").to_f32());
        let far = if plain == rounded { 0.0 } else { distance(&rounded, &plain) };
        assert!(far < 1e-2, "{name}, {tensor}: {far:e} away");
        num_rounded += usize::from(far > 0.0);
    }
    assert!(num_rounded > 0, "{name}: nothing is rounded");
}

/// The model of a directory.
fn load_directory(path: &Path, dtype: Dtype) -> Arc<dyn Model> {
    let config_json = path.join("config.json");
    let config = fs::read_to_string(&config_json).expect("config.json");
    let config = ModelConfig::from_hf_json(&config_json, &config).expect("config.json parses");
    let source = SafetensorsSource::open(path).expect("safetensors");
    load_weights(&Weights::new(Box::new(source)), &config, dtype)
}

/// A directory with the tensors of a checkpoint, and its configuration with these fields.
fn changed(name: &str, change: &Value) -> tempfile::TempDir {
    let directory = tempfile::tempdir().expect("a directory");
    let config = fs::read_to_string(fixture(name).join("config.json")).expect("config.json");
    let mut config: Value = serde_json::from_str(&config).expect("config.json parses");
    for (field, value) in change.as_object().expect("fields") {
        config[field] = value.clone();
    }
    fs::write(directory.path().join("config.json"), config.to_string()).expect("is written");
    let file = "model.safetensors";
    fs::copy(fixture(name).join(file), directory.path().join(file)).expect("is copied");
    directory
}

#[test]
fn a_converted_checkpoint_keeps_what_its_configuration_says_of_windows_positions_and_experts() {
    for (name, change) in configured() {
        let directory = changed(name, &change);
        let path = directory.path().join("model.gguf");
        convert(directory.path(), &path, None);
        let of_directory = load_directory(directory.path(), Dtype::Float32);
        let of_file = load_gguf(&path, name, Dtype::Float32);
        assert_eq!(of_file.info().num_parameters, of_directory.info().num_parameters, "{name}");
        assert_eq!(of_file.info().kv_groups, of_directory.info().kv_groups, "{name} {change}");
        let (exact, plain) = (last_logits(of_directory, name), last_logits(load_model(name, Dtype::Float32), name));
        let far = distance(&last_logits(of_file, name), &exact);
        assert!(far < 1e-5, "{name} {change}: {far:e} away");
        // The change changes something, so that a file which lost it would be found out.
        assert!(distance(&plain, &exact) > 1e-4 || name == "deepseek_v3", "{name} {change}");
    }
}

#[test]
fn latents_of_older_files_are_read_too() {
    let name = "deepseek_v3";
    let directory = changed(name, &json!({"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}));
    let [new, old] = ["new.gguf", "old.gguf"].map(|file| directory.path().join(file));
    convert(directory.path(), &new, None);
    let mut file = File::open(&new).expect("is there");
    let content = gguf_file::Content::read(&mut file).expect("is read");
    let stored = safetensors::load(fixture(name).join("model.safetensors"), &Device::Cpu).expect("a fixture");
    let mut tensors = HashMap::new();
    for name in content.tensor_infos.keys() {
        match name.strip_suffix(".attn_k_b.weight").and_then(|block| block.strip_prefix("blk.")) {
            Some(layer) => {
                let whole = &stored[&format!("model.layers.{layer}.self_attn.kv_b_proj.weight")];
                let whole = QTensor::quantize(whole, GgmlDType::BF16).expect("plain numbers");
                tensors.insert(format!("blk.{layer}.attn_kv_b.weight"), whole);
            }
            None if name.ends_with(".attn_v_b.weight") => {}
            None => drop(tensors.insert(name.clone(), content.tensor(&mut file, name, &Device::Cpu).expect("is read"))),
        }
    }
    let mut metadata = content.metadata;
    for (key, size) in [("key_length", 24), ("value_length", 16), ("head_count_kv", 4)] {
        metadata.insert(format!("deepseek2.attention.{key}"), gguf_file::Value::U32(size));
        metadata.remove(&format!("deepseek2.attention.{key}_mla"));
    }
    let metadata: Vec<_> = metadata.iter().map(|(key, value)| (key.as_str(), value)).collect();
    let tensors: Vec<_> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    gguf_file::write(&mut File::create(&old).expect("is made"), &metadata, &tensors).expect("is written");
    let [new, old] = [new, old].map(|path| last_logits(load_gguf(&path, name, Dtype::Float32), name));
    assert!(new == old);
}

#[test]
fn experts_in_mxfp4_stay_in_mxfp4_and_are_kept_as_a_gguf_files_are() {
    let name = "gpt_oss";
    let mut tensors = safetensors::load(fixture(name).join("model.safetensors"), &Device::Cpu).expect("a fixture");
    let names: Vec<_> =
        tensors.keys().filter(|name| name.ends_with("_proj") && name.contains(".experts.")).cloned().collect();
    assert!(!names.is_empty());
    let mut state = 1u32;
    let mut draw = |count: usize, range: std::ops::Range<u32>| -> Vec<u8> {
        let next = |_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (range.start + (state >> 16) % range.len() as u32) as u8
        };
        (0..count).map(next).collect()
    };
    for name in names {
        let (count, input, out) = tensors.remove(&name).expect("is there").dims3().expect("experts");
        let blocks = draw(count * out * input / 2, 0..256);
        let scales = draw(count * out * input / 32, 120..124);
        let blocks = Tensor::from_vec(blocks, (count, out, input / 32, 16), &Device::Cpu).expect("blocks");
        let scales = Tensor::from_vec(scales, (count, out, input / 32), &Device::Cpu).expect("scales");
        tensors.extend([(format!("{name}_blocks"), blocks), (format!("{name}_scales"), scales)]);
    }
    let directory = directory(name, &tensors);
    let path = directory.path().join("model.gguf");
    convert(directory.path(), &path, None);
    let gguf = Gguf::open(&path).expect("a good file");
    let up = gguf.tensor("blk.1.ffn_up_exps.weight").expect("is there");
    assert_eq!(up.format.expect("is read").to_string(), "mxfp4");
    let exact = last_logits(load_directory(directory.path(), Dtype::Float32), name);
    let far = distance(&last_logits(load_gguf(&path, name, Dtype::Float32), name), &exact);
    assert!(far < 1e-5, "{far:e} away");

    // As they are: eight bits and a half of a scale, half of what bfloat16 takes.
    let [of_directory, of_file] = [load_directory(directory.path(), Dtype::Auto), load_gguf(&path, name, Dtype::Auto)];
    let wide = load_directory(directory.path(), Dtype::Bfloat16).info().weight_bytes;
    let (info, source) = (of_directory.info(), SafetensorsSource::open(directory.path()).expect("safetensors"));
    assert_eq!((info.weight_bytes, info.dtype.as_str()), (of_file.info().weight_bytes, "bfloat16"));
    assert!(info.weight_bytes < wide * 3 / 4, "{} bytes, {wide} in bfloat16", info.weight_bytes);
    assert_eq!(KeepOptions::default().facts(&config(name), &source.headers()).weight_bytes, info.weight_bytes);
    assert!(last_logits(of_directory, name) == last_logits(of_file, name), "the same weights, the same bits");
}

#[test]
fn a_checkpoint_in_another_form_becomes_the_same_file() {
    let load =
        |name: &str| safetensors::load(fixture(name).join("model.safetensors"), &Device::Cpu).expect("a fixture");
    let mut only_head = load("qwen3_5-tied");
    let embedding = only_head.remove("model.embed_tokens.weight").expect("an embedding");
    only_head.insert("lm_head.weight".to_owned(), embedding);
    let mut guessing = load("qwen3_5");
    guessing.insert("mtp.fc.weight".to_owned(), guessing["lm_head.weight"].clone());
    // GPT-2's first files have no prefix, and masks.
    let bare = load("gpt2").into_iter().map(|(name, tensor)| (name.replace("transformer.", ""), tensor));
    let mask = Tensor::zeros((1, 1, 512, 512), candle_core::DType::U8, &Device::Cpu).expect("a mask");
    let bare = bare.chain([("h.0.attn.bias".to_owned(), mask)]).collect();
    let forms =
        [(stacked::NAME, stacked::tensors()), ("qwen3_5-tied", only_head), ("qwen3_5", guessing), ("gpt2", bare)];
    for (name, tensors) in forms {
        let changed = directory(name, &tensors);
        let [one, other] = ["one.gguf", "other.gguf"].map(|file| changed.path().join(file));
        convert(&fixture(name), &one, None);
        convert(changed.path(), &other, None);
        let [one, other] = [one, other].map(|path| Gguf::open(&path).expect("a good file"));
        let bytes = |gguf: &Gguf| -> HashMap<String, Vec<u8>> {
            let of = |tensor| gguf.tensor_bytes(tensor).expect("is read").to_vec();
            gguf.tensors().map(|(name, tensor)| (name.to_owned(), of(tensor))).collect()
        };
        assert!(bytes(&one) == bytes(&other), "{name}");
    }
}

#[test]
fn a_block_that_guesses_further_tokens_is_not_loaded_and_takes_nothing() {
    let name = "qwen3_5";
    let folder = tempfile::tempdir().expect("a directory");
    let (plain, guessing) = (folder.path().join("plain.gguf"), folder.path().join("guessing.gguf"));
    convert(&fixture(name), &plain, None);
    let mut file = File::open(&plain).expect("is there");
    let content = gguf_file::Content::read(&mut file).expect("is read");
    let mut tensors = HashMap::new();
    for name in content.tensor_infos.keys() {
        tensors.insert(name.clone(), content.tensor(&mut file, name, &Device::Cpu).expect("is read"));
    }
    for (new, of) in [("blk.5.nextn.eh_proj.weight", "output.weight"), ("blk.5.attn_norm.weight", "output_norm.weight")]
    {
        tensors.insert(new.to_owned(), content.tensor(&mut file, of, &Device::Cpu).expect("is read"));
    }
    let mut metadata = content.metadata;
    metadata.insert("qwen35.block_count".into(), gguf_file::Value::U32(6));
    metadata.insert("qwen35.nextn_predict_layers".into(), gguf_file::Value::U32(1));
    // Files without the list of layers go by the interval, which these layers have too.
    metadata.remove("qwen35.attention.recurrent_layers").expect("is there");
    let metadata: Vec<_> = metadata.iter().map(|(key, value)| (key.as_str(), value)).collect();
    let tensors: Vec<_> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    gguf_file::write(&mut File::create(&guessing).expect("is made"), &metadata, &tensors).expect("is written");

    let [one, other] = [plain, guessing].map(|path| {
        let gguf = std::sync::Arc::new(Gguf::open(&path).expect("a good file"));
        let config = ModelConfig::from_gguf(&gguf).expect("metadata");
        let facts = KeepOptions::default().facts(&config, &GgufSource::new(gguf).expect("tensors").headers());
        (config.num_hidden_layers, facts, last_logits(load_gguf(&path, name, Dtype::Float32), name))
    });
    assert!(one == other, "{:?} {:?}", (one.0, one.1), (other.0, other.1));
}

#[test]
fn weights_that_are_drawn_are_all_that_a_model_loads() {
    for name in WITH_STATES.into_iter().chain(["llama", "mistral", "mistral3-vision", "qwen2", "qwen3"]) {
        let config = config(name);
        let drawn = || SeededSource::new(1, tensor_shapes(&config));
        let model = load_weights(&Weights::new(Box::new(drawn())), &config, Dtype::Auto);
        assert_eq!(model.info().num_parameters, load_model(name, Dtype::Auto).info().num_parameters, "{name}");
        let ids = tokens(&[1, 5, 9, 200, 31, 77, 4]);
        let mut driver = Driver::new(model);
        let logits = driver.all_logits(&ids, 3);
        assert!(logits.iter().flatten().all(|x| x.is_finite()), "{name}");
        assert!(logits == driver.all_logits(&ids, 7), "{name}: chunks differ");
    }
}
