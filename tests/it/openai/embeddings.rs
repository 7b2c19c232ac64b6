//! `/v1/embeddings`, and Ollama's `/api/embed` and `/api/embeddings`.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use candlewick::{
    engine::fake::{EMBEDDING_SIZE, FakeExecutor},
    ids::TokenId,
    params::Pooling,
};
use serde_json::{Value, json};

use super::http::{post, post_with};
use crate::grpc::{Server, text::server};

/// The fake's vector of a text of one token a byte.
fn expected(text: &str, pooling: Pooling) -> Vec<f32> {
    let ids: Vec<_> = text.bytes().map(|b| TokenId(b.into())).collect();
    FakeExecutor::expected_vector(&ids, pooling)
}

fn normalized(values: &[f32]) -> Vec<f32> {
    let length = values.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt();
    values.iter().map(|&x| (f64::from(x) / length) as f32).collect()
}

fn floats(vector: &Value) -> Vec<f32> {
    vector.as_array().unwrap().iter().map(|x| x.as_f64().unwrap() as f32).collect()
}

async fn embeddings(server: &Server, body: Value) -> Value {
    let answer = post(server.address, "/v1/embeddings", &body.to_string()).await;
    assert_eq!(answer.status, 200, "{body}");
    answer.json().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_form_of_input_gives_its_vectors_in_order() {
    let server = server().await;
    let hi = normalized(&expected("Hi", Pooling::Last));
    for (input, texts) in [
        (json!("Hi"), vec!["Hi"]),
        (json!(["Hi", "Ho", "Hi"]), vec!["Hi", "Ho", "Hi"]),
        (json!([72, 105]), vec!["Hi"]),
        (json!([[72, 105], [72, 111]]), vec!["Hi", "Ho"]),
    ] {
        let answer = embeddings(&server, json!({"input": input, "model": "fake", "user": "somebody"})).await;
        assert_eq!((&answer["object"], &answer["model"]), (&json!("list"), &json!("fake")));
        let data = answer["data"].as_array().unwrap();
        assert_eq!(data.len(), texts.len());
        for (k, (row, text)) in data.iter().zip(&texts).enumerate() {
            assert_eq!((&row["object"], &row["index"]), (&json!("embedding"), &json!(k)));
            assert_eq!(floats(&row["embedding"]), normalized(&expected(text, Pooling::Last)));
        }
        let tokens = 2 * texts.len();
        assert_eq!(
            (&answer["usage"]["prompt_tokens"], &answer["usage"]["total_tokens"]),
            (&json!(tokens), &json!(tokens))
        );
        assert_eq!(floats(&data[0]["embedding"]), hi);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_encodings_say_the_same_and_the_options_count() {
    let server = server().await;
    let raw = expected("Hello", Pooling::Mean);
    let body = |more: Value| {
        let mut body = json!({"input": "Hello", "pooling": "mean"});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    let vector = async |more: Value| embeddings(&server, body(more)).await["data"][0]["embedding"].take();
    assert_eq!(floats(&vector(json!({})).await), normalized(&raw));
    assert_eq!(floats(&vector(json!({"normalize": false})).await), raw);
    assert_eq!(floats(&vector(json!({"dimensions": 3})).await), normalized(&raw[..3]));
    let base64 = vector(json!({"encoding_format": "base64"})).await;
    let bytes = STANDARD.decode(base64.as_str().unwrap()).unwrap();
    let read: Vec<_> = bytes.chunks_exact(4).map(|four| f32::from_le_bytes(four.try_into().unwrap())).collect();
    assert_eq!(read, normalized(&raw));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_is_refused_by_its_name() {
    let server = server().await;
    let too_wide = EMBEDDING_SIZE + 1;
    for (body, field) in [
        (json!({}), "input"),
        (json!({"input": []}), "input"),
        (json!({"input": ""}), "input"),
        (json!({"input": {"text": "x"}}), "input"),
        (json!({"input": ["x", ""]}), "input[1]"),
        (json!({"input": [1, 5_000]}), "input[1]"),
        (json!({"input": [[1], [1, 5_000]]}), "input[1][1]"),
        (json!({"input": ["x", "y".repeat(1100)]}), "input[1]"),
        (json!({"input": vec!["x"; 2049]}), "input"),
        (json!({"input": "x", "encoding_format": "hex"}), "encoding_format"),
        (json!({"input": "x", "dimensions": 0}), "dimensions"),
        (json!({"input": "x", "dimensions": too_wide}), "dimensions"),
        (json!({"input": "x", "pooling": "cls"}), "pooling"),
        (json!({"input": "x", "truncate_prompt_tokens": 5}), "truncate_prompt_tokens"),
        (json!({"input": "x", "messages": [{"role": "user", "content": "x"}]}), "messages"),
    ] {
        let answer = post(server.address, "/v1/embeddings", &body.to_string()).await;
        let (status, error) = (answer.status, answer.json().await["error"].take());
        assert_eq!((status, error["param"].as_str()), (400, Some(field)), "{error}");
        assert_eq!(error["type"], "invalid_request_error");
    }
    let other = post(server.address, "/v1/embeddings", r#"{"input": "x", "model": "other"}"#).await;
    assert_eq!(other.status, 404);
    let long = json!({"input": "y".repeat(1100), "truncate_prompt_tokens": -1});
    assert_eq!(embeddings(&server, long).await["usage"]["prompt_tokens"], 1024);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ollamas_clients_get_theirs() {
    let server = server().await;
    let ask = async |path: &str, body: Value| {
        let answer = post_with(server.address, path, "", &body.to_string()).await;
        (answer.status, answer.json().await)
    };
    let raw = expected("Hi", Pooling::Last);
    let (status, answer) = ask("/api/embed", json!({"model": "fake:latest", "input": "Hi", "keep_alive": "5m"})).await;
    assert_eq!((status, &answer["prompt_eval_count"]), (200, &json!(2)));
    assert_eq!(floats(&answer["embeddings"][0]), normalized(&raw));
    let (_, answer) = ask("/api/embed", json!({"model": "fake", "input": ["Ho", "Hi"], "dimensions": 2})).await;
    assert_eq!(floats(&answer["embeddings"][1]), normalized(&raw[..2]));
    let (_, answer) = ask("/api/embed", json!({"model": "fake"})).await;
    assert_eq!(answer["embeddings"], json!([]), "the model is loaded, and nothing is asked of it");
    let (_, answer) = ask("/api/embeddings", json!({"model": "fake", "prompt": "Hi"})).await;
    assert_eq!(floats(&answer["embedding"]), raw);
    let long = json!({"model": "fake", "input": "y".repeat(1100)});
    assert_eq!(ask("/api/embed", long.clone()).await.1["prompt_eval_count"], 1024);
    let mut whole = long;
    whole["truncate"] = false.into();
    let (status, answer) = ask("/api/embed", whole).await;
    assert!(status == 400 && answer["error"].as_str().unwrap().starts_with("input[0]"), "{answer}");
}
