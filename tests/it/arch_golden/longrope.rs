//! LongRoPE's two lists: which one a model goes by follows from how long its sequences may become where it is served.

use std::{fs, path::Path};

use candlewick::{
    config::{Dtype, EngineArgs, LoraArgs, MachineFacts, MemoryBound, ModelArgs},
    convert::Draft,
    engine::load::ModelSource,
    weights::{
        files::{ModelFiles, model_files},
        safetensors::SafetensorsSource,
    },
};
use clap::Parser;

use super::{
    crowd::{log_softmax, read},
    driver::{fixture, golden},
};

/// A checkpoint first trained at 128 tokens, whose context is 512. None of the reference's sequences is longer than 128, so
/// that the reference went by the short list.
const NAME: &str = "phi3-longrope-short";

/// The engine's limits of a command line.
#[derive(Parser)]
struct Limits {
    #[command(flatten)]
    engine: EngineArgs,
}

/// How far the first token's log-probabilities of all prompts are from the reference's at the most, and whether all greedy
/// tokens are its own, where the model at `path` is served with these flags.
async fn served(path: &Path, flags: &[&str]) -> (f64, bool) {
    let model = ModelArgs {
        model: Some(path.display().to_string()),
        dtype: Dtype::Float32,
        threads: Some(1),
        ..ModelArgs::default()
    };
    let flags = ["limits", "--max-num-seqs", "4"].iter().chain(flags);
    let engine = Limits::parse_from(flags).engine;
    let source = ModelSource { model, engine, lora: LoraArgs::default(), served_model_name: None, panic_after: None };
    let machine = MachineFacts { available_memory_bytes: Some(1 << 30), bound: MemoryBound::Machine };
    let engine = source.start(move |_| Ok(machine), None, |_| ()).await.unwrap().engine;
    let (mut far, mut same) = (0.0f64, true);
    for prompt in golden(NAME).prompts {
        let sampled = read(engine.clone(), prompt.ids).await;
        same &= sampled.iter().map(|token| token.id.0).eq(prompt.greedy);
        let reference = log_softmax(&prompt.last_logits);
        for (id, logprob) in &sampled[0].logprobs.as_ref().unwrap().top {
            far = far.max((f64::from(*logprob) - reference[id.index()]).abs());
        }
    }
    (far, same)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_served_no_longer_than_its_first_training_goes_by_the_short_list() {
    let folder = tempfile::tempdir().expect("a directory");
    let gguf = folder.path().join("model.gguf");
    let ModelFiles::Directory(files) = model_files(&fixture(NAME)).expect("a directory") else { panic!("is a file") };
    let source = SafetensorsSource::open(&files.path).expect("safetensors");
    let draft = Draft::from_directory(&files, &source).expect("is converted");
    draft.write(&gguf, None, &mut |_, _| ()).expect("is written");
    assert!(fs::metadata(&gguf).expect("is there").len() > 0);
    for path in [fixture(NAME), gguf] {
        // Asked for, or because the cache holds no more.
        for flags in [&["--max-model-len", "128"][..], &["--num-gpu-blocks-override", "8"]] {
            let (far, same) = served(&path, flags).await;
            assert!(far < 1e-3 && same, "{} {flags:?}: {far:e} away", path.display());
        }
        for flags in [&["--max-model-len", "129"][..], &[]] {
            let (far, _) = served(&path, flags).await;
            assert!(far > 1e-2, "{} {flags:?}: {far:e} away, so that the lists do not differ", path.display());
        }
    }
}
