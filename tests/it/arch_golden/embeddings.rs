//! Vectors through the whole engine: those of transformers, and the same bits however they are computed.

use std::{collections::HashMap, sync::Arc};

use candlewick::{
    config::{Dtype, EngineConfig, ModelArgs},
    engine::{
        EmbedInput, EmbedOptions, EmbedRequest, Embedding, Engine, ModelInfo, ModelText, Prompt, Request,
        load::load,
        runner::{Runner, RunnerConfig},
    },
    ids::TokenId,
    params::{Pooling, SamplingParams},
    telemetry::Telemetry,
};
use futures::StreamExt;

use super::{
    CHECKPOINTS,
    driver::{distance, fixture, golden, load_model, tokens},
};
use crate::place::repository;

/// Of the golden prompts, the one whose vectors are in the fixture.
const PROMPT: usize = 2;

async fn start(name: &str, dtype: Dtype, max_num_batched_tokens: usize, num_blocks: usize) -> Engine {
    let model = load_model(name, dtype);
    let (vocab_size, embedding_size) = (model.config().vocab_size, model.config().hidden_size);
    let info = ModelInfo { vocab_size, embedding_size, ..crate::engine::info() };
    let kv_groups = model.info().kv_groups;
    let num_blocks = num_blocks * kv_groups.count();
    let config = EngineConfig {
        block_size: 16,
        num_blocks,
        kv_groups,
        max_num_batched_tokens,
        max_num_seqs: 16,
        max_model_len: 128,
        prefixes_are_shared: model.prefixes_are_shared(),
        ..EngineConfig::default()
    };
    let runner = RunnerConfig {
        num_blocks,
        block_size: 16,
        num_states: 16,
        num_threads: 2,
        eos_token_ids: Vec::new(),
        filled_steps: None,
    };
    let factory = Arc::new(move || Ok(Box::new(Runner::new(model.clone(), &runner)?) as _));
    Engine::start(info, ModelText::default(), config, Arc::new(Telemetry::new(name)), factory).await.unwrap()
}

/// The vectors as they are, not normalized.
async fn embed(engine: &Engine, inputs: &[&[TokenId]], pooling: Pooling) -> Vec<Embedding> {
    let inputs = inputs.iter().map(|ids| EmbedInput::Tokens(ids.to_vec())).collect();
    let options = EmbedOptions { pooling: Some(pooling), normalize: false, ..EmbedOptions::default() };
    engine.embed(EmbedRequest { options, ..EmbedRequest::new(inputs) }).await.unwrap().embeddings
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn float32_vectors_are_the_references() {
    let fixture = repository("tests/fixtures/embeddings/embeddings.json");
    let fixture = std::fs::read_to_string(fixture).unwrap();
    let reference: HashMap<String, HashMap<String, Vec<f32>>> = serde_json::from_str(&fixture).unwrap();
    assert!(reference.len() >= 32, "{} checkpoints", reference.len());
    for name in CHECKPOINTS.into_iter().filter(|name| reference.contains_key(*name)) {
        let engine = start(name, Dtype::Float32, 21, 64).await;
        let ids = tokens(&golden(name).prompts[PROMPT].ids);
        for pooling in Pooling::ALL {
            let vector = embed(&engine, &[&ids], pooling).await.remove(0).values;
            let far = distance(&vector, &reference[name][pooling.name()]);
            assert!(far < 1e-4, "{name}, {}: {far:e} away", pooling.name());
        }
    }
}

/// The mean of vectors, added up in their order in float64.
fn mean(vectors: &[Embedding]) -> Vec<f32> {
    let mut sums = vec![0.0; vectors[0].values.len()];
    for vector in vectors {
        sums.iter_mut().zip(&vector.values).for_each(|(sum, &x)| *sum += f64::from(x));
    }
    sums.iter().map(|sum| (sum / vectors.len() as f64) as f32).collect()
}

/// Streams that decode as long as they are there.
async fn crowd(engine: &Engine, ids: &[TokenId]) -> Vec<tokio::task::JoinHandle<usize>> {
    let mut streams = Vec::new();
    for k in 0..4 {
        let params = SamplingParams { max_tokens: Some(40), ignore_eos: true, ..SamplingParams::default() };
        let request = Request { params, ..Request::new(Prompt::Tokens(ids[k..].to_vec())) };
        let stream = engine.generate(request).await.unwrap();
        streams.push(tokio::spawn(stream.count()));
    }
    streams
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mean_is_that_of_all_prefixes_and_the_same_bits_in_every_batch() {
    for (name, dtype) in ["llama", "qwen3", "gpt2", "gemma2", "qwen3_moe"]
        .into_iter()
        .flat_map(|name| [(name, Dtype::Float32), (name, Dtype::Bfloat16)])
    {
        let ids = tokens(&golden(name).prompts[PROMPT].ids);
        let prefixes: Vec<_> = (1..=ids.len()).map(|end| &ids[..end]).collect();
        // Alone, in one piece, on an empty cache.
        let alone = embed(&start(name, dtype, 256, 64).await, &[&ids], Pooling::Mean).await.remove(0);
        // In chunks of at most 7, on a cache too small for all, beside streams that decode.
        let engine = start(name, dtype, 7, 12).await;
        let streams = crowd(&engine, &ids).await;
        let last = embed(&engine, &prefixes, Pooling::Last).await;
        let means = embed(&engine, &[&ids, &ids[..9], &ids, &ids[..1]], Pooling::Mean).await;
        for stream in streams {
            assert!(stream.await.unwrap() > 2);
        }
        for (k, end) in [(0, ids.len()), (1, 9), (2, ids.len()), (3, 1)] {
            assert!(means[k].values == mean(&last[..end]), "{name} in {dtype:?}: mean of {end} tokens");
            assert_eq!(means[k].usage.cached_tokens, 0, "a mean needs all tokens");
        }
        assert!(means[0].values == alone.values, "{name} in {dtype:?}: differs from the mean alone");
        assert!(last.iter().any(|vector| vector.usage.cached_tokens > 0), "a last token needs no other once cached");
        crate::engine::until("every block is free again", || engine.telemetry().state().kv_cache_usage == 0.0).await;
    }
}

#[test]
fn a_directory_says_how_its_model_pools() {
    for (file, pooling) in [
        (None, Some(Pooling::Last)),
        (Some(r#"{"pooling_mode_mean_tokens": true}"#), Some(Pooling::Mean)),
        (Some(r#"{"pooling_mode_cls_token": true}"#), None),
    ] {
        let directory = tempfile::tempdir().unwrap();
        for name in ["config.json", "model.safetensors"] {
            std::fs::copy(fixture("llama").join(name), directory.path().join(name)).unwrap();
        }
        if let Some(text) = file {
            std::fs::create_dir(directory.path().join("1_Pooling")).unwrap();
            std::fs::write(directory.path().join("1_Pooling/config.json"), text).unwrap();
        }
        let model = Some(directory.path().display().to_string());
        let loaded = load(&ModelArgs { model, ..ModelArgs::default() }, None, &mut |_| ()).unwrap();
        assert_eq!((loaded.info.pooling, loaded.info.embedding_size), (pooling, 64), "{file:?}");
    }
}
