//! `/v1/messages`: whole, streamed as events, counted, refused in Anthropic's shape.

use serde_json::{Value, json};

use super::http::{get, post};
use crate::grpc::text::{continued, server};

const PATH: &str = "/v1/messages";
const RENDERED: &str = "<system>Be brief.<user>Hi<assistant>";

fn body() -> Value {
    let content = json!([{"type": "text", "text": "Hi"}]);
    json!({"model": "fake", "max_tokens": 20, "system": "Be brief.", "messages": [{"role": "user", "content": content}]})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_is_answered_and_counted() {
    let server = server().await;
    let whole = post(server.address, PATH, &body().to_string()).await.json().await;
    assert_eq!((&whole["type"], &whole["role"]), (&json!("message"), &json!("assistant")));
    assert_eq!(whole["content"], json!([{"type": "text", "text": continued(RENDERED, 20)}]));
    assert_eq!((&whole["stop_reason"], &whole["stop_sequence"]), (&json!("max_tokens"), &Value::Null));
    let usage = &whole["usage"];
    let read = usage["input_tokens"].as_u64().unwrap() + usage["cache_read_input_tokens"].as_u64().unwrap();
    assert_eq!((read, usage["output_tokens"].as_u64()), (RENDERED.len() as u64, Some(20)));
    let counted = post(server.address, "/v1/messages/count_tokens", &body().to_string()).await.json().await;
    assert_eq!(counted["input_tokens"], RENDERED.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_is_the_events_that_build_the_message() {
    let server = server().await;
    let mut body = body();
    body["stream"] = true.into();
    let stop = continued(RENDERED, 20)[10..12].to_owned();
    body["stop_sequences"] = json!([stop]);
    let events = post(server.address, PATH, &body.to_string()).await.events().await;
    let (mut names, mut told) = (Vec::new(), String::new());
    for (name, data) in &events {
        let data: Value = serde_json::from_str(data).unwrap();
        assert_eq!(data["type"], **name.as_ref().unwrap());
        match name.as_deref().unwrap() {
            "content_block_delta" => told.push_str(data["delta"]["text"].as_str().unwrap()),
            "message_delta" => {
                assert_eq!(data["delta"], json!({"stop_reason": "stop_sequence", "stop_sequence": stop}));
                names.push("message_delta");
            }
            other => names.push(other),
        }
    }
    assert_eq!(names, ["message_start", "content_block_start", "content_block_stop", "message_delta", "message_stop"]);
    assert_eq!(told, continued(RENDERED, 20).split(&stop).next().unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_work_is_refused_in_anthropics_shape() {
    let server = server().await;
    let message = json!([{"role": "user", "content": "Hi"}]);
    for (status, kind, body) in [
        (400, "invalid_request_error", json!({"model": "fake", "messages": message})),
        (400, "invalid_request_error", json!({"model": "fake", "max_tokens": 0, "messages": message})),
        (400, "invalid_request_error", json!({"model": "fake", "max_tokens": 5, "messages": []})),
        (400, "invalid_request_error", json!({"model": "fake", "max_tokens": 5, "messages": message, "tools": [{}]})),
        (400, "invalid_request_error", json!({"model": "fake", "max_tokens": 5, "messages": message, "top_p": 7})),
        (404, "not_found_error", json!({"model": "other", "max_tokens": 5, "messages": message})),
    ] {
        let refused = post(server.address, PATH, &body.to_string()).await;
        assert_eq!(refused.status, status, "{body}");
        let told = refused.json().await;
        assert_eq!((&told["type"], &told["error"]["type"]), (&json!("error"), &json!(kind)), "{body}");
    }
    assert_eq!(get(server.address, PATH).await.status, 405);
    server.engine.begin_drain();
    let refused = post(server.address, PATH, &body().to_string()).await;
    assert_eq!((refused.status, refused.header("retry-after")), (529, Some("1")));
    assert_eq!(refused.json().await["error"]["type"], "overloaded_error");
}
