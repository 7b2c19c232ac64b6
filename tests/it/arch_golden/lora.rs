//! Adapters against PEFT's results on the same small checkpoints, and against themselves whoever is in the batch.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use candlewick::{
    config::{Dtype, EngineConfig, LoraArgs},
    engine::{
        Adapters, Engine, Event, ExecutorFactory, Health, ModelInfo, ModelText, Prompt, Request,
        fake::Gate,
        runner::{Runner, RunnerConfig},
    },
    error::{Code, Error},
    params::{SampledToken, SamplingParams},
    server::ServeOptions,
    telemetry::Telemetry,
};
use futures::StreamExt;
use safetensors::{Dtype as Kind, SafeTensors, serialize, tensor::TensorView};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    grpc::Server,
    openai::http::{get, post, post_with},
    place::repository,
};

use super::{
    crowd::{Gated, log_softmax},
    driver::{golden, load_model, tokens},
};

/// Adapters of the fixtures, and the checkpoints that they stand beside.
const ADAPTERS: [(&str, &str); 7] = [
    ("llama-all", "llama"),
    ("llama-rslora", "llama"),
    ("qwen3-all", "qwen3"),
    ("phi3-fused", "phi3"),
    ("qwen3_5-all", "qwen3_5"),
    ("qwen3_next-states", "qwen3_next"),
    ("gpt_neox-all", "gpt_neox"),
];
/// Tokens that the reference generated.
const STEPS: usize = 16;

#[derive(Deserialize)]
struct Golden {
    prompts: Vec<GoldenPrompt>,
}

#[derive(Deserialize)]
struct GoldenPrompt {
    ids: Vec<u32>,
    last_logits: Vec<f32>,
    greedy: Vec<u32>,
}

fn fixture(name: &str) -> PathBuf {
    repository("tests/fixtures/lora").join(name)
}

fn reference(name: &str) -> Golden {
    serde_json::from_str(&fs::read_to_string(fixture(name).join("golden.json")).unwrap()).unwrap()
}

fn args(max_loras: usize) -> LoraArgs {
    let (enable_lora, allow_runtime_lora_updating) = (true, true);
    LoraArgs { enable_lora, allow_runtime_lora_updating, max_loras, ..LoraArgs::default() }
}

/// What an engine is made of that begins when the gate opens, with these adapters loaded.
fn parts(
    checkpoint: &str,
    dtype: Dtype,
    adapters: &[&str],
    max_loras: usize,
    gate: &Arc<Gate>,
) -> (ModelInfo, EngineConfig, ExecutorFactory) {
    let (model, gate) = (load_model(checkpoint, dtype), gate.clone());
    let loaded = Adapters::new(model.clone(), &args(max_loras));
    for name in adapters {
        loaded.load(name, &fixture(name), "fake").unwrap();
    }
    let info = ModelInfo { vocab_size: model.config().vocab_size, adapters: loaded, ..crate::engine::info() };
    let (kv_groups, prefixes_are_shared) = (model.info().kv_groups, model.prefixes_are_shared());
    let num_blocks = 128 * kv_groups.count();
    let factory: ExecutorFactory = Arc::new(move || {
        let config = RunnerConfig {
            num_blocks,
            block_size: 16,
            num_states: 16,
            num_threads: 2,
            eos_token_ids: Vec::new(),
            filled_steps: None,
        };
        Ok(Box::new(Gated { runner: Runner::new(model.clone(), &config)?, gate: gate.clone() }))
    });
    let config = EngineConfig {
        block_size: 16,
        num_blocks,
        kv_groups,
        max_num_batched_tokens: 64,
        max_num_seqs: 32,
        max_model_len: 384,
        prefixes_are_shared,
        ..EngineConfig::default()
    };
    (info, config, factory)
}

async fn start(checkpoint: &str, dtype: Dtype, adapters: &[&str], max_loras: usize, gate: &Arc<Gate>) -> Engine {
    let (info, config, factory) = parts(checkpoint, dtype, adapters, max_loras, gate);
    Engine::start(info, ModelText::default(), config, Arc::new(Telemetry::new("lora")), factory).await.unwrap()
}

/// What `model` (or the model itself) says after `ids`, and how many of them the prefix cache had.
async fn said(engine: Engine, model: Option<&'static str>, ids: Vec<u32>) -> Result<(Vec<SampledToken>, u32), Error> {
    let params = SamplingParams {
        temperature: 0.0,
        max_tokens: Some(STEPS as u32),
        ignore_eos: true,
        logprobs: Some(20),
        ..SamplingParams::default()
    };
    let model = model.map(str::to_owned);
    let request = Request { model, params, ..Request::new(Prompt::Tokens(tokens(&ids))) };
    let mut stream = engine.generate(request).await?;
    let (mut sampled, mut cached) = (Vec::new(), 0);
    while let Some(event) = stream.next().await {
        match event? {
            Event::Delta(delta) => sampled.extend(delta.tokens),
            Event::Finished(finished) => cached = finished.usage.cached_tokens,
            _ => {}
        }
    }
    Ok((sampled, cached))
}

fn ids(sampled: &[SampledToken]) -> Vec<u32> {
    sampled.iter().map(|token| token.id.0).collect()
}

fn open() -> Arc<Gate> {
    let gate = Arc::new(Gate::default());
    gate.open();
    gate
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_adapters_logits_and_tokens_are_those_of_peft() {
    for (name, checkpoint) in ADAPTERS {
        let engine = start(checkpoint, Dtype::Float32, &[name], 1, &open()).await;
        for prompt in reference(name).prompts {
            let (sampled, _) = said(engine.clone(), Some(name), prompt.ids.clone()).await.unwrap();
            assert_eq!(ids(&sampled), prompt.greedy, "{name}, {} ids", prompt.ids.len());
            let reference = log_softmax(&prompt.last_logits);
            for (id, logprob) in &sampled[0].logprobs.as_ref().unwrap().top {
                let far = (f64::from(*logprob) - reference[id.index()]).abs();
                assert!(far < 2e-4, "{name}, {} ids, token {id}: {far:e} away", prompt.ids.len());
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn base_and_two_adapters_in_one_batch_say_bit_for_bit_what_each_says_alone() {
    let names = ["llama-all", "llama-rslora"];
    let models = [None, Some(names[0]), Some(names[1])];
    for dtype in [Dtype::Float32, Dtype::Bfloat16] {
        let prompts = golden("llama").prompts;
        let gate = Arc::new(Gate::default());
        let engine = start("llama", dtype, &names, 2, &gate).await;
        let asked: Vec<_> = prompts.iter().flat_map(|prompt| models.map(|model| (model, prompt.ids.clone()))).collect();
        let streams: Vec<_> =
            asked.iter().map(|(model, ids)| tokio::spawn(said(engine.clone(), *model, ids.clone()))).collect();
        crate::engine::until("all are there", || engine.num_live() == streams.len()).await;
        gate.open();
        for (stream, (model, ids)) in streams.into_iter().zip(asked) {
            let (mixed, _) = stream.await.unwrap().unwrap();
            let alone = start("llama", dtype, &names, 2, &open()).await;
            let (alone, _) = said(alone, model, ids.clone()).await.unwrap();
            assert_eq!(mixed, alone, "{model:?}, {} ids, {dtype:?}", ids.len());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_prefix_cache_is_apart_for_each_adapter() {
    let names = ["llama-all", "llama-rslora"];
    let engine = start("llama", Dtype::Float32, &names, 2, &open()).await;
    let base = golden("llama").prompts.remove(2);
    let wanted = [Some(names[0]), Some(names[1]), None].map(|model| {
        let greedy =
            model.map_or_else(|| base.greedy[..STEPS].to_vec(), |name| reference(name).prompts[2].greedy.clone());
        (model, greedy)
    });
    for round in 0..2 {
        for (model, greedy) in &wanted {
            let (sampled, cached) = said(engine.clone(), *model, base.ids.clone()).await.unwrap();
            assert_eq!(ids(&sampled), *greedy, "{model:?}");
            assert_eq!(cached, round * 32, "{model:?}: two blocks of 16, computed by itself in the first round");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unloaded_adapter_serves_those_under_way_and_nobody_new() {
    let gate = Arc::new(Gate::default());
    let engine = start("llama", Dtype::Float32, &["llama-all"], 1, &gate).await;
    let adapters = engine.info().adapters.clone();
    let prompt = reference("llama-all").prompts.remove(1);
    let stream = tokio::spawn(said(engine.clone(), Some("llama-all"), prompt.ids.clone()));
    // In line, and not only on its way there: its adapter is its own by then.
    let in_line = || engine.loads().tenants.iter().any(|tenant| tenant.running + tenant.waiting > 0);
    crate::engine::until("it is there", in_line).await;
    engine.tell_adapters();
    let page = engine.telemetry().encode();
    let told: Vec<_> = page.lines().filter(|line| line.starts_with("vllm:lora_requests_info{")).collect();
    assert!(told.len() == 1 && told[0].contains("max_lora=\"1\""), "{told:?}");
    assert!(told[0].contains("_lora_adapters=\"llama-all\""), "it runs or waits: {told:?}");
    adapters.unload("llama-all").unwrap();
    let gone = said(engine.clone(), Some("llama-all"), prompt.ids.clone()).await.unwrap_err();
    assert_eq!(gone.code, Code::NotFound);
    assert_eq!(adapters.unload("llama-all").unwrap_err().code, Code::NotFound);
    // Another under its name would be a second one in memory.
    let full = adapters.load("llama-all", &fixture("llama-rslora"), "fake").unwrap_err();
    assert_eq!(full.code, Code::ResourceExhausted);
    assert!(full.message.contains("1 more are still in use"), "{full}");
    gate.open();
    assert_eq!(ids(&stream.await.unwrap().unwrap().0), prompt.greedy);
    crate::engine::until("the last has let go", || {
        adapters.load("llama-all", &fixture("llama-rslora"), "fake").is_ok()
    })
    .await;
    let other = reference("llama-rslora").prompts.remove(1);
    let (sampled, cached) = said(engine.clone(), Some("llama-all"), other.ids.clone()).await.unwrap();
    assert_eq!((ids(&sampled), cached), (other.greedy, 0), "another adapter by the same name has a cache of its own");
}

#[tokio::test]
async fn an_adapter_that_only_a_life_that_was_given_up_holds_counts_no_more() {
    let gate = Arc::new(Gate::default());
    let engine = start("llama", Dtype::Float32, &["llama-all"], 1, &gate).await;
    let adapters = engine.info().adapters.clone();
    let prompt = reference("llama-all").prompts.remove(1);
    let stream = tokio::spawn(said(engine.clone(), Some("llama-all"), prompt.ids.clone()));
    crate::engine::until("the step hangs", || gate.reached()).await;
    // The clock leaps while nothing but the hanging step is computed.
    tokio::time::pause();
    assert_eq!(stream.await.unwrap().unwrap_err().code, Code::Internal);
    tokio::time::resume();
    let back = || *engine.health().borrow() == Health::Serving;
    crate::engine::until("the engine is back", back).await;
    // The thread is still there, and holds what it held.
    adapters.unload("llama-all").unwrap();
    adapters.load("llama-all", &fixture("llama-all"), "fake").unwrap();
    gate.open();
    let (sampled, _) = said(engine, Some("llama-all"), prompt.ids).await.unwrap();
    assert_eq!(ids(&sampled), prompt.greedy);
}

/// A copy of an adapter with another configuration and other tensors.
fn changed(
    name: &str,
    config: impl FnOnce(&mut Value),
    tensors: impl Fn(String, Vec<usize>, Vec<u8>) -> Option<(String, Vec<usize>, Vec<u8>)>,
) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let text = fs::read_to_string(fixture(name).join("adapter_config.json")).unwrap();
    let mut value = serde_json::from_str(&text).unwrap();
    config(&mut value);
    fs::write(directory.path().join("adapter_config.json"), value.to_string()).unwrap();
    let bytes = fs::read(fixture(name).join("adapter_model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let all = file.tensors().into_iter();
    let kept: Vec<_> = all.filter_map(|(name, t)| tensors(name, t.shape().to_vec(), t.data().to_vec())).collect();
    let views = kept
        .iter()
        .map(|(name, shape, bytes)| (name.as_str(), TensorView::new(Kind::F32, shape.clone(), bytes).unwrap()));
    fs::write(directory.path().join("adapter_model.safetensors"), serialize(views, None).unwrap()).unwrap();
    directory
}

#[test]
fn a_bad_adapter_is_refused_by_the_name_of_what_is_wrong() {
    let adapters = Adapters::new(load_model("llama", Dtype::Float32), &args(4));
    let refused = |directory: &Path| {
        let error = adapters.load("bad", directory, "fake").unwrap_err();
        assert_eq!(error.code, Code::FailedPrecondition, "{error}");
        (error.violations[0].field.clone(), error.message)
    };
    type Tensor = (String, Vec<usize>, Vec<u8>);
    let same = |name: String, shape: Vec<usize>, bytes: Vec<u8>| -> Option<Tensor> { Some((name, shape, bytes)) };
    let fields: [(&str, Value, &str); 10] = [
        ("r", json!(99), "--max-lora-rank 16"),
        ("r", json!(0), "above 0"),
        ("r", json!("4"), "above 0"),
        ("lora_alpha", json!(null), "number"),
        ("use_dora", json!(true), "not served"),
        ("modules_to_save", json!(["lm_head"]), "lm_head"),
        ("bias", json!("all"), "not served"),
        ("rank_pattern", json!({"q_proj": 2}), "not served"),
        ("peft_type", json!("IA3"), "LORA"),
        ("init_lora_weights", json!("pissa_niter_4"), "model's own weights"),
    ];
    for (field, value, says) in fields {
        let directory = changed("llama-all", |config| config[field] = value, same);
        let (at, message) = refused(directory.path());
        assert!(at == field && message.contains(says), "{field}: {message}");
    }

    let q = "base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight";
    let other = |change: fn(Tensor) -> Option<Tensor>| {
        let change = move |name: String, shape, bytes| {
            if name == q { change((name, shape, bytes)) } else { Some((name, shape, bytes)) }
        };
        changed("llama-all", |_| (), change)
    };
    type Change = fn(Tensor) -> Option<Tensor>;
    let cases: [(Change, &str); 4] = [
        (|_| None, "is missing"),
        (|(name, shape, bytes)| Some((name, vec![shape[1], shape[0]], bytes)), "has shape [4, 64]"),
        (|(name, shape, bytes)| Some((name, shape, f32::NAN.to_le_bytes().repeat(bytes.len() / 4))), "not finite"),
        (|(_, shape, bytes)| Some(("base_model.model.lm_head.lora_A.weight".into(), shape, bytes)), "for no Linear"),
    ];
    for (change, says) in cases {
        let (at, message) = refused(other(change).path());
        let tensor = if says == "for no Linear" { "base_model.model.lm_head.lora_A.weight" } else { q };
        assert!(at == format!("tensor {tensor}") && message.contains(says), "{message}");
    }

    // Finite in the file, and not times lora_alpha / r.
    let scaled = changed(
        "llama-all",
        |config| config["lora_alpha"] = json!(64),
        |name, shape, bytes| {
            let bytes = if name == q { f32::MAX.to_le_bytes().repeat(bytes.len() / 4) } else { bytes };
            Some((name, shape, bytes))
        },
    );
    let (at, message) = refused(scaled.path());
    assert!(at == format!("tensor {q}") && message.contains("not finite"), "{message}");

    // Rank 8 by its tensors, 4 by its configuration; another model's; no weights, a cut file, nothing at all.
    let (at, _) = refused(changed("llama-rslora", |config| config["r"] = json!(4), same).path());
    assert!(at.ends_with("q_proj.lora_A.weight"), "{at}");
    let (at, _) = refused(&fixture("phi3-fused"));
    assert!(at.starts_with("tensor base_model.model.model.layers.0."), "{at}");
    let directory = changed("llama-all", |_| (), same);
    let file = directory.path().join("adapter_model.safetensors");
    let whole = fs::read(&file).unwrap();
    fs::write(&file, &whole[..whole.len() / 2]).unwrap();
    refused(directory.path());
    fs::remove_file(&file).unwrap();
    assert_eq!(refused(directory.path()).0, "adapter_model.safetensors");
    refused(&directory.path().join("nothing"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_adapter_whose_results_overflow_ends_its_own_streams_alone() {
    let gate = Arc::new(Gate::default());
    let engine = start("llama", Dtype::Float32, &[], 1, &gate).await;
    // Each number is finite, and what comes of multiplying with them is not.
    let huge =
        |name, shape, bytes: Vec<u8>| Some((name, shape, (f32::MAX / 4.0).to_le_bytes().repeat(bytes.len() / 4)));
    let directory = changed("llama-all", |_| (), huge);
    engine.info().adapters.load("huge", directory.path(), "fake").unwrap();
    let prompt = golden("llama").prompts.remove(1);
    let [well, overflows] =
        [None, Some("huge")].map(|model| tokio::spawn(said(engine.clone(), model, prompt.ids.clone())));
    let in_line = || engine.loads().tenants.iter().map(|tenant| tenant.running + tenant.waiting).sum::<usize>();
    crate::engine::until("both are in line", || in_line() == 2).await;
    gate.open();
    assert_eq!(overflows.await.unwrap().unwrap_err().code, Code::Internal);
    assert_eq!(ids(&well.await.unwrap().unwrap().0), prompt.greedy[..STEPS]);

    // Log-probabilities of the prompt come of the same logits.
    let params = SamplingParams { prompt_logprobs: Some(1), max_tokens: Some(1), ..SamplingParams::default() };
    let model = Some("huge".to_owned());
    let request = Request { model, params, ..Request::new(Prompt::Tokens(tokens(&prompt.ids))) };
    let events: Vec<_> = engine.generate(request).await.unwrap().collect().await;
    assert!(matches!(events.last(), Some(Err(error)) if error.code == Code::Internal), "{events:?}");
    assert_eq!(ids(&said(engine.clone(), None, prompt.ids).await.unwrap().0), prompt.greedy[..STEPS]);
    let restarts = "candlewick:engine_restarts_total{model_name=\"lora\"} 0";
    assert!(engine.telemetry().encode().contains(restarts), "the engine went on in its first life");
}

#[test]
fn names_and_numbers_of_adapters_have_bounds() {
    let adapters = Adapters::new(load_model("llama", Dtype::Float32), &args(2));
    let directory = fixture("llama-all");
    for name in ["", "a\nb", "fake", &"x".repeat(257)] {
        let error = adapters.load(name, &directory, "fake").unwrap_err();
        assert_eq!((error.code, error.violations[0].field.as_str()), (Code::InvalidArgument, "lora_name"), "{name}");
    }
    adapters.load("a", &directory, "fake").unwrap();
    assert_eq!(adapters.load("a", &directory, "fake").unwrap_err().code, Code::InvalidArgument);
    adapters.load("b", &directory, "fake").unwrap();
    assert_eq!(adapters.load("c", &directory, "fake").unwrap_err().code, Code::ResourceExhausted);
    adapters.unload("a").unwrap();
    adapters.load("c", &directory, "fake").unwrap();
    assert_eq!(adapters.list().into_iter().map(|(name, _)| name).collect::<Vec<_>>(), ["b", "c"]);
    assert_eq!(Adapters::default().load("a", &directory, "fake").unwrap_err().code, Code::FailedPrecondition);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn adapters_come_and_go_over_http_and_are_models_there() {
    let (info, config, factory) = parts("llama", Dtype::Float32, &[], 1, &open());
    let server = Server::with(info, ModelText::default(), config, factory, ServeOptions::default()).await;
    let load = json!({"lora_name": "sql", "lora_path": fixture("llama-all")}).to_string();
    // It reads directories: not for pages, and not for whom a proxy lets in.
    for header in ["origin: http://localhost", "x-forwarded-for: 10.0.0.1"] {
        let headers = format!("content-type: application/json\r\n{header}\r\n");
        for path in ["/v1/load_lora_adapter", "/v1/unload_lora_adapter"] {
            assert_eq!(post_with(server.address, path, &headers, &load).await.status, 403, "{path} {header}");
        }
    }
    let answer = post(server.address, "/v1/load_lora_adapter", &load).await;
    assert_eq!((answer.status, answer.text().await.contains("'sql' added")), (200, true));
    assert_eq!(post(server.address, "/v1/load_lora_adapter", &load).await.status, 400);
    let models = get(server.address, "/v1/models").await.json().await;
    let facts = |at: usize| (models["data"][at]["id"].clone(), models["data"][at]["parent"].clone());
    assert_eq!([facts(0), facts(1)], [(json!("fake"), Value::Null), (json!("sql"), json!("fake"))]);
    let one = get(server.address, "/v1/models/sql").await.json().await;
    assert_eq!(one["parent"], "fake");

    let prompt = reference("llama-all").prompts.remove(1);
    let body = json!({
        "model": "sql", "prompt": prompt.ids, "max_tokens": STEPS, "temperature": 0, "ignore_eos": true,
        "logprobs": 1, "return_tokens_as_token_ids": true,
    });
    let said = post(server.address, "/v1/completions", &body.to_string()).await.json().await;
    let names: Vec<_> = prompt.greedy.iter().map(|id| format!("token_id:{id}")).collect();
    assert_eq!((&said["model"], &said["choices"][0]["logprobs"]["tokens"]), (&json!("sql"), &json!(names)), "{said}");

    let unload = json!({"lora_name": "sql"}).to_string();
    assert_eq!(post(server.address, "/v1/unload_lora_adapter", &unload).await.status, 200);
    assert_eq!(post(server.address, "/v1/unload_lora_adapter", &unload).await.status, 404);
    assert_eq!(post(server.address, "/v1/completions", &body.to_string()).await.status, 404);
}
