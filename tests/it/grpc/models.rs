//! Several models in one server: loaded, named, watched, replaced and unloaded while others answer.

use std::{
    collections::VecDeque,
    fs,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use candlewick::{
    config::{Dtype, EngineArgs, LoraArgs, MachineFacts, MemoryBound, ModelArgs},
    engine::{
        ModelText,
        fake::{FakeOptions, Gate, Mishap},
        load::ModelSource,
    },
    proto::candlewick::v1::{
        self as wire, ListRequest, LoadRequest, Model, ModelState, UnloadRequest, UnloadResponse, WatchRequest,
        generation_client::GenerationClient, load_response::Event, models_client::ModelsClient,
    },
    server::{ModelOptions, ServeOptions},
};
use clap::Parser;
use serde_json::{Value, json};
use tonic::{Code, Status, Streaming, transport::Channel};
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};
use tonic_types::StatusExt;

use super::{Server, config, expected, fakes, ids, info, read, request, soon};
use crate::{
    openai::http::{get, post},
    place::repository,
};

/// Tokens that the reference generated.
const STEPS: u32 = 32;

/// A checkpoint of the fixtures.
fn fixture(name: &str) -> PathBuf {
    repository("tests/fixtures/golden").join(name)
}

pub(crate) fn path(name: &str) -> String {
    fixture(name).display().to_string()
}

/// A prompt, and what the reference made of it.
fn golden(name: &str) -> (Vec<u32>, Vec<u32>) {
    let text = fs::read_to_string(fixture(name).join("golden.json")).unwrap();
    let golden: Value = serde_json::from_str(&text).unwrap();
    let list = |field: &str| serde_json::from_value(golden["prompts"][1][field].clone()).unwrap();
    (list("ids"), list("greedy"))
}

/// What models are loaded with: with the numbers of the reference, so that its tokens are ours.
fn settings() -> ModelSource {
    #[derive(Parser)]
    struct Limits {
        #[command(flatten)]
        engine: EngineArgs,
    }
    let model = ModelArgs { dtype: Dtype::Float32, threads: Some(1), ..ModelArgs::default() };
    let engine = Limits::parse_from(["limits", "--max-num-seqs", "8", "--kv-cache-memory-bytes", "4M"]).engine;
    ModelSource { model, engine, lora: LoraArgs::default(), served_model_name: None, panic_after: None }
}

pub(crate) fn options(max_models: usize) -> ServeOptions {
    let models = ModelOptions { max_models, settings: Some(settings()), ..ModelOptions::default() };
    ServeOptions { drain_grace: Duration::ZERO, models, ..ServeOptions::default() }
}

/// A server that begins with a fake and has room for so many models.
pub(crate) async fn server(max_models: usize) -> Server {
    server_with(options(max_models)).await
}

pub(crate) async fn server_with(options: ServeOptions) -> Server {
    let factory = fakes(&config(), |_| FakeOptions::default());
    Server::with(info(), ModelText::default(), config(), factory, options).await
}

/// The same, on a fake that hangs in its fourth step until the gate is opened.
async fn hung(max_models: usize) -> (Server, Arc<Gate>) {
    let gate = Arc::new(Gate::default());
    let held = gate.clone();
    let factory = fakes(&config(), move |_| FakeOptions {
        mishap: Some((3, Mishap::Hang(held.clone()))),
        ..FakeOptions::default()
    });
    let server = Server::with(info(), ModelText::default(), config(), factory, options(max_models)).await;
    (server, gate)
}

pub(super) async fn models(server: &Server) -> ModelsClient<Channel> {
    ModelsClient::new(server.channel().await)
}

pub(super) fn load_request(name: &str, fixture: &str) -> LoadRequest {
    LoadRequest { name: Some(name.into()), path: Some(path(fixture)), ..LoadRequest::default() }
}

/// Loads to the end; gives how often it told how far it was, and the model.
pub(super) async fn loaded(models: &mut ModelsClient<Channel>, request: LoadRequest) -> Result<(usize, Model), Status> {
    let mut events = models.load(request).await?.into_inner();
    let mut told = 0;
    loop {
        match soon("an event of a load", events.message()).await?.expect("it ends with the model").event.unwrap() {
            Event::Progress(progress) => {
                assert!(progress.done <= progress.total && progress.total > 0, "{progress:?}");
                told += 1;
            }
            Event::Model(model) => {
                assert!(soon("the end", events.message()).await?.is_none());
                return Ok((told, model));
            }
        }
    }
}

pub(super) async fn unload(models: &mut ModelsClient<Channel>, name: &str, wait: bool) -> UnloadResponse {
    let wait_ms = wait.then_some(60_000);
    models.unload(UnloadRequest { name: name.into(), wait_ms, ..Default::default() }).await.unwrap().into_inner()
}

/// Names and states, in order.
pub(super) async fn listed(models: &mut ModelsClient<Channel>) -> Vec<(String, ModelState)> {
    let list = models.list(ListRequest {}).await.unwrap().into_inner().models;
    list.into_iter().map(|model| (model.name.clone(), model.state())).collect()
}

/// The next list of a watch that fits.
pub(super) async fn watched(lists: &mut Streaming<wire::WatchResponse>, fits: impl Fn(&[Model]) -> bool) -> Vec<Model> {
    loop {
        let list = soon("a list that fits", lists.message()).await.unwrap().unwrap().models;
        if fits(&list) {
            return list;
        }
    }
}

pub(super) fn has(name: &'static str, state: ModelState) -> impl Fn(&[Model]) -> bool {
    move |list| list.iter().any(|model| model.name == name && model.state() == state)
}

/// What a model makes of its reference's prompt.
async fn generated(server: &Server, model: &str, fixture: &str) -> Result<Vec<u32>, Status> {
    let (prompt, _) = golden(fixture);
    let mut request = request(&prompt, STEPS);
    let options = request.options.as_mut().unwrap();
    options.model = (!model.is_empty()).then(|| model.to_owned());
    let sampling = options.sampling.as_mut().unwrap();
    (sampling.temperature, sampling.ignore_eos) = (Some(0.0), Some(true));
    let stream = server.generation().await.generate_stream(request).await?.into_inner();
    let read = read(stream).await;
    match read.error {
        Some(error) => Err(error),
        None => Ok(read.token_ids()),
    }
}

/// The same over OpenAI's wire.
async fn completed(server: &Server, model: &str, fixture: &str) -> (u16, Value) {
    let (prompt, _) = golden(fixture);
    let body = json!({
        "model": model, "prompt": prompt, "max_tokens": STEPS, "temperature": 0, "ignore_eos": true, "logprobs": 0,
        "return_tokens_as_token_ids": true,
    });
    let answer = post(server.address, "/v1/completions", &body.to_string()).await;
    (answer.status, answer.json().await)
}

fn token_ids(completion: &Value) -> Vec<u32> {
    let tokens = completion["choices"][0]["logprobs"]["tokens"].as_array().unwrap();
    tokens.iter().map(|token| token.as_str().unwrap().strip_prefix("token_id:").unwrap().parse().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn models_that_are_loaded_answer_by_their_names_on_every_wire_beside_the_first() {
    let server = server(3).await;
    let mut models = models(&server).await;
    for name in ["llama", "qwen3"] {
        let (_, model) = loaded(&mut models, load_request(name, name)).await.unwrap();
        assert_eq!((model.name.as_str(), model.state(), model.is_default), (name, ModelState::Ready, false));
        assert!(model.vocab_size == 320 && model.memory_bytes > 4 << 20, "{model:?}");
    }
    let ready = |name: &str| (name.to_owned(), ModelState::Ready);
    assert_eq!(listed(&mut models).await, [ready("fake"), ready("llama"), ready("qwen3")]);

    // All at once: each has its own engine, and its own answer.
    let (llama, qwen) = tokio::join!(generated(&server, "llama", "llama"), generated(&server, "qwen3", "qwen3"));
    assert_eq!((llama.unwrap(), qwen.unwrap()), (golden("llama").1, golden("qwen3").1));
    for name in ["llama", "qwen3"] {
        let (status, completion) = completed(&server, name, name).await;
        assert_eq!((status, token_ids(&completion)), (200, golden(name).1), "{completion}");
        assert_eq!(completion["model"], name);
    }
    let prompt = ids(1, 9);
    let unnamed = server.generation().await.generate_stream(request(&prompt, 20)).await.unwrap().into_inner();
    let unnamed = read(unnamed).await;
    assert_eq!((unnamed.token_ids(), unnamed.started.unwrap().model), (expected(&prompt, 20), "fake".to_owned()));

    for (path, list, name) in
        [("/v1/models", "data", "id"), ("/api/tags", "models", "name"), ("/api/ps", "models", "name")]
    {
        let answer = get(server.address, path).await.json().await;
        let names: Vec<_> = answer[list].as_array().unwrap().iter().map(|model| model[name].clone()).collect();
        assert_eq!(names, ["fake", "llama", "qwen3"], "{path}");
    }
    let unknown = generated(&server, "gpt-9", "llama").await.unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound);
    for name in ["gpt-9", "fake", "llama", "qwen3"] {
        assert!(unknown.message().contains(name), "{unknown:?}");
    }
    assert_eq!(completed(&server, "gpt-9", "llama").await.0, 404);

    let (_, metrics) = server.get("/metrics").await;
    for name in ["fake", "llama", "qwen3"] {
        let series = format!("vllm:generation_tokens_total{{model_name=\"{name}\"}}");
        let line = metrics.lines().find(|line| line.starts_with(&series)).unwrap();
        assert!(!line.ends_with(" 0"), "{line}");
    }
    let loads = candlewick::proto::candlewick::v1::admin_client::AdminClient::new(server.channel().await)
        .get_loads(wire::GetLoadsRequest {})
        .await
        .unwrap()
        .into_inner();
    assert_eq!(loads.loads.unwrap().model, "fake");
    assert_eq!(loads.models.iter().map(|loads| loads.model.as_str()).collect::<Vec<_>>(), ["fake", "llama", "qwen3"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_watches_sees_a_model_come_and_go() {
    let server = server(2).await;
    let mut models = models(&server).await;
    let mut lists = models.watch(WatchRequest {}).await.unwrap().into_inner();
    let first = soon("the first list", lists.message()).await.unwrap().unwrap().models;
    assert!(first.len() == 1 && first[0].is_default && has("fake", ModelState::Ready)(&first), "{first:?}");
    let mut health = HealthClient::new(server.channel().await);
    let mut health = async |service: &str| {
        let request = HealthCheckRequest { service: service.into() };
        health.check(request).await.map(|response| response.into_inner().status())
    };
    assert_eq!(health("models/small").await.unwrap_err().code(), Code::NotFound);
    loaded(&mut models, load_request("small", "llama")).await.unwrap();
    watched(&mut lists, has("small", ModelState::Ready)).await;
    assert_eq!(health("models/small").await.unwrap(), ServingStatus::Serving);

    let gone = unload(&mut models, "small", true).await;
    assert_eq!((gone.live_requests, gone.unloaded), (0, true));
    let list = watched(&mut lists, has("small", ModelState::Unloaded)).await;
    let small = list.iter().find(|model| model.name == "small").unwrap();
    assert_eq!((small.memory_bytes, small.vocab_size), (0, 320), "what it was is known, and that it has no memory");
    assert_eq!(health("models/small").await.unwrap(), ServingStatus::NotServing);
    assert_eq!(health("").await.unwrap(), ServingStatus::Serving, "the other one is there");
    let refused = generated(&server, "small", "llama").await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert_eq!(get(server.address, "/v1/models").await.json().await["data"].as_array().unwrap().len(), 1);

    // By its name alone, as it was.
    let again = LoadRequest { name: Some("small".into()), ..LoadRequest::default() };
    loaded(&mut models, again).await.unwrap();
    watched(&mut lists, has("small", ModelState::Ready)).await;
    assert_eq!(generated(&server, "small", "llama").await.unwrap(), golden("llama").1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_is_unloaded_when_its_streams_have_ended_and_the_next_is_the_default() {
    let (server, gate) = hung(2).await;
    let mut models = models(&server).await;
    loaded(&mut models, load_request("llama", "llama")).await.unwrap();
    let prompt = ids(1, 9);
    let stream = server.generation().await.generate_stream(request(&prompt, 50)).await.unwrap().into_inner();

    let leaves = unload(&mut models, "fake", false).await;
    assert_eq!((leaves.live_requests, leaves.unloaded), (1, false));
    assert!(listed(&mut models).await.contains(&("fake".into(), ModelState::Draining)));
    let refused = generated(&server, "fake", "llama").await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert_eq!(generated(&server, "", "llama").await.unwrap(), golden("llama").1, "no name means the one that is left");
    // It still has its place in memory.
    let full = loaded(&mut models, load_request("qwen3", "qwen3")).await.unwrap_err();
    assert_eq!(full.code(), Code::ResourceExhausted);
    assert!(full.message().contains("--max-models 2"), "{full:?}");

    gate.open();
    let read = read(stream).await;
    assert_eq!((read.token_ids(), read.error.map(|error| error.code())), (expected(&prompt, 50), None));
    assert!(unload(&mut models, "fake", true).await.unloaded, "asked again, it waits for the end");
    loaded(&mut models, load_request("qwen3", "qwen3")).await.unwrap();
    let ready = |name: &str| (name.to_owned(), ModelState::Ready);
    assert_eq!(listed(&mut models).await, [("fake".into(), ModelState::Unloaded), ready("llama"), ready("qwen3")]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_takes_anothers_place_without_dropping_its_stream() {
    let (server, gate) = hung(2).await;
    let mut models = models(&server).await;
    let prompt = ids(1, 9);
    let stream = server.generation().await.generate_stream(request(&prompt, 50)).await.unwrap().into_inner();
    let taken = loaded(&mut models, load_request("fake", "llama")).await.unwrap_err();
    assert_eq!(taken.code(), Code::InvalidArgument);
    assert_eq!(taken.get_details_bad_request().unwrap().field_violations[0].field, "name");
    let replace = LoadRequest { replace: Some(true), ..load_request("fake", "llama") };
    let (_, model) = loaded(&mut models, replace).await.unwrap();
    assert!(model.is_default && model.architecture == "LlamaForCausalLM", "{model:?}");
    for name in ["fake", ""] {
        assert_eq!(generated(&server, name, "llama").await.unwrap(), golden("llama").1, "{name:?}");
    }
    let states = [ModelState::Ready, ModelState::Draining].map(|state| ("fake".to_owned(), state));
    assert_eq!(listed(&mut models).await, states);
    gate.open();
    assert_eq!(read(stream).await.token_ids(), expected(&prompt, 50));
    let mut lists = models.watch(WatchRequest {}).await.unwrap().into_inner();
    watched(&mut lists, |list| list.len() == 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_still_streams_when_its_time_is_over_is_cut_off() {
    let (server, gate) = hung(2).await;
    let mut models = models(&server).await;
    let stream = server.generation().await.generate_stream(request(&ids(1, 9), 50)).await.unwrap().into_inner();
    let asked = UnloadRequest { name: "fake".into(), wait_ms: Some(60_000), drain_timeout_ms: Some(0) };
    let (unloaded, read) = tokio::join!(models.unload(asked), read(stream));
    assert!(unloaded.unwrap().into_inner().unloaded);
    let error = read.error.unwrap();
    assert_eq!(error.code(), Code::Unavailable);
    assert!(error.message().contains("the model was unloaded"), "{error:?}");
    gate.open();
    // Nothing is left that could answer.
    let refused = generated(&server, "", "llama").await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(server.get("/health").await.0.starts_with("http/1.1 503"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_to_stream_to_its_end_can_still_be_cut_off() {
    let (server, gate) = hung(2).await;
    let mut models = models(&server).await;
    let stream = server.generation().await.generate_stream(request(&ids(1, 9), 50)).await.unwrap().into_inner();
    assert!(!unload(&mut models, "fake", false).await.unloaded);
    let asked = UnloadRequest { name: "fake".into(), wait_ms: Some(60_000), drain_timeout_ms: Some(0) };
    let (unloaded, read) = tokio::join!(models.unload(asked), read(stream));
    assert!(unloaded.unwrap().into_inner().unloaded);
    assert_eq!(read.error.unwrap().code(), Code::Unavailable);
    gate.open();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_machine_reads_at_most_is_told_beside_a_model_that_came_later() {
    let mut options = options(2);
    options.models.memory_bandwidth = Some(25e9);
    let server = server_with(options).await;
    loaded(&mut models(&server).await, load_request("llama", "llama")).await.unwrap();
    let (_, metrics) = server.get("/metrics").await;
    for name in ["fake", "llama"] {
        let line = format!("candlewick:memory_bandwidth_bytes_per_second{{model_name=\"{name}\"}} 25000000000.0");
        assert!(metrics.contains(&line), "{line}: {metrics}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_that_does_not_fit_is_refused_with_the_sum() {
    fn small() -> MachineFacts {
        MachineFacts { available_memory_bytes: Some(1 << 20), bound: MemoryBound::Machine }
    }
    let mut options = options(2);
    options.models.machine = small;
    let server = server_with(options).await;
    let mut models = models(&server).await;
    let refused = loaded(&mut models, load_request("llama", "llama")).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    for part in ["does not fit into memory", "weights 1 MiB + KV cache", "> 1 MiB available"] {
        assert!(refused.message().contains(part), "{part}: {refused:?}");
    }
    let list = models.list(ListRequest {}).await.unwrap().into_inner().models;
    assert_eq!((list[1].name.as_str(), list[1].state()), ("llama", ModelState::Failed));
    assert!(list[1].failure().contains("does not fit"), "{:?}", list[1]);
    let named = generated(&server, "llama", "llama").await.unwrap_err();
    assert!(named.code() == Code::FailedPrecondition && named.message().contains("could not be loaded"), "{named:?}");
    assert!(!named.message().contains("memory"), "who asks for its answers learns nothing of the machine: {named:?}");
}

/// A server with room for two models, of which those make room that nobody has used for so long.
async fn evicting(evict_after: Duration, machine: Option<fn() -> MachineFacts>) -> Server {
    let mut options = options(2);
    options.models.evict_after = Some(evict_after);
    options.models.machine = machine.unwrap_or(options.models.machine);
    server_with(options).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_model_that_was_used_longest_ago_makes_room_and_comes_back_for_whoever_asks() {
    let server = evicting(Duration::ZERO, None).await;
    let mut models = models(&server).await;
    loaded(&mut models, load_request("llama", "llama")).await.unwrap();
    loaded(&mut models, load_request("qwen3", "qwen3")).await.unwrap();
    let (ready, idle) = (ModelState::Ready, ModelState::Idle);
    let states = |states: [ModelState; 3]| ["fake", "llama", "qwen3"].map(str::to_owned).into_iter().zip(states);
    let list = listed(&mut models).await;
    assert!(list.into_iter().eq(states([ready, idle, ready])), "what could not come back stays");
    // Requests move them too.
    for (name, after) in [("llama", [ready, ready, idle]), ("qwen3", [ready, idle, ready])] {
        let answer = async {
            loop {
                match generated(&server, name, name).await {
                    Ok(answer) => return answer,
                    // Who read the other's last token is not gone yet.
                    Err(refused) => assert_eq!(refused.code(), Code::ResourceExhausted, "{refused:?}"),
                }
            }
        };
        assert_eq!(soon("an answer", answer).await, golden(name).1);
        assert!(listed(&mut models).await.into_iter().eq(states(after)), "{name}");
    }
    // What cannot be loaded takes nobody's place.
    let nowhere = LoadRequest { path: Some("/nowhere/at/all".into()), ..load_request("x", "llama") };
    assert_eq!(loaded(&mut models, nowhere).await.unwrap_err().code(), Code::FailedPrecondition);
    let list = listed(&mut models).await;
    assert!(list[..3].iter().cloned().eq(states([ready, idle, ready])), "{list:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_that_somebody_uses_or_used_a_moment_ago_makes_no_room() {
    let full = |refused: Status| {
        assert_eq!(refused.code(), Code::ResourceExhausted);
        assert!(refused.message().contains("--max-models 2"), "{refused:?}");
    };
    let patient = evicting(Duration::from_secs(3600), None).await;
    let mut models_of_patient = models(&patient).await;
    loaded(&mut models_of_patient, load_request("llama", "llama")).await.unwrap();
    full(loaded(&mut models_of_patient, load_request("qwen3", "qwen3")).await.unwrap_err());

    let server = evicting(Duration::ZERO, None).await;
    let mut models = models(&server).await;
    loaded(&mut models, load_request("llama", "llama")).await.unwrap();
    // With a window of one byte an answer is under way until it is read.
    let narrow = Channel::from_shared(format!("http://{}", server.address)).unwrap().initial_stream_window_size(1);
    let (prompt, answer) = golden("llama");
    let mut asked = request(&prompt, STEPS);
    let options = asked.options.as_mut().unwrap();
    options.model = Some("llama".into());
    let sampling = options.sampling.as_mut().unwrap();
    (sampling.temperature, sampling.ignore_eos) = (Some(0.0), Some(true));
    let mut client = GenerationClient::new(narrow.connect().await.unwrap());
    let stream = client.generate_stream(asked).await.unwrap().into_inner();
    full(loaded(&mut models, load_request("qwen3", "qwen3")).await.unwrap_err());
    assert!(listed(&mut models).await.contains(&("llama".into(), ModelState::Ready)));
    assert_eq!(read(stream).await.token_ids(), answer);
    let evicted = async {
        while let Err(refused) = loaded(&mut models, load_request("qwen3", "qwen3")).await {
            full(refused);
        }
    };
    soon("the last user is gone", evicted).await;
    assert!(listed(&mut models).await.contains(&("llama".into(), ModelState::Idle)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_makes_room_in_memory_where_that_makes_the_sum_fit_and_only_there() {
    const MIB: usize = 1 << 20;
    // What there is when it is looked, in turn: for the first model; for the second, which fits with the memory of the
    // first, and once that is back; for a third, which would not fit with that of the second either.
    static AVAILABLE: Mutex<VecDeque<usize>> = Mutex::new(VecDeque::new());
    fn machine() -> MachineFacts {
        let available = AVAILABLE.lock().unwrap().pop_front().expect("it is looked four times");
        MachineFacts { available_memory_bytes: Some(available), bound: MemoryBound::Machine }
    }
    *AVAILABLE.lock().unwrap() = [64 * MIB, 3 * MIB, 8 * MIB, 0].into();
    let mut options = options(4);
    (options.models.evict_after, options.models.machine) = (Some(Duration::ZERO), machine);
    let server = server_with(options).await;
    let mut models = models(&server).await;
    loaded(&mut models, load_request("llama", "llama")).await.unwrap();
    // Promised no more than one sequence needs, so that the third asks for more than that.
    let small = LoadRequest { kv_cache_memory_bytes: Some(384 << 10), ..load_request("qwen3", "qwen3") };
    loaded(&mut models, small).await.unwrap();
    let (ready, idle) = (ModelState::Ready, ModelState::Idle);
    let list = listed(&mut models).await;
    assert_eq!(list, [("fake".into(), ready), ("llama".into(), idle), ("qwen3".into(), ready)]);
    let refused = loaded(&mut models, load_request("other", "mixtral")).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("> 0 MiB available"), "the sum as it is: {refused:?}");
    assert!(
        listed(&mut models).await.contains(&("qwen3".into(), ready)),
        "a load that is refused takes nobody's place"
    );
    assert!(AVAILABLE.lock().unwrap().is_empty());
    assert_eq!(generated(&server, "qwen3", "qwen3").await.unwrap(), golden("qwen3").1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_loaded_is_refused_by_its_field_and_never_for_pages() {
    let server = server(2).await;
    let mut models = models(&server).await;
    let with = |change: fn(&mut LoadRequest)| {
        let mut request = load_request("x", "llama");
        change(&mut request);
        request
    };
    let cases = [
        (with(|request| request.name = Some("n".repeat(300))), Code::InvalidArgument, "name"),
        (with(|request| (request.name, request.path) = (None, None)), Code::InvalidArgument, "path"),
        (with(|request| request.quantization = Some("q1".into())), Code::InvalidArgument, "quantization"),
        (with(|request| (request.path, request.max_model_len) = (None, Some(9))), Code::InvalidArgument, "path"),
        (with(|request| request.max_model_len = Some(4096)), Code::InvalidArgument, "--max-model-len"),
    ];
    for (request, code, field) in cases {
        let refused = loaded(&mut models, request).await.unwrap_err();
        assert_eq!(refused.code(), code, "{field}: {refused:?}");
        assert_eq!(refused.get_details_bad_request().unwrap().field_violations[0].field, field, "{refused:?}");
    }
    let missing = loaded(&mut models, with(|request| request.path = Some("/nowhere/at/all".into()))).await.unwrap_err();
    assert_eq!(missing.code(), Code::FailedPrecondition);
    let unknown = loaded(&mut models, with(|request| (request.name, request.path) = (Some("y".into()), None))).await;
    assert_eq!(unknown.unwrap_err().code(), Code::NotFound);
    let unknown = models.unload(UnloadRequest { name: "z".into(), ..Default::default() }).await.unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound);

    for header in ["origin", "x-forwarded-for"] {
        let mut models =
            ModelsClient::with_interceptor(server.channel().await, move |mut request: tonic::Request<()>| {
                request.metadata_mut().insert(header, "http://localhost".parse().unwrap());
                Ok(request)
            });
        let refused = [
            models.load(load_request("llama", "llama")).await.map(drop),
            models.unload(UnloadRequest { name: "fake".into(), ..Default::default() }).await.map(drop),
        ];
        for refused in refused {
            assert_eq!(refused.unwrap_err().code(), Code::PermissionDenied);
        }
        assert!(models.list(ListRequest {}).await.is_ok() && models.watch(WatchRequest {}).await.is_ok());
    }
    // A server that was told of none loads none.
    let closed = Server::well().await;
    let refused = loaded(&mut super::models::models(&closed).await, load_request("llama", "llama")).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_that_nobody_uses_is_idle_and_comes_back_for_whoever_asks() {
    let mut options = options(2);
    options.models.idle_timeout = Some(Duration::from_millis(200));
    let server = server_with(options).await;
    let mut models = models(&server).await;
    let mut lists = models.watch(WatchRequest {}).await.unwrap().into_inner();
    loaded(&mut models, load_request("llama", "llama")).await.unwrap();
    let list = watched(&mut lists, has("llama", ModelState::Idle)).await;
    assert!(has("fake", ModelState::Ready)(&list), "what could not come back stays");
    assert_eq!(list.iter().find(|model| model.name == "llama").unwrap().memory_bytes, 0);
    let names = get(server.address, "/v1/models").await.json().await;
    assert_eq!(names["data"][1]["id"], "llama", "it can be asked for: {names}");

    // Whoever comes while it is being loaded waits too.
    let asked = (0..6).map(|_| generated(&server, "llama", "llama"));
    for answer in futures::future::join_all(asked).await {
        assert_eq!(answer.unwrap(), golden("llama").1);
    }
    let mut lists = models.watch(WatchRequest {}).await.unwrap().into_inner();
    watched(&mut lists, has("llama", ModelState::Idle)).await;
    assert_eq!(token_ids(&completed(&server, "llama", "llama").await.1), golden("llama").1);
    let (_, metrics) = server.get("/metrics").await;
    let tokens = format!("vllm:generation_tokens_total{{model_name=\"llama\"}} {}", 7 * STEPS);
    assert!(metrics.contains(&tokens), "its counters go on: {metrics}");
}
