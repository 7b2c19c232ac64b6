//! One tenant tries to reach what is another's: sessions, streams, keys, cached prefixes, requests, responses.

use std::sync::Arc;

use candlewick::{
    config::TenantLimits,
    engine::fake::{Gate, Mishap},
    proto::{
        candlewick::v1::{
            GenerateStreamRequest, GetRequest, ListRequest, LoadRequest, ModelState, QuoteRequest, ResumeRequest,
            SessionOpen, SessionRequest, SessionResponse, WatchRequest, generate_stream_response::Event,
            models_client::ModelsClient, session_request::Event as Say, session_response::Event as Told,
        },
        smg::grpc::common::{SubscribeKvEventsRequest, kv_cache_event::Data},
        vllm::grpc::engine::{
            AbortRequest, GenerateRequest, SamplingParams, TokenizedInput, generate_request::Input,
            generate_response::Response, vllm_engine_client::VllmEngineClient,
        },
    },
    server::{ServeOptions, access::Access},
};
use futures::{StreamExt, stream};
use serde_json::json;
use tonic::{Code, Status};

use super::{Keyed, chat, generation, headers, keyed, limited, server, tenant};
use crate::{
    grpc::{
        Server,
        models::{options as with_models, server_with},
        options, prompt_of, read, request, soon,
    },
    openai::http::{post_with, send},
};

fn prompt(length: u32) -> Vec<u32> {
    (0..length).map(|k| k % 100).collect()
}

/// Opens a stream, hears what it says first, and drops it.
async fn begin(server: &Server, tenant: &str, request: GenerateStreamRequest) -> Result<String, Status> {
    let mut stream = generation(server, tenant).await.generate_stream(request).await?.into_inner();
    match soon("an event", stream.message()).await?.unwrap().event.unwrap() {
        Event::Started(started) => Ok(started.stream_id.unwrap_or_default()),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_is_resumed_by_its_own_tenant_only() {
    let server = server(&["a", "b"]).await;
    let mut resumable = request(&prompt(20), 50);
    resumable.options.as_mut().unwrap().resumable = Some(true);
    let stream_id = begin(&server, "a", resumable).await.unwrap();
    let resume = |id: &str| ResumeRequest { stream_id: id.to_owned(), after_seq: Some(0) };
    let theirs = generation(&server, "b").await.resume(resume(&stream_id)).await.unwrap_err();
    let nobodys = generation(&server, "b").await.resume(resume("no such stream")).await.unwrap_err();
    assert_eq!((theirs.code(), theirs.message()), (Code::NotFound, nobodys.message()), "nothing tells them apart");
    let own = generation(&server, "a").await.resume(resume(&stream_id)).await.unwrap().into_inner();
    assert!(own.count().await > 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idempotency_key_stands_for_a_tenants_own_request() {
    let server = server(&["a", "b"]).await;
    let once = |length| {
        let mut once = request(&prompt(length), 5);
        once.options.as_mut().unwrap().idempotency_key = Some("once".into());
        once
    };
    let first = begin(&server, "a", once(20)).await.unwrap();
    assert_eq!(begin(&server, "a", once(20)).await.unwrap(), first, "a repetition is the same stream");
    let theirs = begin(&server, "b", once(20)).await.unwrap();
    assert_ne!(theirs, first);
    // Of another request the key is taken for its own tenant alone.
    assert_eq!(begin(&server, "a", once(21)).await.unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(begin(&server, "b", once(20)).await.unwrap(), theirs);
}

/// The first thing that a session says.
async fn open(server: &Server, tenant: &str, open: SessionOpen) -> Result<SessionResponse, Status> {
    // The client says nothing more, and does not go away.
    let said =
        stream::once(async { SessionRequest { event: Some(Say::Open(open)), id: None } }).chain(stream::pending());
    let mut heard = chat(server, tenant).await.session(said).await?.into_inner();
    Ok(soon("an event", heard.message()).await?.unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_is_found_by_its_own_tenant_only() {
    let server = server(&["a", "b"]).await;
    let opened = open(&server, "a", SessionOpen::default()).await.unwrap();
    let Some(Told::Opened(opened)) = opened.event else { panic!("{opened:?}") };
    let back = |id: &str| SessionOpen { session_id: Some(id.to_owned()), ..SessionOpen::default() };
    let theirs = open(&server, "b", back(&opened.session_id)).await.unwrap_err();
    let nobodys = open(&server, "b", back("no such session")).await.unwrap_err();
    assert_eq!((theirs.code(), theirs.message()), (Code::NotFound, nobodys.message()), "nothing tells them apart");
    let again = open(&server, "a", back(&opened.session_id)).await.unwrap();
    assert_eq!(again.event, Some(Told::Opened(opened)));
}

async fn cached(server: &Server, tenant: &str, prompt: &[u32], cache_salt: Option<&str>) -> u32 {
    let mut options = options(5);
    options.cache_salt = cache_salt.map(str::to_owned);
    let quote = QuoteRequest { prompt: prompt_of(prompt), options: Some(options), ..QuoteRequest::default() };
    generation(server, tenant).await.quote(quote).await.unwrap().into_inner().cached_tokens
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_finds_out_what_another_tenant_has_asked() {
    let server = server(&["a", "b", "a2"]).await;
    let prompt = prompt(100);
    let (mut plain, mut salted) = (request(&prompt, 5), request(&prompt, 5));
    plain.options.as_mut().unwrap().cache_salt = None;
    salted.options.as_mut().unwrap().cache_salt = Some("salt".into());
    for request in [plain, salted] {
        read(generation(&server, "a").await.generate_stream(request).await.unwrap().into_inner()).await;
    }
    assert_eq!(cached(&server, "a", &prompt, None).await, 96);
    assert_eq!(cached(&server, "a", &prompt, Some("salt")).await, 96);
    assert_eq!(cached(&server, "a", &prompt, Some("other")).await, 0);
    for salt in [None, Some("salt"), Some("1:a"), Some("1:asalt"), Some("a"), Some(":salt"), Some("2")] {
        for other in ["b", "a2"] {
            assert_eq!(cached(&server, other, &prompt, salt).await, 0, "{other} {salt:?}");
        }
    }
    // Not by the usage of a request that runs either.
    let mut theirs = request(&prompt, 5);
    theirs.options.as_mut().unwrap().cache_salt = Some("salt".into());
    let read = read(generation(&server, "b").await.generate_stream(theirs).await.unwrap().into_inner()).await;
    assert_eq!(read.finished.unwrap().usage.unwrap().cached_tokens, 0);
}

fn of_router(id: &str) -> GenerateRequest {
    GenerateRequest {
        request_id: id.into(),
        input: Some(Input::Tokenized(TokenizedInput { original_text: String::new(), input_ids: prompt(20) })),
        sampling_params: Some(SamplingParams { max_tokens: Some(30), ignore_eos: true, ..SamplingParams::default() }),
        stream: true,
        ..GenerateRequest::default()
    }
}

async fn router(server: &Server, tenant: &str) -> VllmEngineClient<Keyed> {
    VllmEngineClient::new(keyed(server, tenant).await)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_aborts_what_another_tenant_runs() {
    let gate = Arc::new(Gate::default());
    let tenants = ["a", "b"].map(|name| tenant(name, TenantLimits::default())).to_vec();
    let server = limited(tenants, Some((3, Mishap::Hang(gate.clone())))).await;
    let mut stream = router(&server, "a").await.generate(of_router("one")).await.unwrap().into_inner();
    let abort = AbortRequest { request_ids: vec!["one".into()] };
    // It says nothing of whether there was one.
    router(&server, "b").await.abort(abort.clone()).await.unwrap();
    gate.open();
    let mut last = None;
    while let Some(response) = soon("a response", stream.message()).await.unwrap() {
        last = response.response;
    }
    assert!(matches!(last, Some(Response::Complete(complete)) if complete.output_ids.len() == 30));
    router(&server, "a").await.abort(abort).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_all_tenants_cache_is_told_to_an_admin_only_and_what_a_client_salts_to_nobody() {
    let admin = TenantLimits { admin: true, ..TenantLimits::default() };
    let server = limited(vec![tenant("a", TenantLimits::default()), tenant("root", admin)], None).await;
    let subscribe = || SubscribeKvEventsRequest { start_sequence_number: 0 };
    let refused = router(&server, "a").await.subscribe_kv_events(subscribe()).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    let mut events = router(&server, "root").await.subscribe_kv_events(subscribe()).await.unwrap().into_inner();
    let (mut salted, mut plain) = (request(&prompt(40), 5), request(&prompt(20), 5));
    salted.options.as_mut().unwrap().cache_salt = Some("salt".into());
    plain.options.as_mut().unwrap().cache_salt = None;
    for request in [salted, plain] {
        read(generation(&server, "a").await.generate_stream(request).await.unwrap().into_inner()).await;
    }
    // The blocks of the first would have come first.
    let batch = soon("a batch", events.message()).await.unwrap().unwrap();
    let Some(Data::Stored(run)) = &batch.events[0].data else { panic!("{batch:?}") };
    assert_eq!((run.blocks.len(), &run.blocks[0].token_ids[..]), (1, &prompt(16)[..]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn why_a_model_could_not_be_loaded_is_told_to_an_admin_only() {
    let admin = TenantLimits { admin: true, ..TenantLimits::default() };
    let tenants = vec![tenant("a", TenantLimits::default()), tenant("root", admin)];
    let options = ServeOptions { access: Access::of(Some(tenants)), ..with_models(2) };
    let server = server_with(options).await;
    let models = async |name: &str| ModelsClient::new(keyed(&server, name).await);
    let load = LoadRequest {
        name: Some("merger".into()),
        path: Some("/nowhere/secret.gguf".into()),
        ..LoadRequest::default()
    };
    let mut events = models("root").await.load(load).await.unwrap().into_inner();
    while soon("an event of the load", events.message()).await.is_ok_and(|event| event.is_some()) {}
    for (name, tells) in [("a", false), ("root", true)] {
        let mut client = models(name).await;
        let mut reasons = vec![
            client.list(ListRequest {}).await.unwrap().into_inner().models.swap_remove(1),
            client.get(GetRequest { name: "merger".into() }).await.unwrap().into_inner().model.unwrap(),
        ];
        let mut watched = client.watch(WatchRequest {}).await.unwrap().into_inner();
        reasons.push(soon("the list", watched.message()).await.unwrap().unwrap().models.swap_remove(1));
        for model in reasons {
            assert_eq!((model.name.as_str(), model.state()), ("merger", ModelState::Failed));
            assert_eq!(model.failure().contains("secret.gguf"), tells, "{name}: {:?}", model.failure);
        }
        let mut asks = request(&prompt(20), 5);
        asks.options.as_mut().unwrap().model = Some("merger".into());
        let refused = generation(&server, name).await.generate_stream(asks).await.unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition);
        assert!(!refused.message().contains("secret"), "{refused}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_name_tenants_to_an_admin_only() {
    let admin = TenantLimits { admin: true, ..TenantLimits::default() };
    let server = limited(vec![tenant("a", TenantLimits::default()), tenant("root", admin)], None).await;
    read(generation(&server, "a").await.generate_stream(request(&prompt(20), 5)).await.unwrap().into_inner()).await;
    for (key, tells) in [(None, false), (Some("a"), false), (Some("nobody"), false), (Some("root"), true)] {
        let key = key.map(|name| format!("authorization: Bearer {}\r\n", super::key(name))).unwrap_or_default();
        let head = format!("GET /metrics HTTP/1.1\r\nhost: x\r\n{key}\r\n");
        let page = send(server.address, head.as_bytes()).await.text().await;
        assert!(page.contains("vllm:prompt_tokens_total") && page.ends_with("# EOF\n"), "{page}");
        assert_eq!(page.contains("tenant=\"a\""), tells, "{key}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kept_response_is_its_own_tenants_whoever_chose_its_id() {
    let server = server(&["a", "b"]).await;
    let create = async |tenant: &str, body: serde_json::Value| {
        let headers = format!("{}x-request-id: chosen\r\n", headers(tenant));
        post_with(server.address, "/v1/responses", &headers, &body.to_string()).await
    };
    let first = create("a", json!({"input": "secret", "max_output_tokens": 3})).await.json().await;
    assert_eq!(first["id"], "resp_chosen");
    let call = async |tenant: &str, method: &str, path: &str| {
        let key = super::key(tenant);
        let head = format!(
            "{method} /v1/responses/resp_chosen{path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n\r\n"
        );
        send(server.address, head.as_bytes()).await.status
    };
    for (method, path) in [("GET", ""), ("GET", "/input_items"), ("POST", "/cancel"), ("DELETE", "")] {
        assert_eq!(call("b", method, path).await, 404, "{method} {path}");
    }
    let on = json!({"input": "what did I say?", "previous_response_id": "resp_chosen", "max_output_tokens": 3});
    assert_eq!(create("b", on.clone()).await.status, 404);
    // One of the same id changes nothing for the other.
    assert_eq!(create("b", json!({"input": "mine", "max_output_tokens": 3})).await.status, 200);
    assert_eq!(call("b", "DELETE", "").await, 200);
    assert_eq!(call("a", "GET", "").await, 200);
    assert_eq!(create("a", on).await.status, 200);
}
