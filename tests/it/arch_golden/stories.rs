//! Real trained weights with their tokenizer, out of one GGUF file; and the model inside the program.

use candlewick::{
    config::ModelArgs,
    engine::load::{LoadProgress, LoadedModel, load},
    ids::TokenId,
};

use super::driver::{Driver, fixture};
use crate::model_files::shared;

fn load_path(path: Option<&std::path::Path>) -> LoadedModel {
    let args = ModelArgs { model: path.map(|path| path.display().to_string()), ..ModelArgs::default() };
    let mut last = None;
    let loaded = load(&args, None, &mut |progress| last = Some(progress)).expect("a good model");
    let Some(LoadProgress::Loading { tensors, total }) = last else { panic!("no progress was told") };
    assert_eq!(tensors, total, "all of the file's tensors are loaded");
    loaded
}

#[test]
fn stories260k_tells_its_published_story() {
    let Some(path) = shared("data/checkpoints/stories260K/stories260K.gguf") else { return };
    let golden = std::fs::read_to_string(path.with_file_name("golden.json")).expect("golden.json");
    let golden = serde_json::from_str::<serde_json::Value>(&golden).expect("golden.json parses");
    let loaded = load_path(Some(&path));
    assert_eq!((loaded.info.name.as_str(), loaded.info.dtype.as_str()), ("stories260K", "float32"));
    assert_eq!((&loaded.info.eos_token_ids[..], loaded.info.bos_token_id), (&[TokenId(2)][..], Some(TokenId(1))));
    let tokenizer = loaded.text.tokenizer.expect("the file has a tokenizer");
    let prompt = tokenizer.encode("", true).expect("an empty text");
    assert_eq!(prompt, [TokenId(1)]);
    let story = Driver::new(loaded.model.paged().expect("a model of ours").clone())
        .greedy(&prompt, 256)
        .into_iter()
        .map(TokenId)
        .collect::<Vec<_>>();
    assert_eq!(tokenizer.decode(&story, true).trim(), golden["greedy_256_steps"].as_str().expect("a text"));
}

#[test]
fn a_directory_without_a_tokenizer_serves_ids_alone() {
    let loaded = load_path(Some(&fixture("qwen3")));
    assert!(loaded.text.tokenizer.is_none() && loaded.text.chat_template.is_none());
    assert_eq!((loaded.info.name.as_str(), loaded.info.model_type.as_str()), ("qwen3", "qwen3"));
    assert_eq!((loaded.info.architecture.as_str(), loaded.info.dtype.as_str()), ("Qwen3ForCausalLM", "bfloat16"));
    assert_eq!((&loaded.info.eos_token_ids[..], loaded.info.bos_token_id), (&[TokenId(2)][..], Some(TokenId(1))));
    // 2 × 3 layers × 2 heads × 32 × 2 bytes.
    assert_eq!(loaded.info.kv_bytes_per_token, 768);
}

#[test]
fn the_model_inside_the_program_runs_with_its_tokenizer() {
    let loaded = load_path(None);
    let tokenizer = loaded.text.tokenizer.expect("the demo has a tokenizer");
    assert!(loaded.text.chat_template.is_some());
    let text = "Any text, à la carte: 日本 🕯\n";
    let ids = tokenizer.encode(text, true).expect("bytes spell every text");
    assert_eq!(tokenizer.decode(&ids, true), text);
    let out = Driver::new(loaded.model.paged().expect("a model of ours").clone()).greedy(&ids, 8);
    assert!(out.iter().all(|id| (*id as usize) < loaded.info.vocab_size));
}
