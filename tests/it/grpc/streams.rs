//! Streams that go well: what comes, in which order, and that a crowd gets what each would get alone.

use candlewick::proto::candlewick::v1::{FinishReason, GenerateRequest, SamplingParams, finish::Matched};
use futures::future::join_all;

use super::{Server, expected, ids, options, prompt_of, read, request, soon};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixty_four_streams_at_once_each_give_what_they_give_alone() {
    let server = Server::well().await;
    let client = server.generation().await;
    let streams = (0..64).map(|k| {
        let mut client = client.clone();
        async move {
            let prompt = ids(k, 1 + 3 * k);
            let read = read(client.generate_stream(request(&prompt, 40)).await.unwrap().into_inner()).await;
            assert_eq!(read.token_ids(), expected(&prompt, 40), "stream {k}");
            let finished = read.finished.unwrap();
            assert_eq!(finished.finish.unwrap().reason(), FinishReason::Length);
            let usage = finished.usage.unwrap();
            assert_eq!((usage.prompt_tokens, usage.completion_tokens), (1 + 3 * k, 40));
        }
    });
    soon("64 streams", join_all(streams)).await;
    server.idle().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_event_tells_every_parameter_in_force() {
    let server = Server::well().await;
    let mut request = request(&ids(1, 10), 5);
    let options = request.options.as_mut().unwrap();
    options.request_id = Some("mine".into());
    options.sampling =
        Some(SamplingParams { top_k: Some(7), seed: Some(11), max_tokens: Some(5), ..SamplingParams::default() });
    let read = read(server.generation().await.generate_stream(request).await.unwrap().into_inner()).await;
    let started = read.started.unwrap();
    assert_eq!((started.request_id.as_str(), started.model.as_str(), started.prompt_tokens), ("mine", "fake", 10));
    let effective = started.effective.unwrap();
    assert_eq!((effective.top_k, effective.seed, effective.max_tokens), (Some(7), Some(11), Some(5)));
    assert_eq!(
        (effective.temperature, effective.top_p, effective.skip_special_tokens),
        (Some(1.0), Some(1.0), Some(true))
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_without_an_id_get_one_each() {
    let server = Server::well().await;
    let mut client = server.generation().await;
    let mut drawn = Vec::new();
    for _ in 0..2 {
        let read = read(client.generate_stream(request(&ids(1, 4), 1)).await.unwrap().into_inner()).await;
        drawn.push(read.started.unwrap().request_id);
    }
    assert!(!drawn[0].is_empty() && drawn[0] != drawn[1], "{drawn:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_at_once_is_the_same_as_token_by_token() {
    let server = Server::well().await;
    let prompt = ids(3, 25);
    let request = GenerateRequest { prompt: prompt_of(&prompt), options: Some(options(30)) };
    let answer = server.generation().await.generate(request).await.unwrap().into_inner();
    assert_eq!(answer.output.unwrap().token_ids, expected(&prompt, 30));
    assert_eq!(answer.started.unwrap().prompt_tokens, 25);
    assert_eq!(answer.finished.unwrap().usage.unwrap().completion_tokens, 30);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_token_ends_the_stream_and_is_named() {
    let server = Server::well().await;
    let prompt = ids(5, 12);
    let whole = expected(&prompt, 50);
    let end = (1..50).find(|&k| !whole[..k].contains(&whole[k])).unwrap();
    let mut request = request(&prompt, 50);
    request.options.as_mut().unwrap().sampling.as_mut().unwrap().stop_token_ids = vec![whole[end]];
    let read = read(server.generation().await.generate_stream(request).await.unwrap().into_inner()).await;
    assert_eq!(read.token_ids(), whole[..=end]);
    let finish = read.finished.unwrap().finish.unwrap();
    assert_eq!((finish.reason(), finish.matched), (FinishReason::Stop, Some(Matched::TokenId(whole[end]))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn headers_go_out_at_admission_not_at_the_first_token() {
    let (server, gate) = Server::hung(super::config(), 0).await;
    let mut client = server.generation().await;
    let stream =
        soon("headers from an engine that computes nothing", client.generate_stream(request(&ids(1, 9), 3))).await;
    let mut stream = stream.unwrap().into_inner();
    let first = soon("the first event", stream.message()).await.unwrap().unwrap();
    assert_eq!(first.seq, 1);
    assert_eq!(server.engine.telemetry().generated_tokens(), 0);
    gate.open();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_request_with_the_same_prompt_reports_what_the_cache_held() {
    let server = Server::well().await;
    let mut client = server.generation().await;
    let prompt = ids(9, 100);
    let mut cached = Vec::new();
    for _ in 0..2 {
        let read = read(client.generate_stream(request(&prompt, 4)).await.unwrap().into_inner()).await;
        cached.push(read.finished.unwrap().usage.unwrap().cached_tokens);
    }
    assert_eq!(cached, [0, 96], "whole blocks of 16 before the last token");
}
