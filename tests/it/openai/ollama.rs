//! `/api/chat`, `/api/generate` and what is served, as lines of JSON or whole.

use serde_json::{Value, json};

use candlewick::config::AllowedOrigins;

use super::http::{get, post_with, send};
use crate::{
    cli::Served,
    grpc::{
        Server,
        text::{continued, server, server_open_to, server_that_shows_prompts},
        tools,
    },
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
    for (raw, system, read) in [(false, "S", "<system>S<user>Hi<assistant>"), (true, "", "Hi")] {
        let options = json!({"num_predict": 9});
        let body =
            json!({"model": "fake", "prompt": "Hi", "system": system, "raw": raw, "stream": false, "options": options});
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
    assert_eq!(shown["capabilities"], json!(["completion"]));
    let server = tools::server(tools::SCRIPT).await;
    let shown = ask(&server, "/api/show", &json!({"model": "fake"})).await.json().await;
    assert_eq!(shown["capabilities"], json!(["completion", "tools", "thinking"]));
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
        (400, "/api/chat", json!({"model": "fake", "messages": messages, "format": "poem"})),
        (400, "/api/chat", json!({"model": "fake", "messages": messages, "format": {"what": 1}})),
        (400, "/api/chat", json!({"model": "fake", "messages": messages, "think": true})),
        (400, "/api/chat", json!({"model": "fake", "messages": messages, "logprobs": true})),
        (400, "/api/chat", json!({"model": "fake", "messages": messages, "options": {"typical_p": 7}})),
        (
            400,
            "/api/chat",
            json!({"model": "fake", "messages": messages, "options": {"repeat_penalty": 1.5, "repeat_last_n": 64}}),
        ),
        (400, "/api/generate", json!({"model": "fake", "prompt": "x", "raw": true, "system": "S"})),
        (400, "/api/generate", json!({"model": "fake", "prompt": "x", "context": [1, 2]})),
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

/// A question with the tools that the scripted model calls.
fn with_tools(stream: bool) -> Value {
    let tool = |name: &str| json!({"type": "function", "function": {"name": name, "parameters": {"type": "object"}}});
    json!({
        "model": "fake", "messages": [{"role": "user", "content": "Weather?"}], "think": true, "stream": stream,
        "tools": [tool("get_weather"), tool("clock")], "options": {"num_predict": 400},
    })
}

fn calls(message: &Value) -> Vec<Value> {
    let calls = message["tool_calls"].as_array().into_iter().flatten();
    calls
        .map(|call| json!([call["function"]["index"], call["function"]["name"], call["function"]["arguments"]]))
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thoughts_and_calls_of_tools_stand_beside_the_text_whole_and_streamed() {
    let server = tools::server(tools::SCRIPT).await;
    let expected = [json!([0, "get_weather", {"city": "München"}]), json!([1, "clock", {}])];
    let whole = ask(&server, "/api/chat", &with_tools(false)).await.json().await;
    let message = &whole["message"];
    assert_eq!((&message["thinking"], &message["content"]), (&json!("I need it."), &json!("Let me look.")));
    assert_eq!((calls(message), &whole["done_reason"]), (expected.to_vec(), &json!("stop")));

    let lines = lines(&server, "/api/chat", &with_tools(true)).await;
    let all = |field: &str| lines.iter().filter_map(|line| line["message"][field].as_str()).collect::<String>();
    assert_eq!((all("thinking").as_str(), all("content").as_str()), ("I need it.", "Let me look."));
    assert_eq!(lines.iter().flat_map(|line| calls(&line["message"])).collect::<Vec<_>>(), expected);
    assert!(lines.iter().filter(|line| !line["message"]["thinking"].is_null()).count() > 3, "as it comes");
    let generated = json!({"model": "fake", "prompt": "Hm?", "think": true, "stream": false});
    let whole = ask(&server, "/api/generate", &generated).await.json().await;
    assert_eq!(whole["thinking"], "I need it.");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_results_and_thoughts_of_the_past_reach_the_template() {
    let server = server_that_shows_prompts().await;
    let call = json!({"function": {"name": "clock", "arguments": {"n": 1}}});
    let body = json!({
        "model": "fake", "stream": false, "think": false, "options": {"num_predict": 9},
        "tools": [{"type": "function", "function": {"name": "clock"}}],
        "messages": [
            {"role": "user", "content": "Time?"},
            {"role": "assistant", "content": "", "thinking": "Hm.", "tool_calls": [call]},
            {"role": "tool", "tool_name": "clock", "content": "12:00"},
        ],
    });
    let rendered =
        "<user>Time?<assistant>(Hm.)[call00000 clock {\"n\": 1}]<tool call00000 clock>12:00+clock-<assistant>";
    let whole = ask(&server, "/api/chat", &body).await.json().await;
    assert_eq!(whole["message"]["content"], continued(rendered, 9), "{whole}");
    // A last message of the assistant's is the beginning of the answer.
    let messages = json!([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Well, "}]);
    let body = json!({"model": "fake", "stream": false, "messages": messages, "options": {"num_predict": 9}});
    let whole = ask(&server, "/api/chat", &body).await.json().await;
    assert_eq!(whole["message"]["content"], continued("<user>Hi<assistant>Well, ", 9), "{whole}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_has_the_form_that_is_asked_for() {
    let served = Served::start(&[]);
    let schema = json!({"type": "object", "properties": {"n": {"type": "integer", "minimum": 1, "maximum": 5}},
                        "required": ["n"], "additionalProperties": false});
    let body = json!({"model": "demo", "stream": false, "format": schema, "options": {"num_predict": 100},
                      "messages": [{"role": "user", "content": "How many?"}]});
    let whole = post_with(served.address.parse().unwrap(), "/api/chat", "", &body.to_string()).await.json().await;
    let said: Value = serde_json::from_str(whole["message"]["content"].as_str().unwrap()).unwrap();
    assert!((1..=5).contains(&said["n"].as_u64().unwrap()), "{whole}");
}
