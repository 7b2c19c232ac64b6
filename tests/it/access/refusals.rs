//! What is had without a key, and how each face says no.

use candlewick::proto::{FILE_DESCRIPTOR_SET, candlewick::v1::generation_client::GenerationClient};
use prost::Message as _;
use serde_json::json;
use tonic::Code;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tonic_types::StatusExt;

use super::{generation, headers, server};
use crate::{
    grpc::{ids, read, request},
    openai::http::{get, post, post_with, send},
};

/// Calls of our services that say how the server is, and nothing else.
const OPEN: [&str; 3] = [
    "/vllm.grpc.engine.VllmEngine/HealthCheck",
    "/inference.GRPCInferenceService/ServerLive",
    "/inference.GRPCInferenceService/ServerReady",
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_method_of_every_service_asks_for_a_key() {
    let server = server(&["a"]).await;
    let set = prost_types::FileDescriptorSet::decode(FILE_DESCRIPTOR_SET).unwrap();
    let mut refused = 0;
    for file in &set.file {
        for (service, method) in file.service.iter().flat_map(|s| s.method.iter().map(move |m| (s.name(), m.name()))) {
            let path = format!("/{}.{service}/{method}", file.package());
            let headers = "content-type: application/grpc-web+proto\r\n";
            // An empty message.
            let answer = post_with(server.address, &path, headers, "\0\0\0\0\0").await;
            let is_refused = answer.header("grpc-status") == Some("16");
            assert_eq!(is_refused, !OPEN.contains(&path.as_str()), "{path}");
            assert_eq!(answer.header("content-type"), Some("application/grpc-web+proto"), "{path}");
            refused += usize::from(is_refused);
        }
    }
    assert!(refused > 20, "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_of_grpc_is_told_why_and_one_with_the_key_is_served() {
    let server = server(&["a"]).await;
    let prompt = ids(1, 20).into_iter().map(|id| id % 100).collect::<Vec<_>>();
    for mut client in [server.generation().await, GenerationClient::new(server.channel().await)] {
        let status = client.generate_stream(request(&prompt, 3)).await.unwrap_err();
        assert_eq!(status.code(), Code::Unauthenticated);
        assert_eq!(status.get_details_error_info().unwrap().reason, "CREDENTIALS_MISSING");
    }
    let wrong = generation(&server, "nobody").await.generate_stream(request(&prompt, 3)).await.unwrap_err();
    assert_eq!(wrong.code(), Code::Unauthenticated);
    let mut client = generation(&server, "a").await;
    let all = read(client.generate_stream(request(&prompt, 3)).await.unwrap().into_inner()).await;
    assert_eq!(all.token_ids().len(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_face_refuses_in_its_own_shape() {
    let server = server(&["a"]).await;
    let body = json!({"model": "fake", "max_tokens": 3, "messages": [{"role": "user", "content": "Hi"}]}).to_string();
    for (path, field, value) in [
        ("/v1/chat/completions", "/error/type", json!("authentication_error")),
        ("/v1/chat/completions", "/error/code", json!("invalid_api_key")),
        ("/v1/responses", "/error/code", json!("invalid_api_key")),
        ("/tokenize", "/error/code", json!("invalid_api_key")),
        ("/no/such/path", "/error/code", json!("invalid_api_key")),
        ("/v1/messages", "/error/type", json!("authentication_error")),
        ("/v1/messages", "/type", json!("error")),
        ("/api/chat", "/error", json!("this server asks for a key: send the header authorization: Bearer KEY")),
    ] {
        let answer = post(server.address, path, &body).await;
        assert_eq!((answer.status, answer.header("www-authenticate")), (401, Some("Bearer")), "{path}");
        assert_eq!(answer.json().await.pointer(field), Some(&value), "{path}");
    }
    for path in ["/v1/chat/completions", "/v1/messages", "/api/chat"] {
        assert_eq!(post_with(server.address, path, &headers("a"), &body).await.status, 200, "{path}");
    }
    let anthropic = "content-type: application/json\r\nx-api-key: key-of-a\r\n";
    assert_eq!(post_with(server.address, "/v1/messages", anthropic, &body).await.status, 200);
    assert_eq!(
        post_with(server.address, "/v1/messages", anthropic, "").await.status,
        400,
        "the body is looked at last"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_said_without_a_key_is_short() {
    let server = server(&["a"]).await;
    for path in ["/grpc.health.v1.Health/Check", OPEN[0], OPEN[1], OPEN[2]] {
        for (length, status) in [(4 << 10, None), ((4 << 10) + 1, Some("11"))] {
            // A field that nobody knows: its number, its length in two bytes, and its bytes.
            let inside = length - 3;
            let field = [vec![0x7a, ((inside & 0x7f) | 0x80) as u8, (inside >> 7) as u8], vec![b'x'; inside]].concat();
            let message = [&[0, 0, 0][..], &(length as u16).to_be_bytes(), &field].concat();
            let head = format!(
                "POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/grpc-web+proto\r\ncontent-length: {}\r\n\r\n",
                message.len()
            );
            let answer = send(server.address, &[head.as_bytes(), &message].concat()).await;
            assert_eq!(answer.header("grpc-status").filter(|status| *status != "0"), status, "{path} {length}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn how_the_server_is_can_be_asked_without_a_key() {
    let server = server(&["a"]).await;
    for path in ["/", "/health", "/metrics", "/ping", "/version"] {
        assert_eq!(get(server.address, path).await.status, 200, "{path}");
    }
    for path in ["/v1/models", "/api/tags", "/api/version", "/v1/responses/resp_x", "/nothing"] {
        assert_eq!(get(server.address, path).await.status, 401, "{path}");
    }
    let deleted = send(server.address, b"DELETE /v1/responses/resp_x HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert_eq!(deleted.status, 401);
    let mut health = HealthClient::new(server.channel().await);
    health.check(HealthCheckRequest { service: String::new() }).await.unwrap();
}
