//! Quotas of a tenant: named, with the time to come back, and nobody else's matter.

use std::{sync::Arc, time::Duration};

use candlewick::{
    config::TenantLimits,
    engine::fake::{Gate, Mishap},
    proto::candlewick::v1::{
        CloseSession, QuoteRequest, SessionOpen, SessionRequest, TokenizeRequest, UserTurn,
        session_request::Event as Say, session_response::Event as Told, tokens_client::TokensClient,
    },
};
use futures::channel::mpsc;
use serde_json::json;
use tokio::{io::AsyncWriteExt, net::TcpStream};
use tonic::{Code, Status};
use tonic_types::StatusExt;

use super::{chat, generation, headers, keyed, limited, tenant};
use crate::{
    grpc::{Server, options, prompt_of, read, request, soon},
    openai::http::post_with,
};

const FREE: TenantLimits = TenantLimits {
    requests_per_minute: None,
    tokens_per_minute: None,
    max_streams: None,
    max_sessions: None,
    weight: 1,
    admin: false,
};

/// The quota that is used up, and when to come back.
fn quota(status: &Status) -> (String, Duration) {
    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
    let details = status.get_error_details();
    assert_eq!(details.error_info().unwrap().reason, "QUOTA_EXCEEDED");
    let subject = details.quota_failure().unwrap().violations[0].subject.clone();
    (subject, details.retry_info().unwrap().retry_delay.unwrap())
}

async fn try_one(server: &Server, tenant: &str) -> Result<(), Status> {
    let stream = generation(server, tenant).await.generate_stream(request(&[1, 2, 3], 5)).await?;
    assert_eq!(read(stream.into_inner()).await.token_ids().len(), 5);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_beyond_a_tenants_number_are_refused_and_others_run() {
    let gate = Arc::new(Gate::default());
    let limits = TenantLimits { max_streams: Some(2), ..FREE };
    let tenants = vec![tenant("small", limits), tenant("other", FREE)];
    let server = limited(tenants, Some((3, Mishap::Hang(gate.clone())))).await;
    let mut client = generation(&server, "small").await;
    let held = client.generate_stream(request(&[1, 2, 3], 20)).await.unwrap().into_inner();
    // Each of n counts.
    let mut two = request(&[1, 2, 3], 5);
    two.options.as_mut().unwrap().sampling.as_mut().unwrap().n = Some(2);
    assert_eq!(quota(&client.generate_stream(two).await.unwrap_err()).0, "max-streams");
    let second = client.generate_stream(request(&[4, 5, 6], 20)).await.unwrap().into_inner();
    assert_eq!(quota(&client.generate_stream(request(&[7], 5)).await.unwrap_err()).0, "max-streams");
    // All faces count together.
    let body = json!({"prompt": [1, 2, 3], "max_tokens": 5}).to_string();
    let refused = post_with(server.address, "/v1/completions", &headers("small"), &body).await;
    assert_eq!((refused.status, refused.header("retry-after")), (429, Some("1")));
    assert_eq!(refused.json().await["error"]["param"], "max-streams");
    let others = generation(&server, "other").await.generate_stream(request(&[1], 5)).await.unwrap().into_inner();
    gate.open();
    for (stream, tokens) in [(held, 20), (second, 20), (others, 5)] {
        assert_eq!(read(stream).await.token_ids().len(), tokens);
    }
    // What has ended makes room.
    crate::grpc::until("there is room again", || server.engine.num_live() == 0).await;
    try_one(&server, "small").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_and_requests_a_minute_are_counted_over_all_calls() {
    let tokens = TenantLimits { tokens_per_minute: Some(1), ..FREE };
    let requests = TenantLimits { requests_per_minute: Some(1), ..FREE };
    let tenants = vec![tenant("tokens", tokens), tenant("requests", requests), tenant("free", FREE)];
    let server = limited(tenants, None).await;
    // Eight tokens of one a minute: seven minutes of debt, and one to wait for.
    for (name, quota_name, minutes) in [("tokens", "tokens-per-minute", 8), ("requests", "requests-per-minute", 1)] {
        try_one(&server, name).await.unwrap();
        let (subject, wait) = quota(&try_one(&server, name).await.unwrap_err());
        assert_eq!(subject, quota_name);
        assert!(wait > Duration::ZERO && wait <= Duration::from_secs(minutes * 60), "{wait:?}");
        // No other face lets it in.
        let body = json!({"prompt": [1, 2, 3], "max_tokens": 5}).to_string();
        assert_eq!(post_with(server.address, "/v1/completions", &headers(name), &body).await.status, 429);
    }
    for _ in 0..5 {
        try_one(&server, "free").await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_for_several_answers_is_counted_whole_before_any_of_it_begins() {
    let limits = TenantLimits { requests_per_minute: Some(1), max_streams: Some(3), ..FREE };
    let server = limited(vec![tenant("a", limits)], None).await;
    let call = async |body: serde_json::Value| {
        post_with(server.address, "/v1/completions", &headers("a"), &body.to_string()).await
    };
    // What can never be let in is not worth coming back for.
    for (body, param) in [
        (json!({"prompt": [1, 2, 3], "max_tokens": 2, "n": 4}), "n"),
        (json!({"prompt": [[1, 2], [3, 4]], "max_tokens": 2}), "prompt"),
    ] {
        let refused = call(body.clone()).await;
        assert_eq!((refused.status, refused.header("retry-after")), (400, None), "{body}");
        assert_eq!(refused.json().await["error"]["param"], param, "{body}");
    }
    let mut many = request(&[1, 2, 3], 2);
    many.options.as_mut().unwrap().sampling.as_mut().unwrap().n = Some(4);
    let refused = generation(&server, "a").await.generate_stream(many).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert_eq!(refused.get_details_bad_request().unwrap().field_violations[0].field, "options.sampling.n");
    // None of them took anything, and answers to one prompt are one request on this wire as on the other.
    assert_eq!(call(json!({"prompt": [1, 2, 3], "max_tokens": 2, "n": 3})).await.status, 200);
    assert_eq!(quota(&try_one(&server, "a").await.unwrap_err()).0, "requests-per-minute");
}

/// A tenant of one token a minute, and how many it owes for a call, that one included which it waits for.
async fn owed(call: impl AsyncFnOnce(&Server)) -> u64 {
    let limits = TenantLimits { tokens_per_minute: Some(1), ..FREE };
    let server = limited(vec![tenant("a", limits)], None).await;
    call(&server).await;
    server.idle().await;
    let (subject, wait) = quota(&try_one(&server, "a").await.unwrap_err());
    assert_eq!(subject, "tokens-per-minute");
    wait.as_secs().div_ceil(60)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_tokens_that_were_computed_count_and_a_prompt_once() {
    let best = owed(async |server: &Server| {
        let mut best = request(&[1, 2, 3], 5);
        best.options.as_mut().unwrap().sampling.as_mut().unwrap().best_of = Some(4);
        let stream = generation(server, "a").await.generate_stream(best).await.unwrap();
        assert_eq!(read(stream.into_inner()).await.token_ids().len(), 5);
    });
    assert_eq!(best.await, 3 + 4 * 5, "those that were not the best too");
    let several = owed(async |server: &Server| {
        let body = json!({"prompt": [1, 2, 3], "max_tokens": 5, "n": 4}).to_string();
        assert_eq!(post_with(server.address, "/v1/completions", &headers("a"), &body).await.status, 200);
    });
    assert_eq!(several.await, 3 + 4 * 5);
    let vectors = owed(async |server: &Server| {
        let body = json!({"input": [[1, 2, 3], [4, 5]]}).to_string();
        assert_eq!(post_with(server.address, "/v1/embeddings", &headers("a"), &body).await.status, 200);
    });
    assert_eq!(vectors.await, 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_for_vectors_has_as_many_streams_as_its_tenant_and_counts_though_it_fails() {
    let gate = Arc::new(Gate::default());
    let limits = TenantLimits { max_streams: Some(2), tokens_per_minute: Some(1), ..FREE };
    let server = limited(vec![tenant("a", limits)], Some((0, Mishap::Hang(gate.clone())))).await;
    let inputs: Vec<_> = (0..20).map(|k| vec![k, k + 1]).collect();
    let body = json!({ "input": inputs }).to_string();
    let head = format!(
        "POST /v1/embeddings HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n{}\r\n{body}",
        body.len(),
        headers("a")
    );
    let mut client = TcpStream::connect(server.address).await.unwrap();
    client.write_all(head.as_bytes()).await.unwrap();
    // A call has its places before its inputs are tokenized, and is counted after.
    crate::grpc::until("its first step hangs", || gate.reached()).await;
    assert_eq!(quota(&try_one(&server, "a").await.unwrap_err()).0, "max-streams");
    drop(client);
    gate.open();
    // Its places at the engine are free a moment before those of its tenant.
    let refused = async {
        loop {
            let (subject, _) = quota(&try_one(&server, "a").await.unwrap_err());
            if subject == "tokens-per-minute" {
                break;
            }
        }
    };
    soon("it has ended, and its tokens were counted", refused).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_that_generate_nothing_are_requests_too() {
    let limits = TenantLimits { requests_per_minute: Some(1), ..FREE };
    let names = ["a", "b", "c", "d", "e"];
    let server = limited(names.map(|name| tenant(name, limits)).to_vec(), None).await;
    let messages = json!([{"role": "user", "content": "Hi"}]);
    for (name, path, body) in [
        ("a", "/tokenize", json!({"prompt": "Hi"})),
        ("b", "/detokenize", json!({"tokens": [72, 105]})),
        ("c", "/v1/messages/count_tokens", json!({"model": "fake", "messages": messages})),
    ] {
        for status in [200, 429] {
            let answer = post_with(server.address, path, &headers(name), &body.to_string()).await;
            assert_eq!(answer.status, status, "{path}");
        }
    }
    let mut tokens = TokensClient::new(keyed(&server, "d").await);
    let tokenize = || TokenizeRequest { text: "Hi".into(), ..TokenizeRequest::default() };
    tokens.tokenize(tokenize()).await.unwrap();
    assert_eq!(quota(&tokens.tokenize(tokenize()).await.unwrap_err()).0, "requests-per-minute");
    let quote = || QuoteRequest { prompt: prompt_of(&[1, 2, 3]), options: Some(options(5)), ..QuoteRequest::default() };
    let mut generation = generation(&server, "e").await;
    generation.quote(quote()).await.unwrap();
    assert_eq!(quota(&generation.quote(quote()).await.unwrap_err()).0, "requests-per-minute");
}

/// A session of a tenant, by its two halves.
async fn session(
    server: &Server,
    tenant: &str,
) -> (mpsc::UnboundedSender<SessionRequest>, tonic::Streaming<candlewick::proto::candlewick::v1::SessionResponse>) {
    let (say, said) = mpsc::unbounded();
    say.unbounded_send(SessionRequest { event: Some(Say::Open(SessionOpen::default())), id: None }).unwrap();
    (say, chat(server, tenant).await.session(said).await.unwrap().into_inner())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_turn_that_is_refused_because_one_is_under_way_costs_nothing() {
    let gate = Arc::new(Gate::default());
    let limits = TenantLimits { requests_per_minute: Some(2), ..FREE };
    let server = limited(vec![tenant("a", limits)], Some((3, Mishap::Hang(gate.clone())))).await;
    let (say, mut hear) = session(&server, "a").await;
    let sampling = options(20).sampling;
    let turn = || Say::User(UserTurn { content: "Hi".into(), sampling: sampling.clone(), ..UserTurn::default() });
    for _ in 0..5 {
        say.unbounded_send(SessionRequest { event: Some(turn()), id: None }).unwrap();
    }
    let (mut refused, mut done) = (0, 0);
    while done < 2 {
        match soon("an event", hear.message()).await.unwrap().unwrap().event.unwrap() {
            Told::Error(error) => {
                assert_eq!(error.code, Code::FailedPrecondition as i32, "{error:?}");
                refused += 1;
                if refused == 4 {
                    gate.open();
                }
            }
            Told::TurnDone(_) => {
                done += 1;
                if done == 1 {
                    say.unbounded_send(SessionRequest { event: Some(turn()), id: None }).unwrap();
                }
            }
            _ => {}
        }
    }
    assert_eq!(refused, 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_refused_is_told_by_how_long_streams_last_once_one_has_ended() {
    let (gate, unmeasured) = (Arc::new(Gate::default()), Duration::from_secs(1));
    let limits = TenantLimits { max_streams: Some(1), ..FREE };
    let server = limited(vec![tenant("a", limits)], Some((12, Mishap::Hang(gate.clone())))).await;
    try_one(&server, "a").await.unwrap();
    let held = generation(&server, "a").await.generate_stream(request(&[1, 2, 3], 40)).await.unwrap().into_inner();
    let (name, after) = quota(&try_one(&server, "a").await.unwrap_err());
    assert_eq!(name, "max-streams");
    assert_ne!(after, unmeasured);
    gate.open();
    assert_eq!(read(held).await.token_ids().len(), 40);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_and_their_turns_are_counted() {
    let limits = TenantLimits { max_sessions: Some(1), requests_per_minute: Some(1), ..FREE };
    let server = limited(vec![tenant("a", limits), tenant("b", FREE)], None).await;
    let (say, mut hear) = session(&server, "a").await;
    let opened = soon("an event", hear.message()).await.unwrap().unwrap().event;
    assert!(matches!(opened, Some(Told::Opened(_))), "{opened:?}");
    let (_, mut second) = session(&server, "a").await;
    let refused = soon("an event", second.message()).await.unwrap_err();
    assert_eq!(quota(&refused).0, "max-sessions");
    let (_, mut others) = session(&server, "b").await;
    soon("an event", others.message()).await.unwrap().unwrap();

    let sampling = options(3).sampling;
    let turn = || Say::User(UserTurn { content: "Hi".into(), sampling: sampling.clone(), ..UserTurn::default() });
    say.unbounded_send(SessionRequest { event: Some(turn()), id: None }).unwrap();
    while !matches!(soon("an event", hear.message()).await.unwrap().unwrap().event, Some(Told::TurnDone(_))) {}
    say.unbounded_send(SessionRequest { event: Some(turn()), id: None }).unwrap();
    let Some(Told::Error(error)) = soon("an event", hear.message()).await.unwrap().unwrap().event else { panic!() };
    assert_eq!((error.code, error.fields[0].field.as_str()), (Code::ResourceExhausted as i32, "requests-per-minute"));
    assert!(error.retry_after_ms.unwrap() > 0);

    say.unbounded_send(SessionRequest { event: Some(Say::Close(CloseSession {})), id: None }).unwrap();
    while soon("the end", hear.message()).await.unwrap().is_some() {}
    // Its place is free once its task has ended, a moment after its stream.
    for attempt in 0.. {
        let (_, mut third) = session(&server, "a").await;
        match soon("an event", third.message()).await {
            Ok(_) => break,
            Err(status) if attempt < 1000 => assert_eq!(quota(&status).0, "max-sessions"),
            Err(status) => panic!("{status}"),
        }
    }
}
