//! The engine behind its API, over an executor without arithmetic: streams, slow readers, cancellation, failure.

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use candlewick::{
    config::EngineConfig,
    engine::{
        EmbedInput, EmbedRequest, Engine, Event, ExecutorFactory, Generation, Health, ModelImpl, ModelInfo, ModelText,
        Progress, Prompt, Request, SlowReader, StreamEdit,
        fake::{EMBEDDING_SIZE, FakeExecutor, FakeOptions, Gate, Mishap},
        scheduler::Edit,
    },
    error::{Code, Error},
    ids::TokenId,
    params::{FinishReason, Pooling, SamplingParams},
    telemetry::Telemetry,
    text::{ChatMessage, Role},
};
use futures::StreamExt;

pub(crate) const VOCAB_SIZE: u32 = 1000;

/// What a served fake is called.
pub(crate) fn info() -> ModelInfo {
    ModelInfo {
        adapters: Default::default(),
        name: "fake".into(),
        path: String::new(),
        architecture: "FakeForCausalLM".into(),
        model_type: "fake".into(),
        vocab_size: VOCAB_SIZE as usize,
        embedding_size: EMBEDDING_SIZE,
        pooling: Some(Pooling::Last),
        eos_token_ids: Vec::new(),
        bos_token_id: None,
        model_impl: ModelImpl::default(),
        num_parameters: 0,
        block_parameters: 0,
        weight_bytes: 0,
        kv_bytes_per_token: 0,
        dtype: "float32".into(),
        weights_hash: "f00d".into(),
        default_params: SamplingParams::default(),
    }
}

/// A small engine's limits.
pub(crate) fn config() -> EngineConfig {
    EngineConfig {
        num_blocks: 256,
        max_num_batched_tokens: 64,
        max_num_seqs: 8,
        max_model_len: 1024,
        max_waiting: 64,
        stream_capacity_tokens: 16,
        ..EngineConfig::default()
    }
}

/// Fakes that behave; each life's options come from its number, counted from 0.
pub(crate) fn fakes(
    config: &EngineConfig,
    options: impl Fn(u64) -> FakeOptions + Send + Sync + 'static,
) -> ExecutorFactory {
    let (config, lives) = (config.clone(), AtomicU64::new(0));
    Arc::new(move || {
        let options = options(lives.fetch_add(1, Ordering::Relaxed));
        Ok(Box::new(FakeExecutor::new(&config, FakeOptions { vocab_size: VOCAB_SIZE, ..options })))
    })
}

/// An engine on fakes.
pub(crate) async fn engine(config: EngineConfig, factory: ExecutorFactory) -> Engine {
    Engine::start(info(), ModelText::default(), config, Arc::new(Telemetry::new("fake")), factory).await.unwrap()
}

async fn well() -> Engine {
    engine(config(), fakes(&config(), |_| FakeOptions::default())).await
}

/// Two engines on fakes: the second plans each step while the one before it is computed.
async fn each() -> [Engine; 2] {
    let fake = async |overlaps| {
        engine(config(), fakes(&config(), move |_| FakeOptions { overlaps, ..FakeOptions::default() })).await
    };
    [fake(false).await, fake(true).await]
}

fn prompt(seed: u32, length: u32) -> Vec<TokenId> {
    (0..length).map(|k| TokenId((seed.wrapping_mul(7919) + k * 31) % VOCAB_SIZE)).collect()
}

fn request(ids: &[TokenId], max_tokens: u32) -> Request {
    let params = SamplingParams { max_tokens: Some(max_tokens), ignore_eos: true, ..SamplingParams::default() };
    Request { params, ..Request::new(Prompt::Tokens(ids.to_vec())) }
}

/// The tokens of a stream, and how it ended.
async fn read(
    mut stream: impl StreamExt<Item = Result<Event, Error>> + Unpin,
) -> (Vec<TokenId>, Result<FinishReason, Error>) {
    let mut tokens = Vec::new();
    while let Some(event) = stream.next().await {
        match event {
            Ok(Event::Started(_) | Event::Prompt(_)) => {}
            Ok(Event::Delta(delta)) => tokens.extend(delta.tokens.iter().map(|token| token.id)),
            Ok(Event::Finished(finished)) => return (tokens, Ok(finished.reason)),
            Err(error) => return (tokens, Err(error)),
        }
    }
    (tokens, Err(Error::internal("the stream ended without an end")))
}

/// Waits for a condition that other threads bring about; fails after a minute.
pub(crate) async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let patience = async {
        while !holds() {
            tokio::task::yield_now().await;
        }
    };
    bounded(what, patience).await;
}

async fn bounded<T>(what: &str, wait: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), wait).await.unwrap_or_else(|_| panic!("never happened: {what}"))
}

/// As the newest step that was recorded tells it: before the first one was, everything looks idle.
fn idle(engine: &Engine) -> bool {
    let state = engine.telemetry().state();
    state.num_running == 0 && state.num_waiting == 0 && state.kv_cache_usage == 0.0
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_streams_at_once_each_give_what_they_give_alone() {
    for engine in each().await {
        let streams = (0..64).map(|k| {
            let engine = engine.clone();
            async move {
                let ids = prompt(k, 1 + k * 3);
                let (tokens, end) = read(engine.generate(request(&ids, 40)).await.unwrap()).await;
                assert_eq!(end.unwrap(), FinishReason::Length);
                assert_eq!(tokens, FakeExecutor::expected(VOCAB_SIZE, &ids, 40));
            }
        });
        bounded("64 streams", futures::future::join_all(streams)).await;
        until("everything is free again", || idle(&engine)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_does_not_read_leaves_the_batch_and_loses_nothing() {
    for engine in each().await {
        let ids = prompt(1, 20);
        let slow = engine.generate(request(&ids, 200)).await.unwrap();
        for k in 0..16 {
            let (tokens, end) = read(engine.generate(request(&prompt(k, 9), 100)).await.unwrap()).await;
            assert_eq!((tokens.len(), end.unwrap()), (100, FinishReason::Length));
        }
        let generated = engine.telemetry().generated_tokens();
        let most = 1600 + config().stream_capacity_tokens as u64;
        assert!(generated <= most, "{generated} tokens, past the slow one's room");
        let (tokens, end) = read(slow).await;
        assert_eq!(end.unwrap(), FinishReason::Length);
        assert_eq!(tokens, FakeExecutor::expected(VOCAB_SIZE, &ids, 200));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_stalls_too_long_is_aborted() {
    let config = EngineConfig { stall_timeout: Duration::from_millis(20), ..config() };
    let engine = engine(config.clone(), fakes(&config, |_| FakeOptions::default())).await;
    let slow = engine.generate(request(&prompt(1, 20), 200)).await.unwrap();
    until("the stalled stream's blocks are free", || engine.telemetry().generated_tokens() > 8 && idle(&engine)).await;
    let (tokens, end) = read(slow).await;
    assert_eq!(end.unwrap_err().code, Code::Aborted);
    assert_eq!(
        tokens,
        FakeExecutor::expected(VOCAB_SIZE, &prompt(1, 20), tokens.len()),
        "what was computed is not lost"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_is_to_be_cut_off_is_cut_off_as_soon_as_it_does_not_keep_up() {
    let engine = well().await;
    let mut asked = request(&prompt(1, 20), 200);
    asked.stream.slow_reader = SlowReader::Abort;
    let slow = engine.generate(asked).await.unwrap();
    // In this order: before it has begun the engine is idle too.
    until("its blocks are free", || engine.telemetry().generated_tokens() > 8 && idle(&engine)).await;
    let (tokens, end) = read(slow).await;
    assert_eq!(end.unwrap_err().code, Code::Aborted);
    // What a step had under way when it was cut off does not count.
    let capacity = config().stream_capacity_tokens;
    assert!((capacity - 1..=capacity).contains(&tokens.len()), "{} tokens", tokens.len());
    assert_eq!(tokens, FakeExecutor::expected(VOCAB_SIZE, &prompt(1, 20), tokens.len()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_coalescing_reader_falls_further_behind_and_gets_what_waits_in_one_piece() {
    let engine = well().await;
    let ids = prompt(1, 20);
    let mut asked = request(&ids, 200);
    asked.stream.slow_reader = SlowReader::Coalesce;
    let mut slow = engine.generate(asked).await.unwrap();
    until("all is generated", || engine.telemetry().generated_tokens() == 200 && idle(&engine)).await;
    let mut deltas = Vec::new();
    while let Some(event) = slow.next().await {
        if let Event::Delta(delta) = event.unwrap() {
            deltas.push(delta.tokens.iter().map(|token| token.id).collect::<Vec<_>>());
        }
    }
    assert_eq!(deltas.concat(), FakeExecutor::expected(VOCAB_SIZE, &ids, 200));
    assert!(deltas.len() <= 2, "{} pieces", deltas.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dropping_a_stream_frees_it_whatever_it_was_doing() {
    for engine in each().await {
        for round in 0..200_usize {
            // Beyond the rows there are, so that some wait; long prompts, so that some are in prefill.
            let mut streams = Vec::new();
            for k in 0..12 {
                streams.push(engine.generate(request(&prompt(k, 1 + 70 * (k % 3)), 100)).await.unwrap());
            }
            for (k, stream) in streams.iter_mut().enumerate() {
                for _ in 0..(round + k) % 4 {
                    bounded("an event", stream.next()).await.unwrap().unwrap();
                }
            }
            drop(streams);
        }
        until("everything is free again", || idle(&engine)).await;
        engine.begin_drain();
        bounded("no request is under way", engine.drained()).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_queue_refuses_before_anything_is_computed_and_recovers() {
    let engine = well().await;
    let mut streams = Vec::new();
    for k in 0..(config().max_num_seqs + config().max_waiting) as u32 {
        streams.push(engine.generate(request(&prompt(k, 5), 500)).await.unwrap());
    }
    let refused = engine.generate(request(&prompt(0, 5), 5)).await.err().unwrap();
    assert_eq!(refused.code, Code::ResourceExhausted);
    assert!(refused.retry_after.is_some());
    assert_eq!(engine.telemetry().refused(Code::ResourceExhausted), 1);
    // A place is free once the engine, too, has let go of its sequence.
    streams.pop();
    let admitted = async {
        while engine.generate(request(&prompt(0, 5), 5)).await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    bounded("a place is free again", admitted).await;
}

#[tokio::test(start_paused = true)]
async fn a_deadline_that_passes_ends_the_stream_and_frees_it() {
    let gate = Arc::new(Gate::default());
    let held = gate.clone();
    let engine = engine(
        config(),
        fakes(&config(), move |_| FakeOptions {
            mishap: Some((3, Mishap::Hang(held.clone()))),
            ..FakeOptions::default()
        }),
    )
    .await;
    let deadline = Some(tokio::time::Instant::now() + Duration::from_millis(50));
    let stream = engine.generate(Request { deadline, ..request(&prompt(1, 5), 100) }).await.unwrap();
    let (_, end) = read(stream).await;
    assert_eq!(end.unwrap_err().code, Code::DeadlineExceeded);
    gate.open();
    until("everything is free again", || idle(&engine)).await;

    let late = Request { deadline, ..request(&prompt(1, 5), 100) };
    assert_eq!(engine.generate(late).await.err().unwrap().code, Code::DeadlineExceeded);
}

/// Starts an engine whose first life meets with `mishap` and shows that its streams end and the next life serves.
/// `met` and `back` are called between the two: when all streams are under way, and when the next life is there.
async fn survives(
    overlaps: bool,
    mishap: impl Fn() -> Mishap + Send + Sync + 'static,
    met: impl AsyncFnOnce(),
    back: impl FnOnce(),
) -> Engine {
    let engine = engine(
        config(),
        fakes(&config(), move |life| FakeOptions {
            mishap: (life == 0).then(|| (5, mishap())),
            overlaps,
            ..FakeOptions::default()
        }),
    )
    .await;
    let mut health = engine.health();
    assert_eq!(*health.borrow_and_update(), Health::Serving);
    let mut streams = Vec::new();
    for k in 0..20 {
        match engine.generate(request(&prompt(k, 5), 500)).await {
            Ok(stream) => streams.push(stream),
            // The mishap came first.
            Err(error) => assert_eq!(error.code, Code::Unavailable),
        }
    }
    met().await;
    for (k, stream) in streams.into_iter().enumerate() {
        match read(stream).await.1 {
            Err(error) => {
                assert_eq!(error.code, Code::Internal);
                assert!(!error.message.contains("panic"), "what failed inside is not a client's to know: {error}");
            }
            Ok(end) => assert!(k > 0 && end == FinishReason::Length, "the first stream meets with the mishap"),
        }
    }
    while *health.borrow_and_update() != Health::Serving {
        health.changed().await.unwrap();
    }
    back();
    assert!(engine.telemetry().encode().contains("candlewick:engine_restarts_total{model_name=\"fake\"} 1"));
    let ids = prompt(3, 17);
    let (tokens, end) = read(engine.generate(request(&ids, 30)).await.unwrap()).await;
    assert_eq!(end.unwrap(), FinishReason::Length);
    assert_eq!(tokens, FakeExecutor::expected(VOCAB_SIZE, &ids, 30));
    engine
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_panic_in_the_engine_ends_its_streams_and_the_engine_comes_back() {
    for overlaps in [false, true] {
        bounded("the engine survives", survives(overlaps, || Mishap::Panic, async || {}, || {})).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_executor_that_fails_ends_its_streams_and_the_engine_comes_back() {
    for overlaps in [false, true] {
        bounded("the engine survives", survives(overlaps, || Mishap::Fail, async || {}, || {})).await;
    }
}

#[tokio::test]
async fn a_step_that_hangs_ends_its_streams_and_the_engine_comes_back() {
    for overlaps in [false, true] {
        let gate = Arc::new(Gate::default());
        let held = gate.clone();
        // The clock leaps only while nothing but the hanging step is computed: it would give a step up whose thread waits
        // for a core.
        let met = async || {
            until("the step hangs", || gate.reached()).await;
            tokio::time::pause();
        };
        let engine = survives(overlaps, move || Mishap::Hang(held.clone()), met, tokio::time::resume).await;
        // The thread that was given up wakes and goes, without a word to anybody.
        gate.open();
        let ids = prompt(4, 9);
        let (tokens, _) = read(engine.generate(request(&ids, 30)).await.unwrap()).await;
        assert_eq!(tokens, FakeExecutor::expected(VOCAB_SIZE, &ids, 30));
    }
}

/// Fakes of which the first panics in its first step, and the next is not made before the gate is opened.
pub(crate) fn fails_once(gate: &Arc<Gate>) -> ExecutorFactory {
    let (waits, lives) = (gate.clone(), AtomicU64::new(0));
    let make = fakes(&config(), |life| FakeOptions {
        mishap: (life == 0).then_some((0, Mishap::Panic)),
        ..FakeOptions::default()
    });
    Arc::new(move || {
        if lives.fetch_add(1, Ordering::Relaxed) > 0 {
            waits.wait();
        }
        make()
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_engine_that_nobody_has_any_more_has_no_further_life() {
    for comes_back in [true, false] {
        // Held as a model is: by whatever could make another life.
        let (gate, model) = (Arc::new(Gate::default()), Arc::new(()));
        let (make, held, lives) = (fails_once(&gate), model.clone(), AtomicU64::new(0));
        let factory: ExecutorFactory = Arc::new(move || {
            let (_held, made) = (&held, make()?);
            let is_first = lives.fetch_add(1, Ordering::Relaxed) == 0;
            if is_first || comes_back { Ok(made) } else { Err(Error::internal("it does not come back")) }
        });
        let engine = engine(config(), factory).await;
        let (_, end) = read(engine.generate(request(&prompt(1, 9), 5)).await.unwrap()).await;
        assert_eq!(end.unwrap_err().code, Code::Internal);
        until("the next life is being made", || gate.reached()).await;
        drop(engine);
        gate.open();
        until("nothing holds the model", || Arc::strong_count(&model) == 1).await;
    }
}

/// An engine whose first step hangs, with a stream that it hangs over. The clock stands still.
async fn hanging(config: EngineConfig) -> (Engine, Arc<Gate>) {
    let gate = Arc::new(Gate::default());
    let held = gate.clone();
    let hangs = move |life| FakeOptions {
        mishap: (life == 0).then(|| (0, Mishap::Hang(held.clone()))),
        ..FakeOptions::default()
    };
    let engine = engine(config.clone(), fakes(&config, hangs)).await;
    let stream = engine.generate(request(&prompt(1, 5), 5)).await.unwrap();
    tokio::spawn(read(stream));
    until("the step hangs", || gate.reached()).await;
    tokio::time::pause();
    (engine, gate)
}

#[tokio::test]
async fn who_waits_for_an_answer_of_a_life_that_is_given_up_hears_that_it_was() {
    let (engine, gate) = hanging(EngineConfig { step_timeout: Duration::from_secs(5), ..config() }).await;
    let quote = tokio::spawn({
        let engine = engine.clone();
        async move { engine.quote(request(&prompt(2, 5), 5)).await.map(drop) }
    });
    let mut flush = std::pin::pin!(engine.flush_cache());
    assert!(futures::poll!(flush.as_mut()).is_pending(), "the engine hangs");
    // Both have asked before the clock leaps: it does so where nobody has anything to do.
    let flushed = bounded("the life is given up", flush).await;
    assert_eq!(flushed.unwrap_err().code, Code::Unavailable);
    assert_eq!(bounded("the life is given up", quote).await.unwrap().unwrap_err().code, Code::Unavailable);
    tokio::time::resume();
    gate.open();
}

#[tokio::test]
async fn who_asks_whether_a_deadline_can_be_met_waits_no_longer_than_it() {
    let (engine, gate) = hanging(config()).await;
    // A second a token: only what is cached could be there in time, and the engine does not say what is.
    engine.rates().record_step(Duration::from_secs(100), 100, 0);
    let began = tokio::time::Instant::now();
    let deadline = Some(began + Duration::from_secs(50));
    let refused = engine.generate(Request { deadline, ..request(&prompt(2, 100), 5) }).await.err().unwrap();
    assert_eq!((refused.code, began.elapsed().as_secs()), (Code::DeadlineExceeded, 50), "{refused}");
    tokio::time::resume();
    gate.open();
}

#[test]
fn a_call_for_vectors_is_tokenized_on_a_thread_of_its_own() {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().max_blocking_threads(1).build().unwrap();
    runtime.block_on(async {
        let engine = well().await;
        let gate = Arc::new(Gate::default());
        let held = gate.clone();
        let blocker = tokio::task::spawn_blocking(move || held.wait());
        // Nothing but a look at the inputs can tell that one is wrong.
        let wrong = EmbedInput::Tokens(vec![TokenId(VOCAB_SIZE)]);
        let mut call = std::pin::pin!(engine.embed(EmbedRequest::new(vec![wrong])));
        assert!(futures::poll!(call.as_mut()).is_pending(), "the only thread for it is taken");
        gate.open();
        blocker.await.unwrap();
        let error = call.await.unwrap_err();
        assert_eq!(error.violations[0].field, "inputs[0].token_ids[0]");
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn draining_refuses_new_requests_and_finishes_those_under_way() {
    let engine = well().await;
    let ids = prompt(1, 5);
    let stream = engine.generate(request(&ids, 100)).await.unwrap();
    engine.begin_drain();
    assert_eq!(*engine.health().borrow(), Health::Draining);
    let refused = engine.generate(request(&ids, 5)).await.err().unwrap();
    assert_eq!(refused.code, Code::Unavailable);
    assert!(refused.retry_after.is_some());
    let (tokens, end) = read(stream).await;
    assert_eq!((tokens.len(), end.unwrap()), (100, FinishReason::Length));
    bounded("no request is under way", engine.drained()).await;
}

#[tokio::test]
async fn bad_requests_are_refused_by_the_field_that_is_bad() {
    let engine = well().await;
    let ids = prompt(1, 5);
    let with = |change: fn(&mut SamplingParams)| {
        let mut request = request(&ids, 5);
        change(&mut request.params);
        request
    };
    let cases = [
        ("prompt", request(&[], 5)),
        ("prompt.token_ids[1]", request(&[TokenId(1), TokenId(VOCAB_SIZE)], 5)),
        ("prompt", request(&prompt(1, 1024), 1)),
        ("max_tokens", request(&prompt(1, 1000), 25)),
        ("max_tokens", with(|p| p.max_tokens = Some(0))),
        ("min_tokens", with(|p| p.min_tokens = 6)),
        ("temperature", with(|p| p.temperature = -1.0)),
        ("temperature", with(|p| p.temperature = f32::NAN)),
        ("top_p", with(|p| p.top_p = 7.0)),
        ("min_p", with(|p| p.min_p = -0.1)),
        ("repetition_penalty", with(|p| p.repetition_penalty = 0.0)),
        ("stop", with(|p| p.stop = vec!["x".into()])),
        ("stop[0]", with(|p| p.stop = vec![String::new()])),
        ("stop_token_ids[0]", with(|p| p.stop_token_ids = vec![TokenId(VOCAB_SIZE)])),
        ("logit_bias[1000]", with(|p| p.logit_bias = vec![(TokenId(VOCAB_SIZE), 1.0)])),
        ("logprobs", with(|p| p.logprobs = Some(21))),
    ];
    for (field, request) in cases {
        let shown = format!("{field}: {:?}", request.params);
        let error = engine.generate(request).await.err().unwrap_or_else(|| panic!("admitted: {shown}"));
        assert_eq!(error.code, Code::InvalidArgument, "{shown}");
        assert_eq!(error.violations[0].field, field, "{shown}");
    }
    for prompt in [Prompt::Text("hello".into()), Prompt::Chat(vec![ChatMessage::new(Role::User, "hello")].into())] {
        let error = engine.generate(Request::new(prompt)).await.err().unwrap();
        assert_eq!(error.code, Code::FailedPrecondition);
    }
    assert!(idle(&engine));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenants_only_request_does_not_wait_for_the_forty_of_another() {
    let gate = Arc::new(Gate::default());
    let held = gate.clone();
    let config = EngineConfig { max_num_seqs: 2, ..config() };
    let hangs = move |_| FakeOptions { mishap: Some((3, Mishap::Hang(held.clone()))), ..FakeOptions::default() };
    let engine = engine(config.clone(), fakes(&config, hangs)).await;
    let of = |tenant: &str, seed| Request { tenant: Some(tenant.into()), ..request(&prompt(seed, 9), 40) };
    let ends = Arc::new(std::sync::Mutex::new(Vec::new()));
    let mut readers = Vec::new();
    for (tenant, seed) in (0..40).map(|seed| ("crowd", seed)).chain([("single", 40)]) {
        let (stream, ends) = (engine.generate(of(tenant, seed)).await.unwrap(), ends.clone());
        readers.push(tokio::spawn(async move {
            let (tokens, end) = read(stream).await;
            ends.lock().unwrap().push(tenant);
            (tokens.len(), end)
        }));
    }
    gate.open();
    for reader in readers {
        let (tokens, end) = bounded("an end", reader).await.unwrap();
        assert_eq!((tokens, end.unwrap()), (40, FinishReason::Length));
    }
    let place = ends.lock().unwrap().iter().position(|&tenant| tenant == "single").unwrap();
    assert!(place < 10, "it ended after {place} of the others");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_of_another_priority_stands_elsewhere_in_line_at_once() {
    let gate = Arc::new(Gate::default());
    let held = gate.clone();
    let config = EngineConfig { max_num_seqs: 1, ..config() };
    // The first hangs in the second half of its prompt.
    let hangs = move |_| FakeOptions { mishap: Some((1, Mishap::Hang(held.clone()))), ..FakeOptions::default() };
    let engine = engine(config.clone(), fakes(&config, hangs)).await;
    let mut streams = Vec::new();
    for seed in 0..4 {
        streams.push(engine.generate(request(&prompt(seed, 100), 3)).await.unwrap());
        until("the first runs", || gate.reached()).await;
    }
    let positions = |streams: &[Generation]| -> Vec<usize> {
        let position = |stream: &Generation| match stream.progress() {
            Progress::Queued { position, .. } => position,
            other => panic!("{other:?}"),
        };
        streams[1..].iter().map(position).collect()
    };
    assert_eq!(positions(&streams), [0, 1, 2]);
    let edit = Edit { priority: Some(-5), ..Edit::default() };
    streams[3].edit(StreamEdit { engine: edit, stop: None }).unwrap();
    assert_eq!(positions(&streams), [1, 2, 0], "the engine still hangs");
    gate.open();
    for stream in streams {
        assert_eq!(bounded("its end", read(stream)).await.0.len(), 3);
    }
}
