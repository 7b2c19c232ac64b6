//! What recurrent layers keep of sequences, through the whole engine: whose it is, and when it is given back.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use candlewick::{
    config::{Dtype, EngineConfig},
    engine::{
        Engine, Event, ExecutorFactory, ModelInfo, ModelText, Prompt, Request,
        executor::{Executor, StepOutput, StepPlan},
        runner::{Runner, RunnerConfig},
    },
    error::Result,
    params::SamplingParams,
    telemetry::Telemetry,
};
use futures::StreamExt;

use super::driver::{golden, load_model, tokens};

const NAME: &str = "qwen3_5";

/// A runner that says how many states are taken.
struct Watched {
    runner: Runner,
    taken: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
}

impl Executor for Watched {
    fn submit(&mut self, plan: &StepPlan) -> Result<()> {
        let submitted = self.runner.submit(plan);
        let taken = self.runner.num_states();
        self.taken.store(taken, Ordering::SeqCst);
        self.most.fetch_max(taken, Ordering::SeqCst);
        submitted
    }

    fn collect(&mut self) -> Result<StepOutput> {
        self.runner.collect()
    }
}

struct Started {
    engine: Engine,
    taken: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
}

async fn start(num_blocks: usize, max_num_seqs: usize) -> Started {
    let model = load_model(NAME, Dtype::Bfloat16);
    let info = ModelInfo { vocab_size: model.config().vocab_size, ..crate::engine::info() };
    let config = EngineConfig {
        block_size: 16,
        num_blocks,
        max_num_batched_tokens: 21,
        max_num_seqs,
        max_model_len: 128,
        prefixes_are_shared: model.prefixes_are_shared(),
        ..EngineConfig::default()
    };
    let runner = RunnerConfig {
        num_blocks,
        block_size: 16,
        num_states: max_num_seqs,
        num_threads: 2,
        eos_token_ids: Vec::new(),
        filled_steps: None,
    };
    let (taken, most) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
    let watch = (taken.clone(), most.clone());
    let factory: ExecutorFactory = Arc::new(move || {
        let (taken, most) = watch.clone();
        Ok(Box::new(Watched { runner: Runner::new(model.clone(), &runner)?, taken, most }))
    });
    let telemetry = Arc::new(Telemetry::new(NAME));
    let engine = Engine::start(info, ModelText::default(), config, telemetry, factory).await.unwrap();
    Started { engine, taken, most }
}

/// What each of two sequences of one request says, and how much of the prompt was cached.
async fn two(engine: &Engine, prompt: &[u32]) -> ([Vec<u32>; 2], u32) {
    let params = SamplingParams {
        n: 2,
        temperature: 1.5,
        seed: Some(11),
        max_tokens: Some(24),
        ignore_eos: true,
        ..SamplingParams::default()
    };
    let request = Request { params, ..Request::new(Prompt::Tokens(tokens(prompt))) };
    let mut stream = engine.generate(request).await.unwrap();
    let (mut said, mut cached) = (<[Vec<u32>; 2]>::default(), 0);
    while let Some(event) = stream.next().await {
        match event.unwrap() {
            Event::Delta(delta) => said[delta.index as usize].extend(delta.tokens.iter().map(|token| token.id.0)),
            Event::Finished(finished) => cached += finished.usage.cached_tokens,
            _ => {}
        }
    }
    (said, cached)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_answers_to_a_prompt_are_the_same_alone_and_in_a_crowd_that_takes_their_states_away() {
    let prompts = golden(NAME).prompts;
    let mut alone = Vec::new();
    for prompt in &prompts {
        let (said, cached) = two(&start(32, 2).await.engine, &prompt.ids).await;
        assert!(said.iter().all(|said| said.len() == 24) && said[0] != said[1], "{said:?}");
        assert_eq!(cached, 0);
        alone.push(said);
    }
    let Started { engine, taken, most } = start(11, 3).await;
    let crowd = (0..3 * prompts.len()).map(|k| {
        let (engine, ids) = (engine.clone(), prompts[k % prompts.len()].ids.clone());
        tokio::spawn(async move { two(&engine, &ids).await })
    });
    for (k, said) in crowd.collect::<Vec<_>>().into_iter().enumerate() {
        let (said, cached) = said.await.unwrap();
        assert_eq!((&said, cached), (&alone[k % prompts.len()], 0), "request {k}");
    }
    assert!(engine.telemetry().totals().preemptions > 0, "nobody lost a state, so this shows nothing of that");
    assert_eq!(most.load(Ordering::SeqCst), 3);
    crate::engine::until("every state is given back", || taken.load(Ordering::SeqCst) == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_nobody_reads_any_more_gives_its_state_back() {
    let Started { engine, taken, .. } = start(32, 2).await;
    let params = SamplingParams { max_tokens: Some(90), ignore_eos: true, ..SamplingParams::default() };
    let prompt = tokens(&golden(NAME).prompts[2].ids);
    let mut stream = engine.generate(Request { params, ..Request::new(Prompt::Tokens(prompt)) }).await.unwrap();
    while !matches!(stream.next().await.unwrap().unwrap(), Event::Delta(_)) {}
    assert_eq!(taken.load(Ordering::SeqCst), 1);
    drop(stream);
    crate::engine::until("the state is given back", || taken.load(Ordering::SeqCst) == 0).await;
}
