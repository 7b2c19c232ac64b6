//! `/v1/messages`: whole, streamed as events, counted, refused in Anthropic's shape.

use serde_json::{Value, json};

use super::http::{get, post};
use crate::grpc::{
    Server,
    text::{continued, server, server_that_shows_prompts},
    tools,
};

const PATH: &str = "/v1/messages";
const RENDERED: &str = "<system>Be brief.<user>Hi<assistant>";

fn with(messages: &Value, field: &str, value: Value) -> Value {
    let mut body = json!({"model": "fake", "max_tokens": 5, "messages": messages});
    body[field] = value;
    body
}

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
        (400, "invalid_request_error", with(&message, "tools", json!([{"type": "web_search_20250305", "name": "w"}]))),
        (400, "invalid_request_error", with(&message, "tool_choice", json!({"type": "tool", "name": "f"}))),
        (400, "invalid_request_error", with(&message, "thinking", json!({"type": "enabled", "budget_tokens": 1024}))),
        (400, "invalid_request_error", with(&message, "mcp_servers", json!([{"name": "m"}]))),
        (400, "invalid_request_error", with(&message, "output_config", json!({"effort": "frob"}))),
        (400, "invalid_request_error", with(&message, "output_config", json!({"format": {"type": "poem"}}))),
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

/// A question with the tools that the scripted model calls.
fn with_tools() -> Value {
    let city = json!({"type": "object", "properties": {"city": {"type": "string"}}});
    json!({
        "model": "fake", "max_tokens": 400, "messages": [{"role": "user", "content": "Weather?"}],
        "tools": [{"name": "get_weather", "input_schema": city}, {"name": "clock", "input_schema": {"type": "object"}}],
    })
}

/// What the scripted model says, but for the ids of its calls, which are drawn.
fn scripted() -> Value {
    json!([
        {"type": "thinking", "thinking": "I need it.", "signature": ""},
        {"type": "text", "text": "Let me look."},
        {"type": "tool_use", "id": "", "name": "get_weather", "input": {"city": "München"}},
        {"type": "tool_use", "id": "", "name": "clock", "input": {}},
    ])
}

fn without_ids(mut content: Value) -> Value {
    for block in content.as_array_mut().unwrap() {
        if block["type"] == "tool_use" {
            assert!(block["id"].as_str().unwrap().starts_with("call_"));
            block["id"] = "".into();
        }
    }
    content
}

/// The content and the reason to stop that a stream's events build, as Anthropic's clients put them together.
fn built(events: &[(Option<String>, String)]) -> (Value, Value) {
    let (mut content, mut open, mut reason) = (Vec::<Value>::new(), None, Value::Null);
    for (name, data) in events {
        let data: Value = serde_json::from_str(data).unwrap();
        let index = data["index"].as_u64();
        match name.as_deref().unwrap() {
            "content_block_start" => {
                assert_eq!((index, open), (Some(content.len() as u64), None), "one after another");
                let mut block = data["content_block"].clone();
                if block["type"] == "tool_use" {
                    assert_eq!(block["input"], json!({}));
                    block["input"] = "".into();
                }
                content.push(block);
                open = index;
            }
            "content_block_delta" => {
                assert_eq!(index, open);
                let block = content.last_mut().unwrap();
                let delta = &data["delta"];
                let (field, more) = match delta["type"].as_str().unwrap() {
                    "text_delta" => ("text", &delta["text"]),
                    "thinking_delta" => ("thinking", &delta["thinking"]),
                    "input_json_delta" => ("input", &delta["partial_json"]),
                    other => panic!("{other}"),
                };
                block[field] = format!("{}{}", block[field].as_str().unwrap(), more.as_str().unwrap()).into();
            }
            "content_block_stop" => {
                assert_eq!((index, open.take()), (index, index));
                let block = content.last_mut().unwrap();
                if block["type"] == "tool_use" {
                    block["input"] = serde_json::from_str(block["input"].as_str().unwrap()).unwrap();
                }
            }
            "message_delta" => reason = data["delta"]["stop_reason"].clone(),
            _ => {}
        }
    }
    assert_eq!(open, None);
    (content.into(), reason)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thoughts_and_calls_of_tools_are_blocks_whole_and_streamed() {
    let server = tools::server(tools::SCRIPT).await;
    let mut body = with_tools();
    let whole = post(server.address, PATH, &body.to_string()).await.json().await;
    assert_eq!((without_ids(whole["content"].clone()), &whole["stop_reason"]), (scripted(), &json!("tool_use")));
    body["stream"] = true.into();
    body["thinking"] = json!({"type": "enabled", "budget_tokens": 1024});
    let (content, reason) = built(&post(server.address, PATH, &body.to_string()).await.events().await);
    assert_eq!((without_ids(content), reason), (scripted(), json!("tool_use")));
    // Cut off within the first call.
    body["stream"] = false.into();
    body["max_tokens"] = (tools::SCRIPT.find("Mün").unwrap() + 1).into();
    let cut = post(server.address, PATH, &body.to_string()).await.json().await;
    assert_eq!((cut["content"].as_array().unwrap().len(), &cut["stop_reason"]), (2, &json!("max_tokens")));
}

async fn said(server: &Server, body: Value) -> String {
    let whole = post(server.address, PATH, &body.to_string()).await.json().await;
    let text = whole["content"][0]["text"].as_str();
    text.unwrap_or_else(|| panic!("{whole}")).to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_results_and_thoughts_of_the_past_reach_the_template() {
    let server = server_that_shows_prompts().await;
    let call = json!({"type": "tool_use", "id": "a", "name": "clock", "input": {"n": 1}});
    let body = json!({
        "model": "fake", "max_tokens": 9, "tools": [{"name": "clock"}], "tool_choice": {"type": "auto"},
        "output_config": {"effort": "low"}, "thinking": {"type": "disabled"},
        "messages": [
            {"role": "user", "content": "Time?"},
            {"role": "assistant", "content": [{"type": "thinking", "thinking": "Hm.", "signature": ""}, call]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "a", "content": "12:00"}]},
        ],
    });
    let rendered = "<user>Time?<assistant>(Hm.)[a clock {\"n\": 1}]<tool a clock>12:00+clock/low-<assistant>";
    assert_eq!(said(&server, body.clone()).await, continued(rendered, 9));
    let counted = post(server.address, "/v1/messages/count_tokens", &body.to_string()).await.json().await;
    assert_eq!(counted["input_tokens"], rendered.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_last_message_of_the_assistants_is_the_beginning_of_the_answer() {
    let server = server().await;
    let messages = json!([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Well, "}]);
    let body = json!({"model": "fake", "max_tokens": 9, "messages": messages});
    let rendered = "<user>Hi<assistant>Well, ";
    assert_eq!(said(&server, body.clone()).await, continued(rendered, 9));
    let counted = post(server.address, "/v1/messages/count_tokens", &body.to_string()).await.json().await;
    assert_eq!(counted["input_tokens"], rendered.len());
}
