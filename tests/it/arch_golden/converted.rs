//! The same checkpoints as GGUF files that `candlewick convert` writes, and as weights that are drawn.

use std::{collections::HashMap, fs, fs::File, path::Path};

use candle_core::{Device, Tensor, quantized::gguf_file, safetensors};
use candlewick::{
    arch::{KeepOptions, config::ModelConfig, shapes::tensor_shapes},
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

use super::{
    ROUTED,
    driver::{Driver, config, distance, fixture, load_model, load_weights, tokens},
    gguf::{last_logits, load_gguf},
    stacked,
};

/// Checkpoints that are converted.
const CONVERTED: [&str; 12] = [
    "llama",
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
];
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

        // Rows as they lie in the file, whatever order they are in.
        convert(&fixture(name), &path, Some(Mixture::Q8_0));
        let far = distance(&last_logits(load_gguf(&path, name, Dtype::Auto), name), &exact);
        assert!(far < 0.5 || ROUTED.contains(&name), "{name} in q8_0: {far:e} away");
    }
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
    for (name, tensors) in [(stacked::NAME, stacked::tensors()), ("qwen3_5-tied", only_head), ("qwen3_5", guessing)] {
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
fn weights_that_are_drawn_are_all_that_a_model_with_states_loads() {
    for name in WITH_STATES {
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
