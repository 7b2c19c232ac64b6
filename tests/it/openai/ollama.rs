//! `/api/chat`, `/api/generate` and what is served, as lines of JSON or whole.

use serde_json::{Value, json};

use candlewick::config::AllowedOrigins;

use super::http::{get, post_with, send};
use crate::grpc::{
    Server,
    text::{continued, server, server_open_to},
};

/// Without a type of content, as Ollama's documentation has it.
async fn ask(server: &Server, path: &str, body: &Value) -> super::http::Answer {
    post_with(server.address, path, "", &body.to_string()).await
}

async fn lines(server: &Server, path: &str, body: &Value) -> Vec<Value> {
    let answer = ask(server, path, body).await;
    assert_eq!((answer.status, answer.header("content-type")), (200, Some("application/x-ndjson")), "{body}");
    answer.text().await.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chat_streams_lines_and_the_last_one_counts() {
    let server = server().await;
    let body = json!({"model": "fake:latest", "messages": [{"role": "user", "content": "Hi"}],
                      "options": {"num_predict": 20, "num_ctx": 4096}});
    let lines = lines(&server, "/api/chat", &body).await;
    let told: String = lines.iter().map(|line| line["message"]["content"].as_str().unwrap()).collect();
    assert_eq!(told, continued("<user>Hi<assistant>", 20));
    let (last, others) = lines.split_last().unwrap();
    assert!(others.iter().all(|line| line["done"] == false));
    assert_eq!((&last["done"], &last["done_reason"]), (&json!(true), &json!("length")));
    assert_eq!((&last["prompt_eval_count"], &last["eval_count"]), (&json!(19), &json!(20)));
    assert!(last["total_duration"].as_u64() >= last["eval_duration"].as_u64());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prompt_is_a_turn_of_a_chat_unless_it_is_raw() {
    let server = server().await;
    for (raw, read) in [(false, "<system>S<user>Hi<assistant>"), (true, "Hi")] {
        let options = json!({"num_predict": 9});
        let body =
            json!({"model": "fake", "prompt": "Hi", "system": "S", "raw": raw, "stream": false, "options": options});
        let whole = ask(&server, "/api/generate", &body).await.json().await;
        assert_eq!((&whole["response"], &whole["done"]), (&json!(continued(read, 9)), &json!(true)));
    }
    let loaded = ask(&server, "/api/generate", &json!({"model": "fake"})).await.json().await;
    assert_eq!(loaded["done_reason"], "load");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_model_is_listed_and_shown() {
    let server = server().await;
    for path in ["/api/tags", "/api/ps"] {
        assert_eq!(get(server.address, path).await.json().await["models"][0]["name"], "fake", "{path}");
    }
    assert!(get(server.address, "/api/version").await.json().await["version"].is_string());
    let shown = ask(&server, "/api/show", &json!({"model": "fake"})).await.json().await;
    assert_eq!(shown["model_info"]["fake.context_length"], 1024);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_of_another_site_cannot_have_a_generation_run() {
    let server = server_open_to(AllowedOrigins::List(vec!["https://chat.example.org".into()])).await;
    let body = json!({"model": "fake", "prompt": "Hi", "stream": false, "options": {"num_predict": 2}}).to_string();
    for (origin, status) in [
        ("https://evil.example", 403),
        ("null", 403),
        ("http://localhost:3000", 403),
        // The host that the request names is the server's own.
        ("http://localhost", 200),
        ("https://chat.example.org", 200),
    ] {
        // What a page sends without being asked.
        let headers = format!("content-type: text/plain\r\norigin: {origin}\r\n");
        let answer = post_with(server.address, "/api/generate", &headers, &body).await;
        assert_eq!(answer.status, status, "{origin}");
        let answer = answer.json().await;
        assert_eq!(answer["error"].is_string(), status == 403, "{origin}: {answer}");
    }
    server.idle().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_that_leads_here_is_no_way_in_for_its_pages() {
    let server = server_open_to(AllowedOrigins::List(vec!["https://chat.example.org".into()])).await;
    let body = json!({"model": "fake", "prompt": "Hi", "max_tokens": 2}).to_string();
    for (host, origin, status) in [
        // To the browser it is the page's own server.
        ("evil.example", "origin: http://evil.example\r\n", 403),
        ("127.0.0.1", "origin: http://127.0.0.1\r\n", 200),
        ("chat.example.org", "origin: https://chat.example.org\r\n", 200),
        // No browser.
        ("model.example", "", 200),
    ] {
        let head = format!(
            "POST /v1/completions HTTP/1.1\r\nhost: {host}\r\n{origin}content-type: application/json\r\n\
             content-length: {}\r\n\r\n{body}",
            body.len()
        );
        let answer = send(server.address, head.as_bytes()).await;
        assert_eq!(answer.status, status, "{host}");
        assert_eq!(answer.json().await["error"].is_object(), status == 403, "{host}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_work_is_refused_in_ollamas_shape() {
    let server = server().await;
    let messages = json!([{"role": "user", "content": "Hi"}]);
    for (status, path, body) in [
        (404, "/api/chat", json!({"model": "other", "messages": messages})),
        (400, "/api/chat", json!({"model": "fake", "messages": [{"role": "king"}]})),
        (400, "/api/chat", json!({"model": "fake", "messages": messages, "format": "json"})),
        (400, "/api/chat", json!({"model": "fake", "messages": messages, "options": {"temperature": "hot"}})),
        (400, "/api/chat", json!({"model": "fake", "messages": messages, "options": {"top_p": 7}})),
        (400, "/api/generate", json!({"model": "fake", "prompt": "x", "images": ["aGk="]})),
        (400, "/api/generate", json!({"prompt": "x"})),
        (404, "/api/show", json!({"model": "other"})),
        (404, "/api/pull", json!({"model": "fake"})),
    ] {
        let refused = ask(&server, path, &body).await;
        assert_eq!(refused.status, status, "{path} {body}");
        assert!(refused.json().await["error"].is_string());
    }
}
