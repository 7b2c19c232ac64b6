//! Going down: health first, streams to their end, new calls refused, and an end at the timeout.

use std::time::Duration;

use candlewick::{engine::ModelText, engine::fake::FakeOptions, server::ServeOptions};
use tonic::Code;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};
use tonic_types::StatusExt;

use super::{Server, config, expected, fakes, ids, info, read, request, soon};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_under_way_finish_and_new_calls_are_refused_on_old_and_new_connections() {
    let (server, gate) = Server::hung(config(), 3).await;
    let address = server.address;
    let channel = server.channel().await;
    let mut watch = HealthClient::new(channel.clone()).watch(HealthCheckRequest::default()).await.unwrap().into_inner();
    let mut health = async || soon("a change of health", watch.message()).await;
    assert_eq!(health().await.unwrap().unwrap().status(), ServingStatus::Serving);
    let mut client = candlewick::proto::candlewick::v1::generation_client::GenerationClient::new(channel);
    let prompt = ids(1, 9);
    let stream = client.generate_stream(request(&prompt, 50)).await.unwrap().into_inner();

    let served = server.shut_down();
    assert_eq!(health().await.unwrap().unwrap().status(), ServingStatus::NotServing);
    let fresh = tonic::transport::Channel::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap();
    let fresh = candlewick::proto::candlewick::v1::generation_client::GenerationClient::new(fresh);
    for mut client in [client.clone(), fresh] {
        let refused = client.generate_stream(request(&ids(2, 5), 5)).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unavailable);
        assert!(refused.get_details_retry_info().unwrap().retry_delay.is_some());
    }

    gate.open();
    assert_eq!(read(stream).await.token_ids(), expected(&prompt, 50));
    assert!(health().await.unwrap().is_none(), "a watch is let go");
    soon("the server ends", served).await.unwrap().unwrap();
    assert!(tokio::net::TcpStream::connect(address).await.is_err(), "nobody listens any more");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_crosses_with_the_shutdown_is_taken_though_health_has_turned() {
    let options = ServeOptions { drain_grace: Duration::from_secs(3600), ..ServeOptions::default() };
    let well = fakes(&config(), |_| FakeOptions::default());
    let server = Server::with(info(), ModelText::default(), config(), well, options).await;
    let channel = server.channel().await;
    let mut watch = HealthClient::new(channel).watch(HealthCheckRequest::default()).await.unwrap().into_inner();
    assert_eq!(watch.message().await.unwrap().unwrap().status(), ServingStatus::Serving);
    let mut client = server.generation().await;
    let _served = server.shut_down();
    assert_eq!(watch.message().await.unwrap().unwrap().status(), ServingStatus::NotServing);
    let prompt = ids(1, 9);
    let stream = client.generate_stream(request(&prompt, 50)).await.unwrap().into_inner();
    assert_eq!(read(stream).await.token_ids(), expected(&prompt, 50));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_outlasts_the_drain_timeout_is_cut_off_with_unavailable() {
    let gate = std::sync::Arc::new(candlewick::engine::fake::Gate::default());
    let held = gate.clone();
    let hangs = move |_| FakeOptions {
        mishap: Some((3, candlewick::engine::fake::Mishap::Hang(held.clone()))),
        ..FakeOptions::default()
    };
    let options = ServeOptions {
        drain_grace: Duration::ZERO,
        drain_timeout: Duration::from_millis(50),
        ..ServeOptions::default()
    };
    let server = Server::with(info(), ModelText::default(), config(), fakes(&config(), hangs), options).await;
    let stream = server.generation().await.generate_stream(request(&ids(1, 9), 50)).await.unwrap().into_inner();
    let served = server.shut_down();
    assert_eq!(read(stream).await.error.unwrap().code(), Code::Unavailable);
    soon("the server ends", served).await.unwrap().unwrap();
    gate.open();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_connections_do_not_hold_up_the_end() {
    let server = Server::well().await;
    let _silent = tokio::net::TcpStream::connect(server.address).await.unwrap();
    let _idle = server.channel().await;
    soon("the server ends", server.shut_down()).await.unwrap().unwrap();
}
