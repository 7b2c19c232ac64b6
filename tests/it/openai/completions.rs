//! `/v1/completions`: whole and streamed, one prompt and many.

use serde_json::{Value, json};

use super::http::post;
use crate::grpc::{
    Server, expected, ids,
    text::{continued, server, server_with_special_tokens},
};

const PATH: &str = "/v1/completions";

async fn complete(server: &Server, body: Value) -> Value {
    let answer = post(server.address, PATH, &body.to_string()).await;
    assert_eq!(answer.status, 200, "{body}");
    answer.json().await
}

async fn stream(server: &Server, mut body: Value) -> Vec<Value> {
    body["stream"] = true.into();
    let answer = post(server.address, PATH, &body.to_string()).await;
    assert_eq!(answer.status, 200, "{body}");
    answer.chunks().await
}

/// The text of one choice, put together from its chunks.
fn told(chunks: &[Value], index: usize) -> String {
    let choices = chunks.iter().flat_map(|chunk| chunk["choices"].as_array().unwrap());
    choices.filter(|choice| choice["index"] == index).map(|choice| choice["text"].as_str().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_text_is_continued_whole_and_streamed() {
    let server = server().await;
    let body = json!({"model": "fake", "prompt": "Once upon a time", "max_tokens": 40});
    let whole = complete(&server, body.clone()).await;
    assert_eq!(whole["object"], "text_completion");
    let choice = &whole["choices"][0];
    assert_eq!((choice["finish_reason"].as_str(), choice["index"].as_u64()), (Some("length"), Some(0)));
    assert_eq!(choice["text"], continued("Once upon a time", 40));
    assert_eq!((&whole["usage"]["prompt_tokens"], &whole["usage"]["completion_tokens"]), (&json!(16), &json!(40)));
    assert_eq!(whole["usage"]["total_tokens"], 56);

    let chunks = stream(&server, body).await;
    assert_eq!(told(&chunks, 0), continued("Once upon a time", 40));
    assert!(chunks.iter().all(|chunk| chunk["id"] == chunks[0]["id"] && chunk.get("usage").is_none()));
    assert_eq!(chunks.last().unwrap()["choices"][0]["finish_reason"], "length");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_banned_string_is_not_said() {
    let plain = continued("prompt", 30);
    let banned = &plain[5..8];
    let body = json!({"prompt": "prompt", "max_tokens": 30, "bad_words": [banned]});
    let whole = complete(&server().await, body).await;
    let said = whole["choices"][0]["text"].as_str().unwrap();
    assert_eq!(&said[..5], &plain[..5]);
    assert!(!said.contains(banned), "{said:?} says {banned:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixteen_tokens_come_where_the_request_does_not_say() {
    let whole = complete(&server().await, json!({"prompt": "x"})).await;
    assert_eq!(whole["usage"]["completion_tokens"], 16);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_prompt_of_a_batch_gets_its_answers_in_order() {
    let server = server().await;
    let body = json!({"prompt": ["ab", "xyz"], "n": 2, "max_tokens": 8, "echo": true});
    let whole = complete(&server, body.clone()).await;
    let choices = whole["choices"].as_array().unwrap();
    assert_eq!(choices.len(), 4);
    for (k, choice) in choices.iter().enumerate() {
        let prompt = ["ab", "xyz"][k / 2];
        assert_eq!(choice["index"], k);
        assert_eq!(choice["text"], format!("{prompt}{}", continued(prompt, 8)));
    }
    assert_eq!(whole["usage"]["prompt_tokens"], 5, "a prompt counts once, however many answers it has");
    assert_eq!(whole["usage"]["completion_tokens"], 32);
    let chunks = stream(&server, body).await;
    for (k, prompt) in [(0, "ab"), (1, "ab"), (2, "xyz"), (3, "xyz")] {
        assert_eq!(told(&chunks, k), format!("{prompt}{}", continued(prompt, 8)));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prompt_that_is_repeated_has_log_probabilities_too() {
    let server = server().await;
    let body = json!({"prompt": ["xyz", "a"], "max_tokens": 2, "echo": true, "logprobs": 1});
    let whole = complete(&server, body.clone()).await;
    let chunks = stream(&server, body).await;
    for (k, prompt) in [(0, "xyz"), (1, "a")] {
        let logprobs = &whole["choices"][k]["logprobs"];
        let list = |of: &Value, name: &str| of[name].as_array().unwrap().clone();
        // Of what it says itself the fake knows none.
        let names: Vec<_> = prompt.chars().map(|letter| json!(letter.to_string())).collect();
        assert_eq!(list(logprobs, "tokens"), names);
        assert_eq!(list(logprobs, "text_offset"), (0..names.len()).map(|at| json!(at)).collect::<Vec<_>>());
        for field in ["token_logprobs", "top_logprobs"] {
            let values = list(logprobs, field);
            assert!(values[0].is_null(), "nothing predicts the first token");
            assert!(values.len() == names.len() && values[1..].iter().all(|value| !value.is_null()), "{values:?}");
            let streamed: Vec<_> = chunks
                .iter()
                .flat_map(|chunk| chunk["choices"].as_array().unwrap())
                .filter(|choice| choice["index"] == k && !choice["logprobs"].is_null())
                .flat_map(|choice| list(&choice["logprobs"], field))
                .collect();
            assert_eq!(streamed, values);
        }
        assert_eq!(told(&chunks, k), format!("{prompt}{}", continued(prompt, 2)));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn token_ids_go_in_as_they_are_alone_and_in_batches() {
    // Without a tokenizer there is no text; which tokens came is counted in the next turn's cache, and by usage.
    let server = Server::well().await;
    let (first, second) = (ids(1, 33), ids(2, 9));
    let whole = complete(&server, json!({"prompt": [first, second], "max_tokens": 5})).await;
    assert_eq!(whole["usage"]["prompt_tokens"], 42);
    assert_eq!(whole["choices"].as_array().unwrap().len(), 2);
    let stop = expected(&ids(1, 33), 5)[3];
    let whole = complete(&server, json!({"prompt": ids(1, 33), "max_tokens": 5, "stop_token_ids": [stop]})).await;
    assert_eq!(whole["choices"][0]["finish_reason"], "stop");
    assert_eq!(whole["choices"][0]["stop_reason"], stop);
    assert_eq!(whole["usage"]["completion_tokens"], 4);
    assert!(whole["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap() >= 32);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_string_is_named_and_left_out_unless_asked_for() {
    let server = server().await;
    let whole = continued("hello", 60);
    let stop = whole[20..24].to_owned();
    let (before, _) = whole.split_once(&stop).unwrap();
    let mut body = json!({"prompt": "hello", "max_tokens": 60, "stop": stop});
    let choice = complete(&server, body.clone()).await["choices"][0].clone();
    assert_eq!((choice["text"].as_str(), choice["finish_reason"].as_str()), (Some(before), Some("stop")));
    assert_eq!(choice["stop_reason"], stop);
    body["include_stop_str_in_output"] = true.into();
    body["stop"] = json!([stop]);
    let chunks = stream(&server, body).await;
    assert_eq!(told(&chunks, 0), format!("{before}{stop}"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn usage_comes_at_the_end_or_all_the_way_as_asked() {
    let server = server().await;
    let body = json!({"prompt": ["ab", "xyz"], "max_tokens": 8, "stream_options": {"include_usage": true}});
    let chunks = stream(&server, body).await;
    let (last, others) = chunks.split_last().unwrap();
    assert_eq!(last["choices"], json!([]));
    assert_eq!((&last["usage"]["prompt_tokens"], &last["usage"]["completion_tokens"]), (&json!(5), &json!(16)));
    assert!(others.iter().all(|chunk| chunk.get("usage").is_none()));

    let options = json!({"include_usage": true, "continuous_usage_stats": true});
    let chunks = stream(&server, json!({"prompt": "ab", "max_tokens": 8, "stream_options": options})).await;
    let counts: Vec<_> = chunks.iter().map(|chunk| chunk["usage"]["completion_tokens"].as_u64().unwrap()).collect();
    assert!(counts.is_sorted() && counts.first() < counts.last() && counts.last() == Some(&8), "{counts:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_text_is_scored_without_a_word_of_an_answer() {
    let server = server().await;
    let body = json!({"prompt": ["xyz", "a"], "max_tokens": 0, "echo": true, "logprobs": 1});
    let whole = complete(&server, body.clone()).await;
    let mut options = body.clone();
    options["stream_options"] = json!({"include_usage": true, "continuous_usage_stats": true});
    let chunks = stream(&server, options).await;
    for (k, prompt) in [(0, "xyz"), (1, "a")] {
        let choice = &whole["choices"][k];
        assert_eq!((&choice["text"], &choice["finish_reason"]), (&json!(prompt), &json!("length")));
        let numbers = choice["logprobs"]["token_logprobs"].as_array().unwrap();
        assert_eq!((numbers.len(), numbers[0].is_null()), (prompt.len(), true));
        assert_eq!(told(&chunks, k), prompt);
    }
    assert_eq!((&whole["usage"]["prompt_tokens"], &whole["usage"]["completion_tokens"]), (&json!(4), &json!(0)));
    assert!(chunks.iter().all(|chunk| chunk["usage"]["completion_tokens"] == 0), "{chunks:?}");
    let plain = complete(&server, json!({"prompt": "xyz", "max_tokens": 0, "echo": true})).await;
    assert_eq!((&plain["choices"][0]["text"], &plain["choices"][0]["logprobs"]), (&json!("xyz"), &Value::Null));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prompt_that_is_too_long_keeps_its_end_where_that_is_asked_for() {
    let server = server().await;
    let long = "abcdefgh".repeat(200);
    // To so many tokens; to what leaves room for the answer in a context of 1,024.
    for (tokens, kept) in [(5, 5), (-1, 1024 - 9), (1000, 1000)] {
        let body = json!({"prompt": long, "max_tokens": 9, "truncate_prompt_tokens": tokens, "echo": true});
        let whole = complete(&server, body).await;
        let kept = &long[long.len() - kept..];
        assert_eq!(whole["choices"][0]["text"], format!("{kept}{}", continued(kept, 9)), "{tokens}");
        assert_eq!(whole["usage"]["prompt_tokens"], kept.len());
    }
    let ids: Vec<_> = "abcdefgh".bytes().map(u32::from).collect();
    let whole = complete(&server, json!({"prompt": ids, "max_tokens": 9, "truncate_prompt_tokens": 3})).await;
    assert_eq!(whole["choices"][0]["text"], continued("fgh", 9));
    let short = complete(&server, json!({"prompt": "ab", "max_tokens": 9, "truncate_prompt_tokens": 3})).await;
    assert_eq!(short["choices"][0]["text"], continued("ab", 9), "what is shorter stays as it is");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn special_tokens_are_added_unless_they_are_not_wanted() {
    let server = server_with_special_tokens().await;
    let tokens = async |more: Value| {
        let mut body = json!({"prompt": "a", "max_tokens": 1});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        complete(&server, body).await["usage"]["prompt_tokens"].as_u64().unwrap()
    };
    let plain = tokens(json!({"add_special_tokens": false})).await;
    assert_eq!((tokens(json!({})).await, tokens(json!({"add_special_tokens": true})).await), (plain + 2, plain + 2));
}
