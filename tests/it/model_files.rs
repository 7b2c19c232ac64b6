//! Real model files: that their tensors and metadata are read as they were written.

use std::path::PathBuf;

use candlewick::weights::{
    TensorSource,
    gguf::{Gguf, GgufSource},
    safetensors::SafetensorsSource,
};

use crate::place::repository;

/// A path in the folder of shared data (`CANDLEWICK_SHARED`, by default `../shared` beside the crate), if it is there.
pub(crate) fn shared(path: &str) -> Option<PathBuf> {
    let default = || repository("../shared");
    let folder = std::env::var_os("CANDLEWICK_SHARED").map_or_else(default, PathBuf::from);
    let found = folder.join(path);
    if !found.exists() {
        eprintln!("SKIPPED: {} is not there; set CANDLEWICK_SHARED to the folder of shared data", found.display());
    }
    found.exists().then_some(found)
}

#[test]
fn a_trained_gguf_file_gives_its_metadata_and_tensors() {
    let Some(path) = shared("data/checkpoints/stories260K/stories260K.gguf") else { return };
    let gguf = Gguf::open(&path).expect("a good file");
    assert_eq!(gguf.string("general.architecture").expect("a string"), Some("llama"));
    assert_eq!(gguf.u64("llama.block_count").expect("a number"), Some(5));
    assert_eq!(gguf.array_strings("tokenizer.ggml.tokens").expect("strings").expect("is there").count(), 512);
    assert_eq!(gguf.array_f32("tokenizer.ggml.scores").expect("floats").expect("is there").len(), 512);
    assert_eq!(gguf.token_id("tokenizer.ggml.padding_token_id").expect("a token or none"), None);
    let source = GgufSource::new(gguf.into()).expect("a llama");
    let shape = |name: &str| source.get(name).map(|tensor| tensor.shape);
    assert_eq!(shape("model.embed_tokens.weight"), Some(vec![512, 64]));
    assert_eq!(shape("model.layers.4.self_attn.k_proj.weight"), Some(vec![32, 64]));
    assert_eq!(shape("model.layers.0.mlp.down_proj.weight"), Some(vec![64, 172]));
    for name in source.names() {
        let tensor = source.get(&name).expect("is listed");
        assert_eq!(Some(tensor.bytes.len()), tensor.format.bytes_for(tensor.shape.iter().product()), "{name}");
    }
}

#[test]
fn vocabulary_only_gguf_files_open() {
    let Some(folder) = shared("data/vocab") else { return };
    for entry in folder.read_dir().expect("a folder").map(|entry| entry.expect("an entry").path()) {
        if entry.extension().is_some_and(|extension| extension == "gguf") {
            let gguf = Gguf::open(&entry).unwrap_or_else(|error| panic!("{error}"));
            let tokens = gguf.array_strings("tokenizer.ggml.tokens").unwrap_or_else(|error| panic!("{error}"));
            let types = gguf.array_i64("tokenizer.ggml.token_type").unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(tokens.map(|tokens| tokens.count()), types.map(|types| types.len()));
        }
    }
}

#[test]
fn safetensors_of_the_golden_models_open() {
    let Some(folder) = shared("golden") else { return };
    for model in ["llama", "llama3-rope", "mistral", "qwen2", "qwen3"] {
        let source = SafetensorsSource::open(&folder.join(model)).unwrap_or_else(|error| panic!("{error}"));
        assert!(source.contains("model.embed_tokens.weight"), "{model}");
        for name in source.names() {
            let tensor = source.get(&name).expect("is listed");
            assert_eq!(Some(tensor.bytes.len()), tensor.format.bytes_for(tensor.shape.iter().product()), "{name}");
        }
    }
}
