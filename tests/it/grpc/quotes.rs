//! Quotes, and admission by deadline, from the rates that are measured.

use std::time::Duration;

use candlewick::{config::EngineConfig, proto::candlewick::v1::QuoteRequest};
use tokio::task::JoinSet;
use tonic::{Code, Request};
use tonic_types::StatusExt;

use super::{Server, config, ids, options, prompt_of, read, request, soon};

fn quote(prompt: &[u32]) -> QuoteRequest {
    QuoteRequest { prompt: prompt_of(prompt), options: Some(options(5)), ..QuoteRequest::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quote_says_what_a_request_would_meet_with_and_runs_nothing() {
    let server = Server::well().await;
    let mut client = server.generation().await;
    let prompt = ids(1, 100);
    let before = client.quote(quote(&prompt)).await.unwrap().into_inner();
    assert_eq!((before.prompt_tokens, before.cached_tokens, before.queue_position), (100, 0, 0));
    assert_eq!((before.estimated_ttft_ms, before.prefill_tokens_per_second), (None, None), "nothing was measured");
    assert_eq!(server.engine.telemetry().generated_tokens(), 0);

    read(client.generate_stream(request(&prompt, 5)).await.unwrap().into_inner()).await;
    let after = client.quote(quote(&prompt)).await.unwrap().into_inner();
    assert_eq!((after.prompt_tokens, after.cached_tokens), (100, 96));
    let mut computed_again = quote(&prompt);
    computed_again.options.as_mut().unwrap().sampling.as_mut().unwrap().prompt_logprobs = Some(0);
    let computed_again = client.quote(computed_again).await.unwrap().into_inner();
    assert_eq!(
        (computed_again.prompt_tokens, computed_again.cached_tokens),
        (100, 0),
        "its log-probabilities are wanted"
    );
    assert!(after.estimated_ttft_ms.is_some() && after.prefill_tokens_per_second.unwrap() > 0.0);
    assert!(after.decode_tokens_per_second.unwrap() > 0.0);
    assert_eq!(server.engine.telemetry().generated_tokens(), 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn those_before_it_count_in_a_quote() {
    let config = EngineConfig { max_num_seqs: 1, ..config() };
    // The first has run a step.
    let (server, gate) = Server::hung(config, 1).await;
    let mut client = server.generation().await;
    let mut streams = Vec::new();
    for k in 0..3 {
        streams.push(client.generate_stream(request(&ids(k, 5), 5)).await.unwrap().into_inner());
    }
    let mut urgent = quote(&ids(9, 5));
    urgent.options.as_mut().unwrap().priority = Some(-1);
    // The engine hangs, and answers when it no longer does.
    let (mut one, mut other) = (client.clone(), client.clone());
    let quotes = tokio::spawn(async move { one.quote(quote(&ids(9, 5))).await });
    let urgent = tokio::spawn(async move { other.quote(urgent).await });
    // Where a quote stands in line is known without the engine; what is cached is not.
    tokio::task::yield_now().await;
    gate.open();
    let position = quotes.await.unwrap().unwrap().into_inner().queue_position;
    // As many as had not begun when the engine hung.
    assert!(position <= 3, "{position}");
    assert_eq!(urgent.await.unwrap().unwrap().into_inner().queue_position, 0);
    for stream in streams {
        assert_eq!(read(stream).await.token_ids().len(), 5);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deadline_that_cannot_be_met_is_refused_at_once() {
    let server = Server::well().await;
    let mut client = server.generation().await;
    let within = |prompt: &[u32], seconds| {
        let mut request = Request::new(request(prompt, 5));
        request.set_timeout(Duration::from_secs(seconds));
        request
    };
    // A second a token.
    server.engine.rates().record_step(Duration::from_secs(100), 100, 0);
    let refused = client.generate_stream(within(&ids(1, 100), 50)).await.unwrap_err();
    assert_eq!(refused.code(), Code::DeadlineExceeded);
    assert!(refused.message().contains("present rates"), "{}", refused.message());
    assert_eq!(server.engine.telemetry().generated_tokens(), 0);
    // What need not be computed takes no time.
    read(client.generate_stream(request(&ids(1, 100), 5)).await.unwrap().into_inner()).await;
    for _ in 0..50 {
        server.engine.rates().record_step(Duration::from_secs(100), 100, 0);
    }
    let told = read(client.generate_stream(within(&ids(1, 100), 50)).await.unwrap().into_inner()).await;
    assert_eq!(told.token_ids().len(), 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_queue_says_when_a_place_should_be_free() {
    let config = EngineConfig { max_num_seqs: 1, max_waiting: 1, ..config() };
    let (server, gate) = Server::hung(config, 0).await;
    let mut client = server.generation().await;
    server.engine.rates().record_ends(Duration::from_secs(3), 1);
    let mut streams = Vec::new();
    for k in 0..2 {
        streams.push(client.generate_stream(request(&ids(k, 5), 5)).await.unwrap().into_inner());
    }
    let refused = client.generate_stream(request(&ids(9, 5), 5)).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    let delay = refused.get_details_retry_info().unwrap().retry_delay;
    assert_eq!(delay, Some(Duration::from_secs(3)));
    gate.open();
    for stream in streams {
        assert_eq!(read(stream).await.token_ids().len(), 5);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn quotes_are_bounded_in_number() {
    let (server, gate) = Server::hung(config(), 0).await;
    let mut client = server.generation().await;
    let stream = client.generate_stream(request(&ids(1, 5), 5)).await.unwrap().into_inner();
    // What the cache has, the engine says when it no longer hangs; until then each quote keeps its place.
    let mut quotes = JoinSet::new();
    let ask = |quotes: &mut JoinSet<_>| {
        let mut client = client.clone();
        quotes.spawn(async move { client.quote(quote(&ids(2, 5))).await });
    };
    (0..65).for_each(|_| ask(&mut quotes));
    let refused = async {
        loop {
            match quotes.join_next().await.unwrap().unwrap() {
                // Before the engine hung.
                Ok(_) => ask(&mut quotes),
                Err(status) => break status,
            }
        }
    };
    let refused = soon("one too many is refused", refused).await;
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert!(refused.get_details_retry_info().is_some());
    gate.open();
    assert_eq!(quotes.len(), 64);
    while let Some(quote) = quotes.join_next().await {
        assert_eq!(quote.unwrap().unwrap().into_inner().prompt_tokens, 5);
    }
    assert_eq!(read(stream).await.token_ids().len(), 5);
    client.quote(quote(&ids(3, 5))).await.unwrap();
}
