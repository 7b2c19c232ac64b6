//! Spans of requests, as a collector of traces gets them: one of our own, on the loopback interface.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use candlewick::{
    engine::{Engine, ModelText, fake::FakeOptions},
    error::Code,
    params::{SamplingParams, Usage},
    proto::candlewick::v1::generation_client::GenerationClient,
    server::{ServeOptions, serve},
    telemetry::{
        Outcome, Telemetry,
        spans::{Origin, QUEUE_SPANS, RequestSpan, Spans},
    },
};
use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::any_value::Value,
    trace::v1::{Span, span::SpanKind, status::StatusCode},
};
use tokio::{
    net::TcpListener,
    sync::{Semaphore, mpsc},
    task::{JoinHandle, spawn_blocking},
};
use tonic::{Request, Response, Status, transport::server::TcpIncoming};

use crate::{
    grpc::{config, fakes, ids, info, read, request, soon},
    openai::http,
};

const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

/// Hands on each span that it gets, once it may.
struct Collector {
    spans: mpsc::UnboundedSender<Span>,
    may: Arc<Semaphore>,
    asked: Arc<AtomicUsize>,
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        drop(self.may.acquire().await.unwrap());
        let of_resources = request.into_inner().resource_spans;
        for span in of_resources.into_iter().flat_map(|r| r.scope_spans).flat_map(|s| s.spans) {
            let _nobody_waits = self.spans.send(span);
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

/// A collector's address, its spans, what lets it answer, and how often it was asked.
async fn collector(may: usize) -> (SocketAddr, mpsc::UnboundedReceiver<Span>, Arc<Semaphore>, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (spans, received) = mpsc::unbounded_channel();
    let (may, asked) = (Arc::new(Semaphore::new(may)), Arc::new(AtomicUsize::new(0)));
    let service = TraceServiceServer::new(Collector { spans, may: may.clone(), asked: asked.clone() });
    let server = tonic::transport::Server::builder().add_service(service);
    tokio::spawn(server.serve_with_incoming(TcpIncoming::from(listener)));
    (address, received, may, asked)
}

/// A server whose spans go to `collector`.
async fn traced(collector: SocketAddr) -> (Engine, SocketAddr, JoinHandle<candlewick::error::Result<()>>) {
    let telemetry = Arc::new(Telemetry::new("fake"));
    telemetry.trace_to(Spans::to_collector(&format!("grpc://{collector}"), QUEUE_SPANS).unwrap());
    let factory = fakes(&config(), |_| FakeOptions::default());
    let engine = Engine::start(info(), ModelText::default(), config(), telemetry, factory).await.unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let served = tokio::spawn(serve(engine.clone(), listener, ServeOptions::default(), std::future::pending()));
    (engine, address, served)
}

fn attribute(span: &Span, key: &str) -> Value {
    let found = span.attributes.iter().find(|attribute| attribute.key == key);
    let found = found.unwrap_or_else(|| panic!("no {key} in {:?}", span.attributes));
    found.value.clone().unwrap().value.unwrap()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn events(span: &Span) -> Vec<&str> {
    assert!(span.events.is_sorted_by_key(|event| event.time_unix_nano), "{:?}", span.events);
    span.events.iter().map(|event| event.name.as_str()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_leaves_a_span_in_its_callers_trace() {
    let (address, mut spans, _may, _) = collector(1).await;
    let (engine, server, _served) = traced(address).await;
    let endpoint = tonic::transport::Channel::from_shared(format!("http://{server}")).unwrap();
    let mut client = GenerationClient::new(endpoint.connect().await.unwrap());
    let mut call = Request::new(request(&ids(1, 20), 5));
    call.metadata_mut().insert("traceparent", PARENT.parse().unwrap());
    let stream = client.generate_stream(call).await.unwrap().into_inner();
    assert_eq!(read(stream).await.token_ids().len(), 5);
    let headers = format!("content-type: application/json\r\ntraceparent: {PARENT}\r\n");
    let answer =
        http::post_with(server, "/v1/completions", &headers, r#"{"prompt": [1, 2, 3], "max_tokens": 2}"#).await;
    assert_eq!(answer.status, 200);
    drop(answer.bytes().await);
    let answer = http::post(server, "/v1/completions", r#"{"prompt": [1, 2, 3], "max_tokens": 1}"#).await;
    assert_eq!(answer.status, 200);
    drop(answer.bytes().await);
    // Spans are left when streams are let go, which may be after their last byte was read.
    let mut got = Vec::new();
    let three = async {
        while got.len() < 3 {
            let telemetry = engine.telemetry().clone();
            spawn_blocking(move || telemetry.spans().unwrap().send_now()).await.unwrap();
            while let Ok(span) = spans.try_recv() {
                got.push(span);
            }
        }
    };
    soon("three spans", three).await;
    got.sort_by_key(|span| match attribute(span, "gen_ai.usage.completion_tokens") {
        Value::IntValue(tokens) => -tokens,
        other => panic!("{other:?}"),
    });
    let [grpc, json, alone] = &got[..] else { panic!("{got:?}") };
    for span in [grpc, json] {
        assert_eq!(hex(&span.trace_id), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert_eq!(hex(&span.parent_span_id), "00f067aa0ba902b7");
    }
    assert!(alone.parent_span_id.is_empty() && hex(&alone.trace_id) != "4bf92f3577b34da6a3ce929d0e0e4736");
    assert_eq!((grpc.name.as_str(), grpc.kind()), ("llm_request", SpanKind::Server));
    assert_eq!(attribute(grpc, "gen_ai.usage.prompt_tokens"), Value::IntValue(20));
    assert_eq!(attribute(grpc, "gen_ai.usage.completion_tokens"), Value::IntValue(5));
    assert_eq!(attribute(grpc, "gen_ai.response.model"), Value::StringValue("fake".into()));
    assert_eq!(attribute(grpc, "gen_ai.response.finish_reason"), Value::StringValue("length".into()));
    assert_eq!(events(grpc), ["queue", "prefill", "first_token", "decode", "end"]);
    assert!(grpc.end_time_unix_nano > grpc.start_time_unix_nano);
    assert!(got.iter().all(|span| span.status.clone().unwrap_or_default().code() == StatusCode::Unset));
}

/// A span of a request that asked for nothing.
fn record(spans: &Spans, error: Option<Code>) {
    spans.record(&RequestSpan {
        origin: &Origin::here("x".into()),
        model: "fake",
        params: &SamplingParams::default(),
        usage: Usage::default(),
        queue: Duration::ZERO,
        prefill: Duration::ZERO,
        total: Duration::from_millis(3),
        outcome: Outcome::Error,
        error,
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_fails_before_it_runs_says_so() {
    let (address, mut received, _may, _) = collector(1).await;
    let spans = Spans::to_collector(&address.to_string(), 8).unwrap();
    record(&spans, Some(Code::DeadlineExceeded));
    spawn_blocking(move || spans.shut_down()).await.unwrap();
    let span = soon("the span", received.recv()).await.unwrap();
    assert_eq!(events(&span), ["queue", "end"]);
    let status = span.status.unwrap();
    assert_eq!((status.code(), status.message.as_str()), (StatusCode::Error, "DEADLINE_EXCEEDED"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_that_does_not_answer_costs_spans_and_nothing_else() {
    const QUEUE: usize = 8;
    const MANY: usize = 5000;
    let (address, mut received, may, asked) = collector(0).await;
    let spans = Arc::new(Spans::to_collector(&address.to_string(), QUEUE).unwrap());
    // Whoever leaves a span never waits: this ends although nothing is taken.
    let busy = spans.clone();
    soon("all spans are left", spawn_blocking(move || (0..MANY).for_each(|_| record(&busy, None)))).await.unwrap();
    may.add_permits(1);
    spawn_blocking(move || spans.shut_down()).await.unwrap();
    let mut got = 0;
    while received.try_recv().is_ok() {
        got += 1;
    }
    // What the queue held, for each time that it was emptied, and no more.
    let asked = asked.load(Ordering::SeqCst);
    assert!(got > 0 && got < MANY && got <= (QUEUE + 1) * asked, "{got} in {asked} batches");
}

#[tokio::test]
async fn a_collector_that_is_not_there_is_no_hindrance() {
    let spans = Spans::to_collector("127.0.0.1:1", 8).unwrap();
    record(&spans, None);
    soon("it gives up", spawn_blocking(move || spans.shut_down())).await.unwrap();
    for wrong in ["https://collector:4317", "ftp://x", ""] {
        let error = Spans::to_collector(wrong, 8).unwrap_err();
        assert!(error.message.contains("--otlp-traces-endpoint"), "{error}");
    }
}
