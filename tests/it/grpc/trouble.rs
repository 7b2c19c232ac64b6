//! Clients and engines that misbehave: nobody else notices, and nothing is left over.

use std::{sync::Arc, time::Duration};

use candlewick::{
    config::EngineConfig,
    engine::fake::{FakeOptions, Gate, Mishap},
    error::Code as ErrorCode,
    proto::candlewick::v1::generation_client::GenerationClient,
};
use tonic::{Code, Request, transport::Channel};
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};
use tonic_types::StatusExt;

use super::{Server, config, expected, fakes, ids, read, request, soon, until};

/// A client whose window is so small that not reading is felt at once.
async fn narrow(server: &Server) -> GenerationClient<Channel> {
    GenerationClient::new(server.channel_of(512).await)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_never_read_hold_up_nobody_and_cost_no_memory() {
    let server = Server::well().await;
    let mut dead = Vec::new();
    for k in 0..4 {
        let mut client = narrow(&server).await;
        dead.push((k, client.generate_stream(request(&ids(k, 20), 900)).await.unwrap().into_inner(), client));
    }
    let mut client = server.generation().await;
    let mut healthy = 0;
    for k in 0..24 {
        let prompt = ids(100 + k, 9);
        let read = read(client.generate_stream(request(&prompt, 100)).await.unwrap().into_inner()).await;
        assert_eq!(read.token_ids(), expected(&prompt, 100));
        healthy += 100;
    }
    // The dead could have had 2,400 steps. What they got is what fits the channel, the buffers and the window.
    let generated = server.engine.telemetry().generated_tokens() - healthy;
    assert!(generated < 4 * 400, "{generated} tokens wait for readers that do not read");

    // One of them reads on, and has lost nothing.
    let (k, stream, _client) = dead.pop().unwrap();
    assert_eq!(read(stream).await.token_ids(), expected(&ids(k, 20), 900));
    drop(dead);
    server.idle().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_that_take_nothing_give_their_places_back_though_their_streams_have_ended() {
    let (long, short) = (Duration::from_secs(3600), Duration::from_millis(100));
    for (stall_timeout, deadline) in [(short, None), (long, Some(Duration::from_secs(1)))] {
        let config = EngineConfig { max_num_seqs: 2, max_waiting: 2, stall_timeout, ..config() };
        let server = Server::start(config.clone(), fakes(&config, |_| FakeOptions::default())).await;
        // It lets the server send nothing but headers.
        let mut deaf = GenerationClient::new(server.channel_of(0).await);
        let mut streams = Vec::new();
        for k in 0..4 {
            let mut asked = Request::new(request(&ids(k, 5), 3));
            if let Some(deadline) = deadline {
                asked.set_timeout(deadline);
            }
            // Each is admitted, whether or not those before it have gone by then.
            streams.push(deaf.generate_stream(asked).await.unwrap().into_inner());
        }
        until("their places are free", || server.engine.num_live() == 0).await;
        for mut stream in streams {
            assert!(soon("its end", stream.message()).await.is_err(), "it was cut off");
        }
        let prompt = ids(9, 5);
        let served = server.generation().await.generate_stream(request(&prompt, 5)).await.unwrap();
        assert_eq!(read(served.into_inner()).await.token_ids(), expected(&prompt, 5));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_disconnects_in_prefill_leaves_nothing_behind() {
    // The prompt takes 15 steps; the engine hangs in the third.
    let (server, gate) = Server::hung(config(), 2).await;
    let mut client = server.generation().await;
    let stream = client.generate_stream(request(&ids(1, 900), 50)).await.unwrap();
    until("prefill is under way", || server.engine.telemetry().state().kv_cache_usage > 0.0).await;
    // The whole connection goes, not only the call.
    drop((stream, client));
    until("the server notices", || server.engine.telemetry().encode().contains("finished_reason=\"abort\"} 1")).await;
    gate.open();
    server.idle().await;
    assert_eq!(server.engine.telemetry().generated_tokens(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cancelling_at_any_moment_leaves_nothing_behind() {
    let server = Server::well().await;
    let client = server.generation().await;
    let calls = (0..400_u32).map(|k| {
        let mut client = client.clone();
        tokio::spawn(async move {
            let request = request(&ids(k, [2, 60, 300][k as usize % 3]), 200);
            // A full queue is an answer too.
            let Ok(stream) = client.generate_stream(request).await else { return };
            let mut stream = stream.into_inner();
            for _ in 0..[0, 0, 1, 5, 40][k as usize % 5] {
                if !matches!(soon("an event", stream.message()).await, Ok(Some(_))) {
                    return;
                }
            }
        })
    });
    for call in calls.collect::<Vec<_>>() {
        soon("a call", call).await.unwrap();
    }
    server.idle().await;
    server.engine.begin_drain();
    soon("every place in the queue is free", server.engine.drained()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deadline_that_passes_ends_the_stream_with_its_status() {
    let (server, gate) = Server::hung(config(), 3).await;
    let mut late = Request::new(request(&ids(1, 9), 100));
    late.set_timeout(Duration::from_millis(100));
    let stream = server.generation().await.generate_stream(late).await.unwrap().into_inner();
    let error = read(stream).await.error.unwrap();
    assert_eq!(error.code(), Code::DeadlineExceeded);
    assert_eq!(error.get_details_error_info().unwrap().reason, "DEADLINE_PASSED");
    gate.open();
    server.idle().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_queue_refuses_and_says_when_to_come_back() {
    let config = EngineConfig { max_num_seqs: 1, max_waiting: 2, ..config() };
    let (server, gate) = Server::hung(config, 0).await;
    let mut client = server.generation().await;
    let mut streams = Vec::new();
    for k in 0..3 {
        streams.push(client.generate_stream(request(&ids(k, 5), 5)).await.unwrap().into_inner());
    }
    let refused = client.generate_stream(request(&ids(9, 5), 5)).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    let details = refused.get_error_details();
    assert!(details.retry_info().unwrap().retry_delay.unwrap() > Duration::ZERO);
    assert_eq!(details.quota_failure().unwrap().violations.len(), 1);
    assert_eq!(details.error_info().unwrap().reason, "QUEUE_FULL");
    assert_eq!(server.engine.telemetry().refused(ErrorCode::ResourceExhausted), 1);
    gate.open();
    for (k, stream) in (0..).zip(streams) {
        assert_eq!(read(stream).await.token_ids(), expected(&ids(k, 5), 5));
    }
    server.idle().await;
    assert!(client.generate_stream(request(&ids(9, 5), 5)).await.is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_engine_that_dies_ends_its_streams_turns_health_and_comes_back() {
    let gate = Arc::new(Gate::default());
    let held = gate.clone();
    let factory = fakes(&config(), move |life| {
        // The second life does not begin before the watcher has seen that there is none.
        if life > 0 {
            held.wait();
        }
        FakeOptions { mishap: (life == 0).then_some((5, Mishap::Panic)), ..FakeOptions::default() }
    });
    let server = Server::start(config(), factory).await;
    let channel = server.channel().await;
    let mut watch = HealthClient::new(channel.clone())
        .watch(HealthCheckRequest { service: "candlewick.v1.Generation".into() })
        .await
        .unwrap()
        .into_inner();
    let mut status = async || soon("a change of health", watch.message()).await.unwrap().unwrap().status();
    assert_eq!(status().await, ServingStatus::Serving);

    let mut client = GenerationClient::new(channel);
    let prompt = ids(1, 9);
    let error = read(client.generate_stream(request(&prompt, 100)).await.unwrap().into_inner()).await.error.unwrap();
    assert_eq!(error.code(), Code::Internal);
    assert!(!error.message().contains("panic"), "what happened inside stays inside: {}", error.message());
    assert_eq!(status().await, ServingStatus::NotServing);
    let refused = client.generate_stream(request(&prompt, 10)).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
    assert!(refused.get_details_retry_info().is_some());

    gate.open();
    assert_eq!(status().await, ServingStatus::Serving);
    let again = read(client.generate_stream(request(&prompt, 10)).await.unwrap().into_inner()).await;
    assert_eq!(again.token_ids(), expected(&prompt, 10));
}
