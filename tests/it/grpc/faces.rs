//! What stands beside generation: models, health, reflection, and the plain HTTP pages.

use std::time::Duration;

use candlewick::proto::candlewick::v1::{GetRequest, ListRequest, ModelImpl, models_client::ModelsClient};
use futures::stream;
use tonic::Code;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};
use tonic_reflection::pb::{v1, v1alpha};

use super::{Server, ids, read, request, soon};

const SERVICES: [&str; 7] = [
    "candlewick.v1.Chat",
    "candlewick.v1.Generation",
    "candlewick.v1.Models",
    "candlewick.v1.Tokens",
    "candlewick.v1.Embeddings",
    "inference.GRPCInferenceService",
    "vllm.grpc.engine.VllmEngine",
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_model_served_is_listed_and_found_by_its_name() {
    let server = Server::well().await;
    let mut models = ModelsClient::new(server.channel().await);
    let listed = models.list(ListRequest {}).await.unwrap().into_inner().models;
    assert_eq!(listed.len(), 1);
    let model = &listed[0];
    assert_eq!((model.name.as_str(), model.vocab_size, model.max_model_len), ("fake", 1000, 1024));
    assert!(!model.has_tokenizer && !model.has_chat_template);
    assert_eq!(model.model_impl(), ModelImpl::Candlewick);
    let found = models.get(GetRequest { name: "fake".into() }).await.unwrap().into_inner().model.unwrap();
    assert_eq!(&found, model);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_is_told_for_every_service_and_unknown_ones_are_named_so() {
    let server = Server::well().await;
    let mut health = HealthClient::new(server.channel().await);
    for service in SERVICES.into_iter().chain([""]) {
        let status = health.check(HealthCheckRequest { service: service.into() }).await.unwrap().into_inner().status();
        assert_eq!(status, ServingStatus::Serving, "{service:?}");
    }
    let unknown = HealthCheckRequest { service: "candlewick.v1.Nothing".into() };
    assert_eq!(health.check(unknown.clone()).await.unwrap_err().code(), Code::NotFound);
    let first = health.watch(unknown).await.unwrap().into_inner().message().await.unwrap().unwrap();
    assert_eq!(first.status(), ServingStatus::ServiceUnknown);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reflection_of_both_versions_lists_every_service_and_hands_out_its_file() {
    let server = Server::well().await;
    let channel = server.channel().await;

    use v1::server_reflection_request::MessageRequest;
    let ask = |message| v1::ServerReflectionRequest { host: String::new(), message_request: Some(message) };
    let questions = [
        ask(MessageRequest::ListServices(String::new())),
        ask(MessageRequest::FileContainingSymbol("candlewick.v1.Generation.GenerateStream".into())),
    ];
    let mut client = v1::server_reflection_client::ServerReflectionClient::new(channel.clone());
    let mut answers = client.server_reflection_info(stream::iter(questions)).await.unwrap().into_inner();
    let mut answer = async || soon("an answer", answers.message()).await.unwrap().unwrap().message_response.unwrap();
    let v1::server_reflection_response::MessageResponse::ListServicesResponse(list) = answer().await else { panic!() };
    let listed: Vec<_> = list.service.into_iter().map(|service| service.name).collect();
    for service in SERVICES.into_iter().chain(["grpc.health.v1.Health"]) {
        assert!(listed.iter().any(|name| name == service), "{service} is not in {listed:?}");
    }
    let v1::server_reflection_response::MessageResponse::FileDescriptorResponse(files) = answer().await else {
        panic!()
    };
    assert!(!files.file_descriptor_proto.is_empty());

    use v1alpha::server_reflection_request::MessageRequest as OldRequest;
    let question = v1alpha::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(OldRequest::ListServices(String::new())),
    };
    let mut client = v1alpha::server_reflection_client::ServerReflectionClient::new(channel);
    let mut answers = client.server_reflection_info(stream::iter([question])).await.unwrap().into_inner();
    let answer = soon("an answer", answers.message()).await.unwrap().unwrap().message_response.unwrap();
    let v1alpha::server_reflection_response::MessageResponse::ListServicesResponse(list) = answer else { panic!() };
    assert!(SERVICES.iter().all(|service| list.service.iter().any(|listed| listed.name == *service)));
}

/// Reads a line of the Prometheus text format: `name{labels} value`.
fn sample(line: &str) -> Option<(&str, f64)> {
    let (series, value) = line.rsplit_once(' ')?;
    let name = series.split('{').next()?;
    let named = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == ':');
    let closed = series == name || (series.contains("model_name=\"fake\"") && series.ends_with('}'));
    (named && closed).then_some((name, value.parse().ok()?))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_are_on_the_same_port_under_vllms_names() {
    let server = Server::well().await;
    let mut client = server.generation().await;
    read(client.generate_stream(request(&ids(1, 33), 10)).await.unwrap().into_inner()).await;
    client.generate_stream(request(&[], 10)).await.unwrap_err();
    server.idle().await;
    let (head, body) = server.get("/metrics").await;
    assert!(head.starts_with("http/1.1 200") && head.contains("content-type: application/openmetrics-text"), "{head}");
    let samples: Vec<_> = body
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| sample(line).unwrap_or_else(|| panic!("not a sample: {line}")))
        .collect();
    let value = |name: &str| samples.iter().filter(|(n, _)| *n == name).map(|(_, value)| value).sum::<f64>();
    for (name, expected) in [
        ("vllm:num_requests_running", 0.0),
        ("vllm:num_requests_waiting", 0.0),
        ("vllm:kv_cache_usage_perc", 0.0),
        ("vllm:num_preemptions_total", 0.0),
        ("vllm:prompt_tokens_total", 33.0),
        ("vllm:generation_tokens_total", 10.0),
        ("vllm:request_success_total", 1.0),
        ("vllm:time_to_first_token_seconds_count", 1.0),
        ("vllm:inter_token_latency_seconds_count", 9.0),
        ("vllm:e2e_request_latency_seconds_count", 1.0),
        ("vllm:cache_config_info", 1.0),
        ("candlewick:requests_refused_total", 1.0),
    ] {
        assert!(samples.iter().any(|(n, _)| *n == name), "no {name} in\n{body}");
        assert_eq!(value(name), expected, "{name}");
    }
    assert!(value("vllm:prefix_cache_queries_total") > 0.0);
    assert!(body.ends_with("# EOF\n"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plain_http_clients_get_plain_answers() {
    let server = Server::well().await;
    let (head, body) = server.get("/").await;
    assert!(head.starts_with("http/1.1 200") && body.contains("/v1/models"), "{head}\n{body}");
    assert!(server.get("/health").await.0.starts_with("http/1.1 200"));
    assert!(server.get("/nothing/here").await.0.starts_with("http/1.1 404"));
    server.engine.begin_drain();
    assert!(server.get("/health").await.0.starts_with("http/1.1 503"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_that_are_no_protocol_end_their_own_connection_only() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let server = Server::well().await;
    for garbage in [
        &b"\x16\x03\x01\x02\x00\x01\x00\x01"[..],
        b"GET / HTTP/9.9\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\xff",
    ] {
        let mut stream = tokio::net::TcpStream::connect(server.address).await.unwrap();
        stream.write_all(garbage).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut rest = Vec::new();
        // Whether it is told why or cut off is its own affair.
        let _ = tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut rest)).await.unwrap();
    }
    assert!(server.generation().await.generate_stream(request(&ids(1, 3), 2)).await.is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unknown_method_is_unimplemented() {
    let server = Server::well().await;
    let mut grpc = tonic::client::Grpc::new(server.channel().await);
    grpc.ready().await.unwrap();
    let codec = tonic_prost::ProstCodec::<ListRequest, ListRequest>::default();
    for path in ["/candlewick.v1.Generation/Nothing", "/candlewick.v9.Nothing/List"] {
        let path = tonic::codegen::http::uri::PathAndQuery::from_static(path);
        let refused = grpc.unary(tonic::Request::new(ListRequest {}), path, codec.clone()).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unimplemented);
        grpc.ready().await.unwrap();
    }
}
