//! `candlewick bench serve` from outside: against this server without arithmetic, and against servers that misbehave.

use std::{net::SocketAddr, process::Output};

use axum::{Json, Router, http::StatusCode, routing::get, routing::post};
use serde_json::{Value, json};
use tokio::{net::TcpListener, task::spawn_blocking};

use crate::{
    cli::{run, stderr, stdout},
    grpc::{Server, text},
};

/// The program with `bench serve`, while the server beside it goes on.
async fn bench(address: SocketAddr, flags: &str) -> Output {
    let line = format!("bench serve --base-url http://{address} {flags}");
    spawn_blocking(move || run(&line.split_whitespace().collect::<Vec<_>>())).await.unwrap()
}

async fn report(address: SocketAddr, flags: &str) -> Value {
    let output = bench(address, &format!("{flags} --json")).await;
    let text = stdout(&output);
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error} in {text}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_backend_counts_what_was_asked_for() {
    let server = text::server().await;
    let flags =
        "--num-prompts 12 --random-input-len 9 --random-output-len 5 --request-rate 500 --burstiness 2 --seed 3";
    for backend in ["openai", "openai-chat", "grpc"] {
        let report = report(server.address, &format!("--backend {backend} {flags}")).await;
        assert_eq!((&report["completed"], &report["failed"]), (&json!(12), &json!(0)), "{report}");
        assert_eq!(report["total_output_tokens"], 60, "{report}");
        // A chat has its template's tokens besides.
        if backend != "openai-chat" {
            assert_eq!(report["total_input_tokens"], 108, "{report}");
        }
        for key in ["request_throughput", "output_throughput", "mean_ttft_ms", "p99_e2el_ms", "median_itl_ms"] {
            assert!(report[key].as_f64().unwrap() > 0.0, "{key} in {report}");
        }
        assert!(report["mean_e2el_ms"].as_f64() >= report["mean_ttft_ms"].as_f64(), "{report}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trace_is_replayed_capped_shared_and_drawn() {
    let server = Server::well().await;
    let folder = tempfile::tempdir().unwrap();
    let (trace, picture) = (folder.path().join("trace.jsonl"), folder.path().join("times.svg"));
    let line =
        |at: u32| format!(r#"{{"timestamp": {at}, "input_length": 700, "output_length": 3, "hash_ids": [5, 6]}}"#);
    std::fs::write(&trace, [line(0), line(1), line(2), line(3)].join("\n")).unwrap();
    let flags = format!(
        "--backend grpc --dataset-path {} --max-input-len 60 --max-output-len 2 --max-concurrency 1 --num-prompts 3 \
         --num-warmups 1 --metric-percentiles 50,99.9 --svg {}",
        trace.display(),
        picture.display()
    );
    let report = report(server.address, &flags).await;
    assert_eq!((&report["completed"], &report["total_input_tokens"]), (&json!(3), &json!(180)), "{report}");
    assert_eq!((&report["total_output_tokens"], &report["max_concurrent_requests"]), (&json!(6), &json!(1)));
    assert!(report["p99.9_ttft_ms"].is_number() && report.get("p99_ttft_ms").is_none(), "{report}");
    let picture = std::fs::read_to_string(&picture).unwrap();
    assert!(picture.starts_with("<svg") && picture.contains("time to first token"), "{picture}");
    let totals = server.engine.telemetry().totals();
    assert!(totals.prefix_cache_hit_tokens > 0, "equal blocks are equal prompts: {totals:?}");

    let output = bench(server.address, &flags).await;
    let table = stdout(&output);
    for word in ["3 answered, 0 failed", "tokens out", "inter-token latency", "p99.9", "█"] {
        assert!(table.contains(word), "no {word} in {table}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_misspelt_model_is_told_what_there_is() {
    let server = Server::well().await;
    for backend in ["openai", "grpc"] {
        let output = bench(server.address, &format!("--backend {backend} --model fakee --num-prompts 1")).await;
        assert_eq!(output.status.code(), Some(1));
        assert!(stderr(&output).contains("did you mean fake?"), "{}", stderr(&output));
    }
}

/// A server that answers each request for a completion with these bytes.
async fn odd(body: &'static str) -> SocketAddr {
    let models = || async { Json(json!({"data": [{"id": "odd"}]})) };
    let answer = move || async move { body };
    let refuse = || async { (StatusCode::TOO_MANY_REQUESTS, Json(json!({"error": {"message": "come back later"}}))) };
    let away = || async { axum::response::Redirect::temporary("http://127.0.0.1:9/elsewhere") };
    let router = Router::new()
        .route("/v1/models", get(models))
        .route("/v1/completions", post(answer))
        .route("/full/v1/models", get(models))
        .route("/full/v1/completions", post(refuse))
        .route("/away/v1/models", get(models))
        .route("/away/v1/completions", post(away));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await });
    address
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_that_misbehave_are_failures_with_a_reason() {
    let flags = "--num-prompts 2 --random-input-len 4 --random-output-len 4";
    let cases = [
        ("", "cut off"),
        ("data: {\"choices\": [{\"text\": \"a\", \"finish_reason\": null}]}\n\n", "cut off"),
        ("data: nonsense\n\n", "no JSON"),
        ("data: [DONE]\n\n", "no token"),
        ("data: {\"error\": {\"message\": \"out of luck\"}}\n\n", "out of luck"),
    ];
    for (body, says) in cases {
        let address = odd(body).await;
        let output = bench(address, &format!("{flags} --json")).await;
        assert_eq!(output.status.code(), Some(1), "{body}");
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!((&report["completed"], &report["failed"]), (&json!(0), &json!(2)), "{report}");
        assert!(report["errors"].to_string().contains(says), "{report}");
    }
    let address = odd("").await;
    for (place, says) in [("full", "429 Too Many Requests: come back later"), ("away", "307")] {
        let line = format!("bench serve --base-url http://{address}/{place} {flags}");
        let output = spawn_blocking(move || run(&line.split_whitespace().collect::<Vec<_>>())).await.unwrap();
        let table = String::from_utf8(output.stdout).unwrap();
        assert!(table.contains(says), "no {says} in {table}");
        assert_eq!(output.status.code(), Some(1));
    }
}

#[test]
fn nobody_there_and_no_address_are_said() {
    for (url, says) in [("http://127.0.0.1:1", "cannot reach"), ("nonsense", "--base-url")] {
        let output = run(&["bench", "serve", "--base-url", url]);
        assert_eq!(output.status.code(), Some(1));
        assert!(stderr(&output).contains(says), "{}", stderr(&output));
    }
}
