//! The checkpoints through the whole engine: a crowd on a cache so small that everything that can happen to a sequence
//! does, and every stream still gets the reference's tokens.

use std::{sync::Arc, time::Duration};

use candlewick::{
    arch::Model,
    config::{Dtype, EngineConfig, KvCacheGroups},
    engine::{
        Engine, Event, ExecutorFactory, Generation, ModelText, Prompt, Request,
        executor::{Executor, StepOutput, StepPlan},
        fake::Gate,
        runner::{FilledSteps, Runner, RunnerConfig},
    },
    error::Result,
    params::{SampledToken, SamplingParams},
    telemetry::Telemetry,
};
use futures::StreamExt;

use super::{
    CHECKPOINTS,
    driver::{golden, load_model, tokens},
};

/// A runner that begins when the gate opens, so that the whole crowd is there by then.
pub(super) struct Gated {
    pub(super) runner: Runner,
    pub(super) gate: Arc<Gate>,
}

impl Executor for Gated {
    fn submit(&mut self, plan: &StepPlan) -> Result<()> {
        self.gate.wait();
        self.runner.submit(plan)
    }

    fn collect(&mut self) -> Result<StepOutput> {
        self.runner.collect()
    }
}

fn config(kv_groups: KvCacheGroups) -> EngineConfig {
    EngineConfig {
        block_size: 16,
        num_blocks: 24 * kv_groups.count(),
        kv_groups,
        max_num_batched_tokens: 21,
        max_num_seqs: 16,
        max_model_len: 384,
        ..EngineConfig::default()
    }
}

async fn start(model: Arc<dyn Model>, filled_rows: usize, gate: &Arc<Gate>) -> Engine {
    let config = EngineConfig { max_cudagraph_capture_size: filled_rows, ..config(model.info().kv_groups) };
    start_with(config, model, gate.clone()).await
}

/// An engine of the model on a cache as the configuration says.
pub(super) async fn start_with(config: EngineConfig, model: Arc<dyn Model>, gate: Arc<Gate>) -> Engine {
    let info = candlewick::engine::ModelInfo { vocab_size: model.config().vocab_size, ..crate::engine::info() };
    let config = EngineConfig {
        prefixes_are_shared: model.prefixes_are_shared(),
        // A busy machine's steps take long: prompts must not wait for that, or a crowd never is one.
        itl_target: Some(Duration::from_secs(3600)),
        ..config
    };
    let &EngineConfig { num_blocks, block_size, max_num_seqs: num_states, max_model_len, .. } = &config;
    let most_rows = config.max_cudagraph_capture_size;
    let filled_steps = (most_rows > 0).then_some(FilledSteps { most_rows, max_model_len });
    let factory: ExecutorFactory = Arc::new(move || {
        let config = RunnerConfig {
            num_blocks,
            block_size,
            num_states,
            num_threads: 2,
            eos_token_ids: Vec::new(),
            filled_steps,
        };
        Ok(Box::new(Gated { runner: Runner::new(model.clone(), &config)?, gate: gate.clone() }))
    });
    Engine::start(info, ModelText::default(), config, Arc::new(Telemetry::new("crowd")), factory).await.unwrap()
}

/// Asks for 32 tokens after a prompt, each the most likely.
async fn ask(engine: &Engine, ids: &[u32]) -> Generation {
    let params = SamplingParams {
        temperature: 0.0,
        max_tokens: Some(32),
        ignore_eos: true,
        logprobs: Some(20),
        ..SamplingParams::default()
    };
    let request = Request { params, ..Request::new(Prompt::Tokens(tokens(ids))) };
    engine.generate(request).await.unwrap()
}

async fn all_of(mut stream: Generation) -> Vec<SampledToken> {
    let mut sampled = Vec::new();
    while let Some(event) = stream.next().await {
        if let Event::Delta(delta) = event.unwrap() {
            sampled.extend(delta.tokens);
        }
    }
    sampled
}

/// 32 tokens after a prompt, each the most likely.
pub(super) async fn read(engine: Engine, ids: Vec<u32>) -> Vec<SampledToken> {
    all_of(ask(&engine, &ids).await).await
}

/// What [`read`] gives for each prompt, of streams that are all there before the engine's gate opens. The first is in the first
/// step by itself and the others wait in this order, so that every run has the same steps.
pub(super) async fn read_together<'a>(
    engine: &Engine,
    gate: &Gate,
    prompts: impl Iterator<Item = &'a [u32]>,
) -> Vec<Vec<SampledToken>> {
    let mut streams = Vec::new();
    for ids in prompts {
        streams.push(tokio::spawn(all_of(ask(engine, ids).await)));
        crate::engine::until("the first step is there", || gate.reached()).await;
    }
    gate.open();
    futures::future::join_all(streams).await.into_iter().map(|said| said.unwrap()).collect()
}

/// `logits` as log-probabilities.
pub(super) fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let sum = logits.iter().map(|&x| f64::from(x).exp()).sum::<f64>();
    logits.iter().map(|&x| f64::from(x) - sum.ln()).collect()
}

/// Streams six of each prompt at once; gives each prompt's first token's log-probabilities and all its tokens.
async fn crowd(name: &str, dtype: Dtype) -> (Engine, Vec<(usize, Vec<SampledToken>)>) {
    crowd_of(name, load_model(name, dtype), 0).await
}

/// The same of this model, with steps of up to so many sequences filled up.
pub(super) async fn crowd_of(
    name: &str,
    model: Arc<dyn Model>,
    filled_rows: usize,
) -> (Engine, Vec<(usize, Vec<SampledToken>)>) {
    let gate = Arc::new(Gate::default());
    let engine = start(model, filled_rows, &gate).await;
    let prompts = golden(name).prompts;
    let of = |k| k % prompts.len();
    let crowd = 6 * prompts.len();
    let said = read_together(&engine, &gate, (0..crowd).map(|k| &prompts[of(k)].ids[..])).await;
    let sampled = said.into_iter().enumerate().map(|(k, tokens)| (of(k), tokens)).collect();
    (engine, sampled)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crowd_on_a_cache_too_small_for_it_gets_the_references_tokens() {
    for name in CHECKPOINTS {
        let (engine, sampled) = crowd(name, Dtype::Float32).await;
        let prompts = golden(name).prompts;
        for (k, tokens) in &sampled {
            let ids = tokens.iter().map(|token| token.id.0).collect::<Vec<_>>();
            assert_eq!(ids, prompts[*k].greedy, "{name}, prompt {k}");
            let reference = log_softmax(&prompts[*k].last_logits);
            for (id, logprob) in &tokens[0].logprobs.as_ref().unwrap().top {
                let far = (f64::from(*logprob) - reference[id.index()]).abs();
                assert!(far < 1e-3, "{name}, prompt {k}, token {id}: {far:e} away");
            }
        }
        let totals = engine.telemetry().totals();
        let events = [
            ("preemptions", totals.preemptions),
            ("prefix hits", totals.prefix_cache_hit_tokens),
            ("copies on write", totals.block_copies),
            ("evictions", totals.block_evictions),
        ];
        eprintln!("{name}: {events:?}");
        // Of a model that keeps states nothing is shared, so that nobody copies, and nothing is found again.
        let num_due = if engine.config().prefixes_are_shared { events.len() } else { 1 };
        for (event, count) in &events[..num_due] {
            assert!(*count > 0, "{name}: no {event} in this run, so it shows nothing of them");
        }
        crate::engine::until("every block is free again", || engine.telemetry().state().kv_cache_usage == 0.0).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_bfloat16_all_streams_of_a_prompt_agree_whatever_befell_them() {
    for name in CHECKPOINTS {
        let (engine, sampled) = crowd(name, Dtype::Bfloat16).await;
        assert!(engine.telemetry().totals().preemptions > 0);
        let prompts = golden(name).prompts.len();
        for (k, tokens) in &sampled[prompts..] {
            assert!(*tokens == sampled[*k].1, "{name}, prompt {k}: two streams differ");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_that_begin_alike_say_the_same_as_alone() {
    // Full attention, some layers with a window, and queries of one head each.
    for name in ["llama", "gemma2", "gpt2"] {
        let model = load_model(name, Dtype::Bfloat16);
        let config =
            || EngineConfig { num_blocks: 120 * model.info().kv_groups.count(), ..config(model.info().kv_groups) };
        let known: Vec<u32> = golden(name).prompts.iter().flat_map(|prompt| prompt.ids.clone()).collect();
        let beginning: Vec<u32> = known.iter().copied().cycle().take(150).collect();
        // Three go on alike for a while, and one ends before the others part.
        let mut prompts: Vec<_> = (0..8).map(|k| [&beginning[..], &known[k..k + 3]].concat()).collect();
        prompts.extend((0..3).map(|k| [&beginning[..100], &known[..40], &known[k..k + 1]].concat()));
        prompts.push(beginning[..70].to_vec());
        let gate = Arc::new(Gate::default());
        let engine = start_with(config(), model.clone(), gate.clone()).await;
        let together = read_together(&engine, &gate, prompts.iter().map(|ids| &ids[..])).await;
        let hits = engine.telemetry().totals().prefix_cache_hit_tokens;
        assert!(hits > 128 * 7, "{name}: {hits} tokens found, so too little was in common");
        for (k, (ids, said)) in prompts.into_iter().zip(together).enumerate() {
            let alone = start_with(config(), model.clone(), gate.clone()).await;
            assert!(read(alone, ids).await == said, "{name}: stream {k} says something else alone");
        }
    }
}
