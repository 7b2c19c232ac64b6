//! Requests that can never work: each is refused at once with its status, in OpenAI's shape, by the field at fault.

use serde_json::{Value, json};

use super::http::{Answer, get, post, post_with, send};
use crate::grpc::{
    Server, ids,
    text::{continued, server},
};

const COMPLETIONS: &str = "/v1/completions";
const CHAT: &str = "/v1/chat/completions";

async fn error(answer: Answer) -> (u16, Value) {
    let status = answer.status;
    let error = answer.json().await["error"].take();
    for field in ["message", "type", "param", "code"] {
        assert!(error.get(field).is_some(), "no {field} in {error}");
    }
    assert!(!error["message"].as_str().unwrap().is_empty());
    (status, error)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_field_is_refused_by_its_name() {
    let server = server().await;
    let wrong = [
        ("temperature", json!(-1)),
        ("temperature", json!("hot")),
        ("top_p", json!(7)),
        ("top_k", json!(-2)),
        ("min_p", json!(1.5)),
        ("repetition_penalty", json!(0)),
        ("frequency_penalty", json!(3)),
        ("presence_penalty", json!(-3)),
        ("logit_bias", json!({"x": 1})),
        ("logit_bias[3]", json!({"3": 1000})),
        ("logit_bias[5000000]", json!({"5000000": 1})),
        ("max_tokens", json!(0)),
        ("max_tokens", json!(-1)),
        ("max_tokens", json!(100_000)),
        ("min_tokens", json!(50)),
        ("stop", json!(7)),
        ("stop[1]", json!(["a", ""])),
        ("stop", json!(vec!["x"; 17])),
        ("stop_token_ids[0]", json!([5_000_000])),
        ("bad_words", json!("no")),
        ("bad_words[0]", json!([""])),
        ("allowed_token_ids", json!([])),
        ("allowed_token_ids[0]", json!([5_000_000])),
        ("n", json!(0)),
        ("n", json!(129)),
        ("best_of", json!(4)),
        ("seed", json!("x")),
        ("logprobs", json!(21)),
        ("suffix", json!("x")),
        ("prompt", json!([])),
        ("prompt", json!("")),
        ("prompt", json!(7)),
        ("prompt", json!("x".repeat(1100))),
        ("prompt[1]", json!([1, 5_000_000])),
        ("prompt", json!(["x", 1])),
        ("cache_salt", json!("x".repeat(1000))),
        ("stream", json!("yes")),
        ("response_format.type", json!({"type": "poem"})),
        ("response_format.json_schema.schema", json!({"type": "json_schema"})),
        ("response_format.json_schema.schema", json!({"type": "json_schema", "json_schema": {"schema": {"what": 1}}})),
        ("structured_outputs.regex", json!({"regex": "("})),
        ("modalities", json!(["audio"])),
        ("verbosity", json!("high")),
        ("prompt_embeds", json!("x")),
        ("logits_processors", json!(["x"])),
        ("truncate_prompt_tokens", json!(0)),
        ("truncate_prompt_tokens", json!(-2)),
        ("truncate_prompt_tokens", json!(1025)),
        ("add_special_tokens", json!("no")),
    ];
    for (param, value) in wrong {
        let mut body = json!({"prompt": "hello", "max_tokens": 8});
        let name = param.split(['.', '[']).next().unwrap();
        body[name] = value.clone();
        let (status, error) = error(post(server.address, COMPLETIONS, &body.to_string()).await).await;
        let param = param.trim_end_matches("[3]").trim_end_matches("[5000000]");
        assert_eq!(status, 400, "{param} = {value}: {error}");
        assert_eq!(error["type"], "invalid_request_error");
        let told = error["param"].as_str().unwrap();
        assert!(told == param || told.starts_with(&format!("{param}[")), "{told} for {param} = {value}: {error}");
    }
    server.idle().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_message_is_refused_by_its_path() {
    let server = server().await;
    let image = json!([{"type": "text", "text": "x"}, {"type": "image_url", "image_url": {"url": "data:,"}}]);
    let wrong = [
        ("messages", json!([])),
        ("messages", json!("hello")),
        ("messages[0].role", json!([{"role": "king", "content": "x"}])),
        ("messages[0]", json!([{"content": "x"}])),
        ("messages[0].content", json!([{"role": "user"}])),
        ("messages[0].content", json!([{"role": "user", "content": 7}])),
        ("messages[0].content[1].type", json!([{"role": "user", "content": image}])),
        ("messages[0].content[0].text", json!([{"role": "user", "content": [{"type": "text"}]}])),
        ("messages", json!([{"role": "user", "content": "x".repeat(1100)}])),
    ];
    for (param, messages) in wrong {
        let body = json!({"messages": messages}).to_string();
        let (status, error) = error(post(server.address, CHAT, &body).await).await;
        assert_eq!((status, error["param"].as_str()), (400, Some(param)), "{error}");
    }
    for (field, value) in [
        ("top_logprobs", json!(3)),
        ("audio", json!({})),
        ("functions", json!([{"name": "f"}])),
        ("reasoning_effort", json!("frob")),
        ("verbosity", json!("low")),
        ("echo", json!(true)),
        ("include_reasoning", json!(false)),
        ("tools[0].type", json!([{"type": "custom", "function": {"name": "f"}}])),
    ] {
        let mut body = json!({"messages": [{"role": "user", "content": "x"}]});
        body[field.split('[').next().unwrap()] = value;
        let (status, error) = error(post(server.address, CHAT, &body.to_string()).await).await;
        assert_eq!((status, error["param"].as_str()), (400, Some(field)), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_is_no_json_is_refused_and_the_server_goes_on() {
    let server = server().await;
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    for body in ["", "{", "nonsense", "[]", "null", "{\"prompt\": \"a\"} x", "{\"prompt\": \"\\ud800\"}", &deep] {
        let (status, error) = error(post(server.address, COMPLETIONS, body).await).await;
        assert_eq!(status, 400, "{body:.40}: {error}");
    }
    let whole = post(server.address, COMPLETIONS, r#"{"prompt": "hello", "max_tokens": 3}"#).await.json().await;
    assert_eq!(whole["choices"][0]["text"], continued("hello", 3));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_model_path_method_or_type_of_content_has_its_status() {
    let server = server().await;
    let other = json!({"model": "other", "prompt": "x", "messages": [{"role": "user", "content": "x"}]}).to_string();
    for path in [COMPLETIONS, CHAT] {
        let (status, error) = error(post(server.address, path, &other).await).await;
        assert_eq!((status, &error["code"], &error["param"]), (404, &json!("model_not_found"), &json!("model")));
        assert!(error["message"].as_str().unwrap().contains("fake"), "{error}");
    }
    assert_eq!(error(get(server.address, "/v1/models/other").await).await.0, 404);
    assert_eq!(error(get(server.address, "/v1/nothing/here").await).await.0, 404);
    assert_eq!(error(get(server.address, CHAT).await).await.0, 405);
    let unnamed = post_with(server.address, CHAT, "", &other).await;
    assert_eq!(error(unnamed).await.0, 415);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_beyond_the_size_limit_is_refused_announced_or_not() {
    let server = Server::well().await;
    let head = "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n";
    let announced = format!("{head}content-length: 99999999\r\n\r\n");
    assert_eq!(error(send(server.address, announced.as_bytes()).await).await.0, 413);
    // A byte more than is allowed, and none that the server leaves unread: closing would reset the connection then.
    let mut chunked = format!("{head}transfer-encoding: chunked\r\n\r\n400001\r\n").into_bytes();
    chunked.resize(chunked.len() + 0x40_0001, b' ');
    assert_eq!(error(send(server.address, &chunked).await).await.0, 413);
    let body = json!({"prompt": ids(1, 9), "max_tokens": 2}).to_string();
    assert_eq!(post(server.address, COMPLETIONS, &body).await.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn text_without_a_tokenizer_is_refused_and_says_so() {
    let server = Server::well().await;
    for (path, body) in [
        (COMPLETIONS, json!({"prompt": "x"})),
        (CHAT, json!({"messages": [{"role": "user", "content": "x"}]})),
        ("/tokenize", json!({"prompt": "x"})),
        ("/detokenize", json!({"tokens": [1]})),
    ] {
        let (status, error) = error(post(server.address, path, &body.to_string()).await).await;
        assert_eq!(status, 400, "{path}: {error}");
    }
}
