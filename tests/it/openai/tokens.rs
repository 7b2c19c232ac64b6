//! What is served, and text to tokens and back.

use serde_json::json;

use super::http::{get, post};
use crate::grpc::text::server;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_model_is_listed_and_described() {
    let server = server().await;
    let list = get(server.address, "/v1/models").await.json().await;
    assert_eq!((&list["object"], &list["data"][0]["id"]), (&json!("list"), &json!("fake")));
    assert_eq!(list["data"][0]["max_model_len"], 1024);
    assert_eq!(get(server.address, "/v1/models/fake").await.json().await["object"], "model");
    assert!(get(server.address, "/version").await.json().await["version"].is_string());
    assert_eq!(get(server.address, "/ping").await.status, 200);
    server.engine.begin_drain();
    assert_eq!(get(server.address, "/ping").await.status, 503);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokenizing_and_back_gives_the_same_text() {
    let server = server().await;
    let text = "Grüße, 世界 🌍!";
    let told = post(server.address, "/tokenize", &json!({"prompt": text}).to_string()).await.json().await;
    assert_eq!((told["count"].as_u64(), told["max_model_len"].as_u64()), (Some(text.len() as u64), Some(1024)));
    let back = post(server.address, "/detokenize", &json!({"tokens": told["tokens"]}).to_string()).await.json().await;
    assert_eq!(back["prompt"], text);
    let body = json!({"messages": [{"role": "user", "content": "Hi"}], "return_token_strs": true}).to_string();
    let told = post(server.address, "/tokenize", &body).await.json().await;
    assert_eq!(told["count"], "<user>Hi<assistant>".len());
    assert_eq!(told["token_strs"][0], "<");
    let beyond = post(server.address, "/detokenize", r#"{"tokens": [1, 256]}"#).await;
    assert_eq!(beyond.status, 400);
    assert_eq!(beyond.json().await["error"]["param"], "tokens[1]");
}
