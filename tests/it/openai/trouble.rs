//! Clients that go away, engines that die, queues that are full, servers that leave.

use candlewick::{
    config::EngineConfig,
    engine::fake::{FakeOptions, Mishap},
};
use serde_json::json;
use tokio::{io::AsyncWriteExt, net::TcpStream};

use super::http::post;
use crate::grpc::{Server, config, fakes, ids, soon, until};

const PATH: &str = "/v1/completions";

fn body(stream: bool, prompt: &[u32], max_tokens: u32) -> String {
    json!({"prompt": prompt, "max_tokens": max_tokens, "stream": stream}).to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_drops_frees_its_sequences_streamed_or_not() {
    for stream in [true, false] {
        // The engine hangs in the tenth step, with the answer begun.
        let (server, gate) = Server::hung(config(), 9).await;
        let prompts = json!([ids(1, 40), ids(2, 40)]);
        let body = json!({"prompt": prompts, "max_tokens": 900, "stream": stream}).to_string();
        let address = server.address;
        let call = tokio::spawn(async move { post(address, PATH, &body).await });
        until("it runs", || server.engine.telemetry().generated_tokens() >= 2).await;
        if stream {
            drop(call.await.unwrap());
        } else {
            call.abort();
        }
        let aborted = "finished_reason=\"abort\"} 2";
        until("the server notices", || server.engine.telemetry().encode().contains(aborted)).await;
        gate.open();
        server.idle().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_does_not_read_is_waited_for_and_costs_no_memory() {
    let server = Server::well().await;
    let silent = post(server.address, PATH, &body(true, &ids(1, 9), 900)).await;
    let body = body(false, &ids(2, 9), 100);
    for _ in 0..8 {
        assert_eq!(post(server.address, PATH, &body).await.status, 200, "nobody else is held up");
    }
    drop(silent);
    server.idle().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_queue_is_429_and_says_when_to_come_back() {
    let config = EngineConfig { max_num_seqs: 1, max_waiting: 2, ..config() };
    let (server, gate) = Server::hung(config, 0).await;
    let mut calls = Vec::new();
    for k in 0..3 {
        calls.push(post(server.address, PATH, &body(true, &ids(k, 5), 5)).await);
    }
    let refused = post(server.address, PATH, &body(false, &ids(9, 5), 5)).await;
    assert_eq!((refused.status, refused.header("retry-after")), (429, Some("1")));
    let error = refused.json().await;
    assert_eq!(error["error"]["type"], "rate_limit_error");
    gate.open();
    for call in calls {
        assert!(!call.chunks().await.is_empty());
    }
    server.idle().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_that_never_fits_is_400_and_one_that_does_not_fit_now_leaves_nothing_behind() {
    let config = EngineConfig { max_num_seqs: 1, max_waiting: 2, ..config() };
    let (server, gate) = Server::hung(config, 0).await;
    let many = |n: u32| json!({"prompt": ids(1, 5), "n": n, "max_tokens": 5}).to_string();
    assert_eq!(post(server.address, PATH, &many(4)).await.status, 400);
    let first = post(server.address, PATH, &body(true, &ids(2, 5), 5)).await;
    assert_eq!(post(server.address, PATH, &many(3)).await.status, 429);
    gate.open();
    first.chunks().await;
    server.idle().await;
    assert_eq!(post(server.address, PATH, &many(3)).await.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_engine_that_dies_says_so_in_the_stream_or_by_500() {
    let factory = || fakes(&config(), |_| FakeOptions { mishap: Some((5, Mishap::Panic)), ..FakeOptions::default() });
    let server = Server::start(config(), factory()).await;
    let chunks = post(server.address, PATH, &body(true, &ids(1, 9), 100)).await.chunks().await;
    let error = &chunks.last().unwrap()["error"];
    assert_eq!(error["type"], "server_error");
    assert!(!error["message"].as_str().unwrap().contains("panic"), "what happened inside stays inside: {error}");
    let server = Server::start(config(), factory()).await;
    let failed = post(server.address, PATH, &body(false, &ids(1, 9), 100)).await;
    assert_eq!(failed.status, 500);
    assert_eq!(failed.json().await["error"]["type"], "server_error");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_drains_is_503_and_says_when_to_come_back() {
    let server = Server::well().await;
    server.engine.begin_drain();
    let refused = post(server.address, PATH, &body(false, &ids(1, 9), 5)).await;
    assert_eq!((refused.status, refused.header("retry-after")), (503, Some("1")));
    assert_eq!(refused.json().await["error"]["code"], "not_serving");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_that_do_not_come_hold_a_bounded_memory_and_give_it_back() {
    let server = Server::well().await;
    let head =
        "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 4194304\r\n\r\n";
    let unfinished_one = async |bytes: usize| {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        // One that is refused may be closed before it has said all.
        let _ = stream.write_all(&vec![b' '; bytes]).await;
        stream
    };
    let body = body(false, &ids(1, 9), 2);
    let mut unfinished = Vec::new();
    // What is announced takes nothing.
    for _ in 0..40 {
        unfinished.push(unfinished_one(0).await);
    }
    assert_eq!(post(server.address, PATH, &body).await.status, 200);
    // 32 times 4 MiB are all that the server reads at once.
    let full = async {
        while post(server.address, PATH, &body).await.status != 429 {
            unfinished.push(unfinished_one(4194303).await);
        }
    };
    soon("the room is full", full).await;
    assert!(unfinished.len() >= 40 + 31, "{}", unfinished.len());
    drop(unfinished);
    let free = async { while post(server.address, PATH, &body).await.status != 200 {} };
    soon("the room is free again", free).await;
}
