//! What whoever runs the server may ask of it, and who may not.

use std::sync::Arc;

use candlewick::{
    engine::{Event, Prompt, Request},
    ids::TokenId,
    params::SamplingParams,
    proto::{
        candlewick::v1::{
            AbortRequest, DrainRequest, FlushCacheRequest, GetLoadsRequest, Loads, WatchLoadsRequest,
            abort_request::Which, admin_client::AdminClient, generation_client::GenerationClient,
        },
        smg::grpc::common as smg,
        vllm::grpc::engine::vllm_engine_client::VllmEngineClient,
    },
};
use futures::StreamExt;
use tonic::{Code, transport::Channel};
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};
use tonic_types::StatusExt;

use super::{Server, config, expected, ids, read, request, soon, until};

async fn admin(server: &Server) -> AdminClient<Channel> {
    AdminClient::new(server.channel().await)
}

fn named(id: &str, prompt: &[u32], max_tokens: u32) -> candlewick::proto::candlewick::v1::GenerateStreamRequest {
    let mut request = request(prompt, max_tokens);
    request.options.as_mut().unwrap().request_id = Some(id.to_owned());
    request
}

/// A request of a tenant, made where its key would be looked at.
fn of_tenant(tenant: Option<&str>, seed: u32, max_tokens: u32) -> Request {
    let params = SamplingParams { max_tokens: Some(max_tokens), ignore_eos: true, ..SamplingParams::default() };
    let prompt = ids(seed, 9).into_iter().map(TokenId).collect();
    Request { params, tenant: tenant.map(Arc::from), ..Request::new(Prompt::Tokens(prompt)) }
}

async fn loads(admin: &mut AdminClient<Channel>) -> Loads {
    admin.get_loads(GetLoadsRequest {}).await.unwrap().into_inner().loads.unwrap()
}

fn abort_id(id: &str) -> AbortRequest {
    AbortRequest { which: Some(Which::RequestId(id.to_owned())) }
}

fn abort_tenant(name: &str) -> AbortRequest {
    AbortRequest { which: Some(Which::Tenant(name.to_owned())) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_lets_streams_finish_refuses_new_ones_and_leaves_the_process_up() {
    let (server, gate) = Server::hung(config(), 3).await;
    let mut admin = admin(&server).await;
    let mut health = HealthClient::new(server.channel().await);
    let mut watch = health.watch(HealthCheckRequest::default()).await.unwrap().into_inner();
    assert_eq!(soon("health", watch.message()).await.unwrap().unwrap().status(), ServingStatus::Serving);
    let mut generation = server.generation().await;
    let prompt = ids(1, 9);
    let stream = generation.generate_stream(request(&prompt, 50)).await.unwrap().into_inner();

    let begun = admin.drain(DrainRequest { wait_ms: None }).await.unwrap().into_inner();
    assert_eq!((begun.live_requests, begun.drained), (1, false));
    assert_eq!(soon("health turns", watch.message()).await.unwrap().unwrap().status(), ServingStatus::NotServing);
    let refused = generation.generate_stream(request(&ids(2, 5), 5)).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
    assert!(refused.get_details_retry_info().is_some());
    assert!(!loads(&mut admin).await.serving);

    gate.open();
    assert_eq!(read(stream).await.token_ids(), expected(&prompt, 50));
    let done = admin.drain(DrainRequest { wait_ms: Some(60_000) }).await.unwrap().into_inner();
    assert_eq!((done.live_requests, done.drained), (0, true), "asked again, it waits for the last one");
    assert_eq!(loads(&mut admin).await.generated_tokens, 50, "whoever asks is still answered");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flushed_cache_holds_nothing_but_what_is_in_use() {
    let server = Server::well().await;
    let mut generation = server.generation().await;
    let prompt = ids(1, 64);
    let mut cached = async || {
        let answer = read(generation.generate_stream(request(&prompt, 2)).await.unwrap().into_inner()).await;
        server.idle().await;
        answer.finished.unwrap().usage.unwrap().cached_tokens
    };
    assert_eq!((cached().await, cached().await), (0, 63));
    let flushed = admin(&server).await.flush_cache(FlushCacheRequest {}).await.unwrap().into_inner();
    assert_eq!((flushed.freed_blocks, flushed.in_use_blocks), (4, 0));
    assert_eq!(cached().await, 0);
    // The wire of routers has the same.
    let mut router = VllmEngineClient::new(server.channel().await);
    let flushed = router.flush_cache(smg::FlushCacheRequest::default()).await.unwrap().into_inner();
    assert!(flushed.success && flushed.message.starts_with("4 blocks"), "{flushed:?}");
    assert_eq!(cached().await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn loads_tell_what_runs_and_waits_and_whose_it_is() {
    let (server, gate) = Server::hung(candlewick::config::EngineConfig { max_num_seqs: 2, ..config() }, 4).await;
    let mut admin = admin(&server).await;
    // Once the server answers, it has set the weights of its own configuration.
    loads(&mut admin).await;
    server.engine.shares().set([("a".into(), 3)]);
    let mut streams = Vec::new();
    for (tenant, seed) in [(Some("a"), 1), (Some("a"), 2), (Some("a"), 3), (None, 4)] {
        streams.push(server.engine.generate(of_tenant(tenant, seed, 30)).await.unwrap());
    }
    // The step that hangs may have come before the others did.
    until("one runs", || server.engine.loads().tenants.iter().any(|tenant| tenant.running > 0)).await;
    let told = loads(&mut admin).await;
    assert_eq!((told.model.as_str(), told.max_running_requests, told.num_blocks), ("fake", 2, 256));
    let tenants: Vec<_> = told.tenants.iter().map(|t| (t.tenant.as_deref(), t.weight)).collect();
    assert_eq!(tenants, [(None, 1), (Some("a"), 3)]);
    let here: u32 = told.tenants.iter().map(|t| t.running_requests + t.waiting_requests).sum();
    assert_eq!(here, 4);
    gate.open();
    for mut stream in streams {
        while let Some(event) = soon("an event", stream.next()).await {
            event.unwrap();
        }
    }
    server.idle().await;
    let told = loads(&mut admin).await;
    assert_eq!((told.generated_tokens, told.prompt_tokens, told.tenants.len()), (120, 36, 0));
    assert_eq!((told.running_requests, told.waiting_requests, told.used_blocks), (0, 0, 0));
    let (_, metrics) = server.get("/metrics").await;
    let line = "candlewick:tenant_generation_tokens_total{model_name=\"fake\",tenant=\"a\"} 90";
    assert!(metrics.lines().any(|l| l == line), "{metrics}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn loads_can_be_watched_by_so_many_and_no_more_often_than_is_good() {
    let server = Server::well().await;
    let mut admin = admin(&server).await;
    let mut first = admin.watch_loads(WatchLoadsRequest { interval_ms: Some(100) }).await.unwrap().into_inner();
    for _ in 0..3 {
        let told = soon("loads", first.message()).await.unwrap().unwrap();
        assert_eq!(told.loads.unwrap().num_blocks, 256);
    }
    for ms in [0, 99, 3_600_001] {
        let refused = admin.watch_loads(WatchLoadsRequest { interval_ms: Some(ms) }).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
        assert_eq!(refused.get_details_bad_request().unwrap().field_violations[0].field, "interval_ms");
    }
    let mut watches = Vec::new();
    for _ in 0..63 {
        watches.push(admin.watch_loads(WatchLoadsRequest { interval_ms: None }).await.unwrap());
    }
    let refused = admin.watch_loads(WatchLoadsRequest { interval_ms: None }).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    drop(watches);
    let freed = async {
        while admin.watch_loads(WatchLoadsRequest { interval_ms: None }).await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    soon("places are free again", freed).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_are_ended_by_id_or_by_tenant_while_they_run_and_while_they_wait() {
    let (server, gate) = Server::hung(candlewick::config::EngineConfig { max_num_seqs: 1, ..config() }, 3).await;
    let mut admin = admin(&server).await;
    let mut generation = server.generation().await;
    let runs = generation.generate_stream(named("runs", &ids(1, 9), 50)).await.unwrap().into_inner();
    let waits = generation.generate_stream(named("waits", &ids(2, 9), 50)).await.unwrap().into_inner();
    let stays = generation.generate_stream(named("stays", &ids(3, 9), 20)).await.unwrap().into_inner();
    let mut theirs = server.engine.generate(of_tenant(Some("a"), 4, 20)).await.unwrap();
    // While the engine hangs in a step: who reads is told at once.
    for id in ["runs", "waits"] {
        assert_eq!(admin.abort(abort_id(id)).await.unwrap().into_inner().aborted_requests, 1);
    }
    assert_eq!(admin.abort(abort_tenant("a")).await.unwrap().into_inner().aborted_requests, 1);
    for nobody in [abort_id("runs"), abort_id("nobody"), abort_tenant("a"), abort_tenant("b")] {
        assert_eq!(admin.abort(nobody).await.unwrap().into_inner().aborted_requests, 0);
    }
    for stream in [runs, waits] {
        let error = read(stream).await.error.unwrap();
        assert_eq!((error.code(), error.message()), (Code::Cancelled, "the request was aborted"));
    }
    let ended = loop {
        match soon("its end", theirs.next()).await.unwrap() {
            Ok(Event::Started(_) | Event::Delta(_)) => {}
            other => break other,
        }
    };
    assert_eq!(ended.unwrap_err().code, candlewick::error::Code::Cancelled);
    gate.open();
    assert_eq!(read(stays).await.token_ids(), expected(&ids(3, 9), 20));
    server.idle().await;
    let unset = admin.abort(AbortRequest { which: None }).await.unwrap_err();
    assert_eq!(unset.get_details_bad_request().unwrap().field_violations[0].field, "which");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_router_ends_no_requests_of_tenants() {
    let (server, gate) = Server::hung(config(), 3).await;
    let stream =
        server.engine.generate(Request { request_id: "x".into(), ..of_tenant(Some("a"), 1, 9) }).await.unwrap();
    let mut router = VllmEngineClient::new(server.channel().await);
    let abort = candlewick::proto::vllm::grpc::engine::AbortRequest { request_ids: vec!["x".into()] };
    router.abort(abort).await.unwrap();
    gate.open();
    assert!(stream.map(|event| event.is_ok()).all(std::future::ready).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_and_calls_that_a_proxy_passes_on_are_denied_every_call() {
    let server = Server::well().await;
    let channel = server.channel().await;
    // A proxy that adds nothing passes on a host that is not this machine's.
    let uri = format!("http://{}", server.address).parse().unwrap();
    let elsewhere = Channel::builder(uri).origin("http://model.example".parse().unwrap()).connect().await.unwrap();
    for (header, channel) in [
        ("origin", channel.clone()),
        ("x-forwarded-for", channel.clone()),
        ("x-envoy-expected-rq-timeout-ms", channel.clone()),
        ("x-request-id", elsewhere),
    ] {
        let mut admin = AdminClient::with_interceptor(channel, |mut request: tonic::Request<()>| {
            request.metadata_mut().insert(header, "http://localhost".parse().unwrap());
            Ok(request)
        });
        let refused = [
            admin.drain(DrainRequest::default()).await.map(drop),
            admin.flush_cache(FlushCacheRequest {}).await.map(drop),
            admin.get_loads(GetLoadsRequest {}).await.map(drop),
            admin.watch_loads(WatchLoadsRequest::default()).await.map(drop),
            admin.abort(abort_id("x")).await.map(drop),
        ];
        for refused in refused {
            let refused = refused.unwrap_err();
            assert_eq!(refused.code(), Code::PermissionDenied);
            assert_eq!(refused.get_details_error_info().unwrap().reason, "CREDENTIALS_INSUFFICIENT");
        }
    }
    let mut generation = GenerationClient::new(channel);
    assert!(generation.generate_stream(request(&ids(1, 5), 1)).await.is_ok(), "nothing was drained");
}
