//! Families that run through candle-transformers: their logits against another implementation's, and whole generations through
//! the engine, where each sequence has a copy of the model.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use candlewick::{
    arch::long_tail::{FAMILIES, LongTail},
    config::{Dtype, EngineConfig, KvCacheDtype, LoraArgs, ModelArgs, Quantization},
    engine::{
        EmbedInput, EmbedOptions, EmbedRequest, Engine, Event, ExecutorFactory, ModelImpl, ModelText, Prompt, Request,
        executor::{Executor, StepOutput, StepPlan},
        fake::Gate,
        load::{LoadedModel, ServedModel, load, load_planned},
        runner::{Runner, RunnerConfig},
    },
    error::{Code, Result},
    ids::TokenId,
    params::SamplingParams,
    telemetry::Telemetry,
};
use futures::StreamExt;
use serde::Deserialize;

use crate::place::repository;

/// A fixture, and how far its logits may be from the reference's.
const FIXTURES: [(&str, f64); 18] = [
    ("falcon", NEAR),
    // The module computes GELU by tanh, the model does not.
    ("falcon-erf", 3e-3),
    ("phi", NEAR),
    ("olmo", NEAR),
    ("gemma", NEAR),
    ("helium", NEAR),
    ("qwen2_moe", NEAR),
    ("gpt_bigcode", NEAR),
    ("deepseek_v2", NEAR),
    ("granitemoehybrid", NEAR),
    ("chatglm", NEAR),
    ("lfm2", NEAR),
    ("recurrent_gemma", NEAR),
    ("mamba", NEAR),
    ("mamba2", NEAR),
    ("rwkv5", NEAR),
    ("rwkv6", NEAR),
    ("rwkv7", NEAR),
];
const NEAR: f64 = 1e-4;

/// One of each kind: keys and values that can be cloned, that stand outside, that are built anew; states alone and beside them.
const KINDS: [&str; 6] = ["olmo", "falcon", "granitemoehybrid", "gpt_bigcode", "recurrent_gemma", "mamba"];

#[derive(Deserialize)]
struct Golden {
    prompts: Vec<GoldenPrompt>,
}

#[derive(Deserialize)]
struct GoldenPrompt {
    ids: Vec<u32>,
    last_logits: Vec<f32>,
    argmax: Vec<u32>,
    greedy: Vec<u32>,
}

fn fixture(name: &str) -> PathBuf {
    repository("tests/fixtures/long_tail").join(name)
}

fn prompts(name: &str) -> Vec<GoldenPrompt> {
    let text = std::fs::read_to_string(fixture(name).join("golden.json")).unwrap();
    serde_json::from_str::<Golden>(&text).unwrap().prompts
}

fn args(name: &str) -> ModelArgs {
    ModelArgs { model: Some(fixture(name).display().to_string()), ..ModelArgs::default() }
}

fn loaded(name: &str) -> LoadedModel {
    load(&args(name), None, &mut |_| ()).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn model(name: &str) -> Arc<LongTail> {
    match loaded(name).model {
        ServedModel::Copied(model) => model,
        ServedModel::Paged(_) => panic!("{name} is a model of ours"),
    }
}

fn tokens(ids: &[u32]) -> Vec<TokenId> {
    ids.iter().copied().map(TokenId).collect()
}

fn argmax(logits: &[f32]) -> u32 {
    let best = logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
    best.map(|(k, _)| k as u32).unwrap()
}

/// ‖out − reference‖ / ‖reference‖
fn distance(out: &[f32], reference: &[f32]) -> f64 {
    assert_eq!(out.len(), reference.len());
    let squares = |numbers: &mut dyn Iterator<Item = f64>| numbers.map(|x| x * x).sum::<f64>();
    let apart = squares(&mut out.iter().zip(reference).map(|(o, r)| f64::from(*o) - f64::from(*r)));
    (apart / squares(&mut reference.iter().map(|r| f64::from(*r)))).sqrt()
}

/// The logits of the last token of each piece, through one copy.
fn logits(model: &LongTail, pieces: &[&[TokenId]]) -> Vec<Vec<f32>> {
    let mut copy = model.copy().unwrap();
    pieces.iter().map(|piece| copy.forward(piece).unwrap().to_vec1().unwrap()).collect()
}

#[test]
fn every_family_has_a_fixture() {
    let architectures: Vec<_> = FIXTURES.map(|(name, _)| loaded(name).info.architecture).to_vec();
    for family in FAMILIES {
        let same = |family: &str| family.replace("ForConditionalGeneration", "Model");
        assert!(architectures.contains(&same(family.architecture)), "{}", family.architecture);
    }
}

#[test]
fn the_documentation_has_a_row_for_every_family() {
    let text = include_str!("../../docs/long-tail.md");
    for family in FAMILIES {
        let row = text.lines().find(|line| line.contains(&format!("`{}`", family.architecture)));
        let row = row.unwrap_or_else(|| panic!("{} has no row", family.architecture));
        assert!(row.contains(&format!("`{}`", family.module)), "{row}");
    }
}

#[test]
fn logits_are_the_references_whole_and_in_pieces_and_token_by_token() {
    for (name, near) in FIXTURES {
        let model = model(name);
        for prompt in prompts(name) {
            let ids = tokens(&prompt.ids);
            let each = logits(&model, &ids.chunks(1).collect::<Vec<_>>());
            let ways = [
                ("whole", logits(&model, &[&ids]).pop().unwrap()),
                ("in pieces", logits(&model, &ids.chunks(5).collect::<Vec<_>>()).pop().unwrap()),
                ("token by token", each[ids.len() - 1].clone()),
            ];
            for (way, last) in ways {
                let far = distance(&last, &prompt.last_logits);
                eprintln!("{name}, {} tokens {way}: {far:.1e} away", ids.len());
                assert!(far < near, "{name}, {} tokens {way}: {far:e} away", ids.len());
            }
            if near == NEAR {
                let best: Vec<_> = each.iter().map(|logits| argmax(logits)).collect();
                assert_eq!(best, prompt.argmax, "{name}, {} tokens", ids.len());
            }
        }
    }
}

#[test]
fn copies_share_weights_and_know_nothing_of_each_other() {
    for name in KINDS {
        let (model, prompts) = (model(name), prompts(name));
        let (one, other) = (tokens(&prompts[2].ids), tokens(&prompts[3].ids));
        let alone = logits(&model, &[&one]);
        let (mut first, mut second) = (model.copy().unwrap(), model.copy().unwrap());
        second.forward(&other).unwrap();
        let beside = first.forward(&one).unwrap().to_vec1::<f32>().unwrap();
        assert!(beside == alone[0], "{name}");
        assert_eq!((first.num_tokens(), second.num_tokens()), (one.len(), other.len()));
    }
}

/// A runner that begins when the gate opens, and tells how many copies there are and were at most.
struct Watched {
    runner: Runner,
    gate: Arc<Gate>,
    copies: Arc<[AtomicUsize; 2]>,
}

impl Executor for Watched {
    fn submit(&mut self, plan: &StepPlan) -> Result<()> {
        self.gate.wait();
        self.runner.submit(plan)?;
        let copies = self.runner.num_copies();
        self.copies[0].store(copies, Ordering::Relaxed);
        self.copies[1].fetch_max(copies, Ordering::Relaxed);
        Ok(())
    }

    fn collect(&mut self) -> Result<StepOutput> {
        self.runner.collect()
    }
}

/// Six blocks of sixteen tokens for four sequences, whose prompts and answers take more.
fn config() -> EngineConfig {
    EngineConfig {
        block_size: 16,
        num_blocks: 6,
        max_num_batched_tokens: 21,
        max_num_seqs: 4,
        max_model_len: 160,
        enable_prefix_caching: false,
        prefixes_are_shared: false,
        ..EngineConfig::default()
    }
}

struct Server {
    engine: Engine,
    gate: Arc<Gate>,
    copies: Arc<[AtomicUsize; 2]>,
}

async fn start(name: &str) -> Server {
    let (loaded, gate, copies) = (loaded(name), Arc::new(Gate::default()), Arc::new([0, 0].map(AtomicUsize::new)));
    let ServedModel::Copied(model) = loaded.model else { panic!("{name} is a model of ours") };
    let (the_gate, the_copies) = (gate.clone(), copies.clone());
    let factory: ExecutorFactory = Arc::new(move || {
        let config = RunnerConfig {
            num_blocks: 6,
            block_size: 16,
            num_states: 0,
            num_threads: 2,
            eos_token_ids: Vec::new(),
            filled_steps: None,
        };
        let runner = Runner::with_copies(model.clone(), &config)?;
        Ok(Box::new(Watched { runner, gate: the_gate.clone(), copies: the_copies.clone() }))
    });
    let telemetry = Arc::new(Telemetry::new(name));
    let engine = Engine::start(loaded.info, ModelText::default(), config(), telemetry, factory).await.unwrap();
    Server { engine, gate, copies }
}

fn greedy(max_tokens: u32) -> SamplingParams {
    SamplingParams { temperature: 0.0, max_tokens: Some(max_tokens), ignore_eos: true, ..SamplingParams::default() }
}

/// The tokens of each of a request's sequences.
async fn read(engine: Engine, ids: Vec<u32>, params: SamplingParams) -> Vec<Vec<u32>> {
    let mut sequences = vec![Vec::new(); params.n as usize];
    let request = Request { params, ..Request::new(Prompt::Tokens(tokens(&ids))) };
    let mut stream = engine.generate(request).await.unwrap();
    while let Some(event) = stream.next().await {
        if let Event::Delta(delta) = event.unwrap() {
            sequences[delta.index as usize].extend(delta.tokens.iter().map(|token| token.id.0));
        }
    }
    sequences
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crowd_on_a_cache_too_small_for_it_gets_the_references_tokens() {
    for name in KINDS {
        let Server { engine, gate, copies } = start(name).await;
        let prompts = prompts(name);
        let streams = (0..5 * prompts.len()).map(|k| {
            let params = SamplingParams { n: 1 + (k % 3) as u32 % 2, ..greedy(16) };
            tokio::spawn(read(engine.clone(), prompts[k % prompts.len()].ids.clone(), params))
        });
        let streams: Vec<_> = streams.collect();
        crate::engine::until("the crowd is there", || engine.num_live() > streams.len()).await;
        gate.open();
        for (k, stream) in streams.into_iter().enumerate() {
            for tokens in stream.await.unwrap() {
                assert_eq!(tokens, prompts[k % prompts.len()].greedy, "{name}, prompt {}", k % prompts.len());
            }
        }
        let totals = engine.telemetry().totals();
        assert!(totals.preemptions > 0, "{name}: nobody was preempted, so this shows nothing of it");
        assert_eq!((totals.prefix_cache_hit_tokens, totals.block_copies), (0, 0), "{name}");
        let most = copies[1].load(Ordering::Relaxed);
        assert!((2..=4).contains(&most), "{name}: {most} copies for four rows");
        crate::engine::until("every copy is gone", || copies[0].load(Ordering::Relaxed) == 0).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_goes_away_takes_its_copy_along() {
    let Server { engine, gate, copies } = start("mamba").await;
    gate.open();
    let request = Request { params: greedy(90), ..Request::new(Prompt::Tokens(tokens(&[5, 6, 7]))) };
    let mut stream = engine.generate(request).await.unwrap();
    while !matches!(stream.next().await.unwrap().unwrap(), Event::Delta(_)) {}
    // The reader takes nothing more, so its sequence is there until it goes.
    crate::engine::until("it has a copy", || copies[0].load(Ordering::Relaxed) == 1).await;
    drop(stream);
    crate::engine::until("the copy is gone", || copies[0].load(Ordering::Relaxed) == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prompts_log_probabilities_are_those_of_its_logits() {
    for name in ["olmo", "rwkv5"] {
        let Server { engine, gate, .. } = start(name).await;
        gate.open();
        let prompt = prompts(name).remove(2);
        let ids = tokens(&prompt.ids);
        let params = SamplingParams { prompt_logprobs: Some(0), ..greedy(1) };
        let mut stream =
            engine.generate(Request { params, ..Request::new(Prompt::Tokens(ids.clone())) }).await.unwrap();
        let mut given = Vec::new();
        while let Some(event) = stream.next().await {
            if let Event::Prompt(part) = event.unwrap() {
                assert_eq!(part.start as usize, given.len() + 1);
                given.extend(part.tokens);
            }
        }
        let each = logits(&model(name), &ids.chunks(1).collect::<Vec<_>>());
        assert_eq!(given.len(), ids.len() - 1, "{name}");
        for ((token, id), before) in given.iter().zip(&ids[1..]).zip(&each) {
            let sum = before.iter().map(|&x| f64::from(x).exp()).sum::<f64>();
            let far = f64::from(token.logprobs.as_ref().unwrap().chosen) - (f64::from(before[id.index()]) - sum.ln());
            assert!(token.id == *id && far.abs() < 1e-4, "{name}: {far:e} away");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hidden_states_are_refused_before_they_are_wanted() {
    let Server { engine, gate, .. } = start("olmo").await;
    gate.open();
    let request = EmbedRequest {
        options: EmbedOptions { pooling: Some(candlewick::params::Pooling::Last), ..EmbedOptions::default() },
        ..EmbedRequest::new(vec![EmbedInput::Tokens(tokens(&[5, 6]))])
    };
    let error = engine.embed(request).await.expect_err("refused");
    assert_eq!(error.code, Code::Unimplemented);
    assert_eq!(read(engine, vec![5, 6], greedy(2)).await[0].len(), 2, "and the engine goes on");
}

#[test]
fn what_clients_and_the_engine_are_told_of_such_a_model() {
    let mut facts = None;
    let (loaded, ()) = load_planned(
        &args("recurrent_gemma"),
        None,
        |told| {
            facts = Some(*told);
            Ok(())
        },
        &mut |_| (),
    )
    .unwrap();
    let (facts, info) = (facts.unwrap(), loaded.info);
    assert_eq!((info.model_impl, info.pooling, info.dtype.as_str()), (ModelImpl::CandleTransformers, None, "float32"));
    // One of three layers attends; a head of 16 numbers, keys and values, four bytes each.
    assert_eq!((facts.prefixes_are_shared, facts.kv_bytes_per_token), (false, 2 * 16 * 4));
    // The others keep a state and three columns of a convolution.
    assert_eq!(facts.state_bytes_per_sequence, 2 * 64 * 4 * 4);
    assert_eq!(facts.weight_bytes as u64, info.weight_bytes);
    assert_eq!(facts.max_position_embeddings, 256, "as far as its window");
}

#[test]
fn numbers_and_adapters_that_such_a_model_cannot_have_are_refused_by_their_flag() {
    let base = args("olmo");
    let refused = [
        ("--dtype", ModelArgs { dtype: Dtype::Bfloat16, ..base.clone() }),
        ("--quantization", ModelArgs { quantization: Some(Quantization::Q8_0), ..base.clone() }),
        ("--kv-cache-dtype", ModelArgs { kv_cache_dtype: KvCacheDtype::Fp8, ..base.clone() }),
        ("--load-format", ModelArgs { load_format: candlewick::config::LoadFormat::Dummy, ..base.clone() }),
    ];
    for (flag, args) in refused {
        let error = load(&args, None, &mut |_| ()).err().expect(flag);
        assert_eq!(error.code, Code::InvalidArgument, "{error}");
        assert!(error.message.starts_with(flag), "{error}");
    }
    let mut served = loaded("olmo");
    assert!(served.serve_adapters(&LoraArgs::default()).is_ok());
    let error = served.serve_adapters(&LoraArgs { enable_lora: true, ..LoraArgs::default() }).unwrap_err();
    assert!(error.message.starts_with("--enable-lora"), "{error}");
}

#[test]
fn a_file_that_asks_for_what_a_module_does_not_do_is_refused_by_the_field() {
    let cases = [
        ("falcon", "alibi", "true"),
        ("falcon", "new_decoder_architecture", "true"),
        ("phi", "qk_layernorm", "true"),
        ("gpt_bigcode", "multi_query", "false"),
        ("deepseek_v2", "topk_method", "\"group_limited_greedy\""),
        ("granitemoehybrid", "layer_types", "[\"mamba\", \"attention\"]"),
        ("granitemoehybrid", "position_embedding_type", "\"nope\""),
        ("olmo", "rope_scaling", "{\"type\": \"linear\", \"factor\": 2.0}"),
        ("mamba", "state_size", "32"),
        ("mamba2", "num_heads", "7"),
        ("mamba2", "n_groups", "2"),
        ("rwkv6", "head_size", "48"),
        ("lfm2", "layer_types", "[\"conv\"]"),
        ("recurrent_gemma", "hidden_size", "0"),
    ];
    for (name, field, value) in cases {
        let directory = tempfile::tempdir().unwrap();
        std::fs::copy(fixture(name).join("model.safetensors"), directory.path().join("model.safetensors")).unwrap();
        let text = std::fs::read_to_string(fixture(name).join("config.json")).unwrap();
        let mut config: serde_json::Value = serde_json::from_str(&text).unwrap();
        config[field] = serde_json::from_str(value).unwrap();
        std::fs::write(directory.path().join("config.json"), config.to_string()).unwrap();
        let args = ModelArgs { model: Some(directory.path().display().to_string()), ..ModelArgs::default() };
        let error = load(&args, None, &mut |_| ()).err().unwrap_or_else(|| panic!("{name}: {field}"));
        assert_eq!(error.code, Code::FailedPrecondition, "{name}: {error}");
        assert!(error.message.contains(field), "{name}: {error}");
    }
}

#[test]
fn a_tensor_that_is_missing_or_misshapen_is_named() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::copy(fixture("olmo").join("model.safetensors"), directory.path().join("model.safetensors")).unwrap();
    let text = std::fs::read_to_string(fixture("olmo").join("config.json")).unwrap();
    for (field, value, tensor) in [
        ("num_hidden_layers", 3, "model.layers.2.self_attn.q_proj.weight"),
        ("vocab_size", 300, "model.embed_tokens.weight"),
    ] {
        let mut config: serde_json::Value = serde_json::from_str(&text).unwrap();
        config[field] = value.into();
        std::fs::write(directory.path().join("config.json"), config.to_string()).unwrap();
        let args = ModelArgs { model: Some(directory.path().display().to_string()), ..ModelArgs::default() };
        let error = load(&args, None, &mut |_| ()).err().unwrap();
        assert_eq!(error.code, Code::FailedPrecondition, "{error}");
        assert!(error.message.contains(tensor), "{error}");
    }
}
