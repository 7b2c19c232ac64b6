//! `/v1/chat/completions`: whole and streamed, contents in parts, several answers.

use serde_json::{Value, json};

use super::http::post;
use crate::grpc::{
    text::{continued, server, server_that_shows_prompts},
    tools,
};

const PATH: &str = "/v1/chat/completions";
const RENDERED: &str = "<system>Be brief.<user>Hi there<assistant>";

fn body() -> Value {
    json!({"model": "fake", "max_completion_tokens": 20, "messages": [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Hi "}, {"type": "text", "text": "there"}]},
    ]})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_are_rendered_and_answered() {
    let server = server().await;
    let answer = post(server.address, PATH, &body().to_string()).await;
    assert_eq!(answer.status, 200);
    let whole = answer.json().await;
    assert_eq!(whole["object"], "chat.completion");
    assert!(whole["id"].as_str().unwrap().starts_with("chatcmpl-"));
    let choice = &whole["choices"][0];
    assert_eq!(choice["message"], json!({"role": "assistant", "content": continued(RENDERED, 20), "refusal": null}));
    assert_eq!((&choice["finish_reason"], &choice["logprobs"]), (&json!("length"), &Value::Null));
    assert_eq!(whole["usage"]["prompt_tokens"], RENDERED.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_opens_with_the_role_and_closes_with_the_reason() {
    let server = server().await;
    let mut body = body();
    body["stream"] = true.into();
    body["n"] = 3.into();
    body["stream_options"] = json!({"include_usage": true});
    let chunks = post(server.address, PATH, &body.to_string()).await.chunks().await;
    for index in 0..3 {
        let mine: Vec<_> = chunks.iter().filter(|chunk| chunk["choices"][0]["index"] == index).collect();
        let (first, last) = (&mine[0]["choices"][0], &mine[mine.len() - 1]["choices"][0]);
        assert_eq!(first["delta"], json!({"role": "assistant", "content": ""}));
        assert_eq!((&last["delta"], &last["finish_reason"]), (&json!({}), &json!("length")));
        let told: String = mine.iter().filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str()).collect();
        assert_eq!(told, continued(RENDERED, 20));
        assert!(mine[..mine.len() - 1].iter().all(|chunk| chunk["choices"][0]["finish_reason"].is_null()));
    }
    let usage = &chunks.last().unwrap()["usage"];
    assert_eq!((&usage["prompt_tokens"], &usage["completion_tokens"]), (&json!(RENDERED.len()), &json!(60)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_carries_the_id_that_the_client_gave() {
    let server = server().await;
    let headers = "content-type: application/json; charset=utf-8\r\nx-request-id: mine-7\r\n";
    let answer = super::http::post_with(server.address, PATH, headers, &body().to_string()).await;
    assert_eq!(answer.header("x-request-id"), Some("mine-7"));
    assert_eq!(answer.json().await["id"], "chatcmpl-mine-7");
    let headers = "content-type: application/json\r\nx-request-id: no (word)\r\n";
    let answer = super::http::post_with(server.address, PATH, headers, "{").await;
    assert!(answer.header("x-request-id").is_some_and(|id| !id.contains('(')), "errors have one too");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_chat_is_told_beside_its_messages_reaches_the_template() {
    let server = server_that_shows_prompts().await;
    let refusal = json!([{"type": "refusal", "refusal": "No."}]);
    let messages = json!([{"role": "assistant", "content": refusal}, {"role": "user", "content": "Hi"}]);
    for (more, rendered) in [
        (json!({}), "<assistant>No.<user>Hi<assistant>"),
        (json!({"reasoning_effort": "high", "verbosity": "medium"}), "<assistant>No.<user>Hi/high<assistant>"),
        (json!({"reasoning_effort": "none"}), "<assistant>No.<user>Hi/none-<assistant>"),
        (json!({"truncate_prompt_tokens": 14}), "<user>Hi<assistant>"),
        (json!({"continue_final_message": true}), "<assistant>No.<user>Hi"),
    ] {
        let mut body = json!({"messages": messages, "max_tokens": 9});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let whole = post(server.address, PATH, &body.to_string()).await.json().await;
        let kept = if more["truncate_prompt_tokens"].is_null() { rendered } else { &rendered[rendered.len() - 14..] };
        assert_eq!(whole["choices"][0]["message"]["content"], continued(kept, 9), "{more}");
        assert_eq!(whole["usage"]["prompt_tokens"], kept.len(), "{more}");
        // What is counted is what is read.
        if more["truncate_prompt_tokens"].is_null() {
            let counted = post(server.address, "/tokenize", &body.to_string()).await.json().await;
            assert_eq!(counted["count"], rendered.len(), "{more}");
        }
    }
    let tool = json!({"type": "function", "function": {"name": "clock"}});
    let body = json!({"messages": messages, "tools": [tool], "chat_template_kwargs": {"reasoning_effort": "own"}});
    let counted = post(server.address, "/tokenize", &body.to_string()).await.json().await;
    assert_eq!(counted["count"], "<assistant>No.<user>Hi+clock/own<assistant>".len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thoughts_and_calls_stand_beside_the_text_and_are_counted() {
    let server = tools::server(tools::SCRIPT).await;
    let tool = |name: &str| json!({"type": "function", "function": {"name": name, "parameters": {"type": "object"}}});
    let mut body = json!({
        "messages": [{"role": "user", "content": "Weather?"}], "max_tokens": 400, "n": 2,
        "tools": [tool("get_weather"), tool("clock")],
    });
    // The mark and what stands before its end, in each of two answers.
    let thought = json!({"reasoning_tokens": 2 * "<think>\nI need it.".len()});
    let whole = post(server.address, PATH, &body.to_string()).await.json().await;
    for choice in whole["choices"].as_array().unwrap() {
        let message = &choice["message"];
        assert_eq!(
            (&message["reasoning_content"], &message["content"]),
            (&json!("I need it."), &json!("Let me look."))
        );
        let calls = message["tool_calls"].as_array().unwrap().iter();
        let names: Vec<_> = calls.map(|call| call["function"]["name"].as_str().unwrap()).collect();
        assert_eq!((names, &choice["finish_reason"]), (vec!["get_weather", "clock"], &json!("tool_calls")));
    }
    assert_eq!(whole["usage"]["completion_tokens_details"], thought);
    body["stream"] = true.into();
    body["stream_options"] = json!({"include_usage": true});
    let chunks = post(server.address, PATH, &body.to_string()).await.chunks().await;
    assert_eq!(chunks.last().unwrap()["usage"]["completion_tokens_details"], thought);
}
