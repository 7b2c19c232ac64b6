//! `candlewick.v1.Embeddings` over a real socket: vectors, faults by their path, and what is bounded.

use std::collections::BTreeMap;

use candlewick::{
    engine::{
        EmbedInput as EngineInput, EmbedRequest as EngineRequest, ModelInfo, ModelText,
        fake::{FakeExecutor, FakeOptions, Mishap},
    },
    error::Code as ErrorCode,
    ids::TokenId,
    params,
    proto::candlewick::v1::{
        EmbedInput, EmbedItem, EmbedOptions, EmbedRequest, EmbedStreamRequest, EmbedStreamResponse, Pooling, TokenIds,
        embed_input::Input, embed_stream_request::Request as Asked, embed_stream_response::Outcome,
        embeddings_client::EmbeddingsClient,
    },
    server::ServeOptions,
};
use tokio::{sync::mpsc, time::Instant};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Streaming, transport::Channel};
use tonic_types::StatusExt;

use super::{Server, config, fakes, ids, info, request, soon, text, until};

async fn client(server: &Server) -> EmbeddingsClient<Channel> {
    EmbeddingsClient::new(server.channel().await)
}

fn of_ids(ids: &[u32]) -> EmbedInput {
    EmbedInput { input: Some(Input::TokenIds(TokenIds { ids: ids.to_vec() })) }
}

fn of_text(text: &str) -> EmbedInput {
    EmbedInput { input: Some(Input::Text(text.into())) }
}

fn raw(pooling: Pooling) -> EmbedOptions {
    EmbedOptions { pooling: Some(pooling.into()), normalize: Some(false), ..EmbedOptions::default() }
}

/// What the fake makes of a prompt, not normalized.
fn expected(ids: &[u32], pooling: Pooling) -> Vec<f32> {
    let ids: Vec<_> = ids.iter().copied().map(TokenId).collect();
    let pooling = if pooling == Pooling::Mean { params::Pooling::Mean } else { params::Pooling::Last };
    FakeExecutor::expected_vector(&ids, pooling)
}

fn item(id: u64, input: EmbedInput) -> EmbedStreamRequest {
    EmbedStreamRequest { request: Some(Asked::Item(EmbedItem { id, input: Some(input) })) }
}

fn of_options(options: EmbedOptions) -> EmbedStreamRequest {
    EmbedStreamRequest { request: Some(Asked::Options(options)) }
}

/// A stream, and where to send its inputs.
async fn stream(server: &Server) -> (mpsc::Sender<EmbedStreamRequest>, Streaming<EmbedStreamResponse>) {
    let (sender, receiver) = mpsc::channel(256);
    let results = client(server).await.embed_stream(ReceiverStream::new(receiver)).await.unwrap();
    (sender, results.into_inner())
}

async fn next(results: &mut Streaming<EmbedStreamResponse>) -> Option<(u64, Outcome)> {
    let result = soon("a result", results.message()).await.unwrap()?;
    Some((result.id, result.outcome.unwrap()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_with_more_inputs_than_the_queue_holds_gets_all_vectors_in_order() {
    let server = Server::well().await;
    let prompts: Vec<_> = (0..100).map(|k| ids(k, 1 + k % 70)).collect();
    for pooling in [Pooling::Mean, Pooling::Last] {
        let inputs = prompts.iter().map(|ids| of_ids(ids)).collect();
        let embed = EmbedRequest { inputs, options: Some(raw(pooling)) };
        let answer = client(&server).await.embed(embed).await.unwrap().into_inner();
        assert_eq!((answer.model.as_str(), answer.pooling()), ("fake", pooling));
        assert_eq!(answer.embeddings.len(), prompts.len());
        for (embedding, prompt) in answer.embeddings.iter().zip(&prompts) {
            assert_eq!(embedding.values, expected(prompt, pooling));
            assert_eq!(embedding.prompt_tokens as usize, prompt.len());
        }
        let usage = answer.usage.unwrap();
        let cached = answer.embeddings.iter().map(|embedding| embedding.cached_tokens).sum::<u32>();
        assert_eq!(
            (usage.prompt_tokens, usage.completion_tokens),
            (prompts.iter().map(Vec::len).sum::<usize>() as u32, 0)
        );
        assert_eq!(usage.cached_tokens, cached);
        // The second round finds the first one's blocks.
        assert_eq!(cached > 0, pooling == Pooling::Last);
    }
    let counted = server.engine.telemetry().encode();
    assert!(counted.contains("finished_reason=\"stop\"} 200"), "each is an answer of its own");
    server.idle().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vectors_have_the_length_one_and_the_dimensions_that_are_asked_for() {
    let server = text::server().await;
    let ids: Vec<_> = "Hello".bytes().map(u32::from).collect();
    for dimensions in [None, Some(1), Some(5)] {
        let options = EmbedOptions { dimensions, ..EmbedOptions::default() };
        let embed = EmbedRequest { inputs: vec![of_text("Hello")], options: Some(options) };
        let answer = client(&server).await.embed(embed).await.unwrap().into_inner();
        let values = &answer.embeddings[0].values;
        let whole = expected(&ids, Pooling::Last);
        let cut = &whole[..dimensions.map_or(whole.len(), |n| n as usize)];
        let length = cut.iter().map(|x| x * x).sum::<f32>().sqrt();
        assert_eq!(values.len(), cut.len());
        assert!(values.iter().zip(cut).all(|(x, expected)| (x - expected / length).abs() < 1e-6));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_input_costs_nothing_and_is_named() {
    let server = text::server().await;
    let good = || of_text("x");
    let with = |change: fn(&mut EmbedOptions)| {
        let mut options = EmbedOptions::default();
        change(&mut options);
        EmbedRequest { inputs: vec![good()], options: Some(options) }
    };
    let of = |inputs: Vec<EmbedInput>| EmbedRequest { inputs, options: None };
    for (wrong, field) in [
        (of(vec![]), "inputs"),
        (of(vec![good(), EmbedInput::default()]), "inputs[1]"),
        (of(vec![good(), good(), of_text("")]), "inputs[2]"),
        (of(vec![good(), of_ids(&[1, 2, 5000])]), "inputs[1].token_ids.ids[2]"),
        (of(vec![of_text(&"y".repeat(1025))]), "inputs[0]"),
        (of(vec![of_text(&"y".repeat(2 << 20))]), "inputs[0].text"),
        (of(vec![good(); 2049]), "inputs"),
        (with(|options| options.dimensions = Some(0)), "options.dimensions"),
        (with(|options| options.dimensions = Some(9)), "options.dimensions"),
        (with(|options| options.pooling = Some(77)), "options.pooling"),
        (with(|options| options.cache_salt = Some("x".repeat(300))), "options.cache_salt"),
        (with(|options| options.request_id = Some("x".repeat(300))), "options.request_id"),
    ] {
        let status = client(&server).await.embed(wrong).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{field}");
        assert_eq!(status.get_details_bad_request().unwrap().field_violations[0].field, field);
        assert!(status.message().starts_with(field), "{status:?}");
    }
    let other = with(|options| options.model = Some("other".into()));
    assert_eq!(client(&server).await.embed(other).await.unwrap_err().code(), Code::NotFound);
    assert!(server.engine.telemetry().state().kv_cache_usage == 0.0, "nothing ran");
    // As long as the context: no place is left for a token after it, and none is needed.
    let whole = of(vec![of_text(&"y".repeat(1024))]);
    assert_eq!(client(&server).await.embed(whole).await.unwrap().into_inner().usage.unwrap().prompt_tokens, 1024);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_tokenizer_text_cannot_be_embedded() {
    let server = Server::well().await;
    let embed = EmbedRequest { inputs: vec![of_text("x")], options: None };
    assert_eq!(client(&server).await.embed(embed).await.unwrap_err().code(), Code::FailedPrecondition);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_answers_each_input_and_goes_on_after_one_that_fails() {
    let server = Server::well().await;
    let (inputs, mut results) = stream(&server).await;
    inputs.send(of_options(raw(Pooling::Mean))).await.unwrap();
    for k in 0..60 {
        inputs.send(item(k, of_ids(&ids(k as u32, 1 + k as u32)))).await.unwrap();
    }
    inputs.send(item(1000, of_ids(&[1, 5000]))).await.unwrap();
    inputs.send(item(1001, EmbedInput::default())).await.unwrap();
    inputs.send(of_options(raw(Pooling::Last))).await.unwrap();
    inputs.send(item(2000, of_ids(&ids(5, 9)))).await.unwrap();
    let mut told = BTreeMap::new();
    while told.len() < 63 {
        let (id, outcome) = next(&mut results).await.unwrap();
        assert!(told.insert(id, outcome).is_none(), "{id} came twice");
    }
    for (id, outcome) in &told {
        let prompt = ids(*id as u32, 1 + *id as u32);
        match (id, outcome) {
            (0..60, Outcome::Embedding(embedding)) => assert_eq!(embedding.values, expected(&prompt, Pooling::Mean)),
            (2000, Outcome::Embedding(embedding)) => {
                assert_eq!(embedding.values, expected(&ids(5, 9), Pooling::Last));
            }
            (1000 | 1001, Outcome::Error(error)) => {
                assert_eq!(error.code, i32::from(Code::InvalidArgument));
                let field = if *id == 1000 { "item.input.token_ids.ids[1]" } else { "item.input" };
                assert_eq!(error.fields[0].field, field);
            }
            _ => panic!("{id}: {outcome:?}"),
        }
    }
    // The client has nothing more to send: neither has the server.
    drop(inputs);
    assert_eq!(next(&mut results).await, None);
    server.idle().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_asks_for_what_cannot_be_ends_with_its_name() {
    let server = Server::well().await;
    for (wrong, code) in [
        (EmbedStreamRequest { request: None }, Code::InvalidArgument),
        (of_options(EmbedOptions { pooling: Some(9), ..EmbedOptions::default() }), Code::InvalidArgument),
        (of_options(EmbedOptions { model: Some("other".into()), ..EmbedOptions::default() }), Code::NotFound),
        (item(1, of_text(&"x".repeat(4 << 20))), Code::OutOfRange),
    ] {
        let (inputs, mut results) = stream(&server).await;
        inputs.send(wrong).await.unwrap();
        assert_eq!(soon("the end", results.message()).await.unwrap_err().code(), code);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_with_nothing_under_way_does_not_hold_up_the_end_of_the_server() {
    let options = ServeOptions { drain_timeout: std::time::Duration::from_secs(3600), ..ServeOptions::default() };
    let factory = fakes(&config(), |_| FakeOptions::default());
    let server = Server::with(info(), ModelText::default(), config(), factory, options).await;
    let (inputs, mut results) = stream(&server).await;
    inputs.send(item(1, of_ids(&[1, 2, 3]))).await.unwrap();
    assert!(matches!(next(&mut results).await, Some((1, Outcome::Embedding(_)))));
    let served = server.shut_down();
    assert_eq!(soon("its end", results.message()).await.unwrap_err().code(), Code::Unavailable);
    drop(inputs);
    soon("the end of the server", served).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_holds_a_bounded_number_of_places() {
    let (server, gate) = Server::hung(config(), 0).await;
    let (inputs, mut results) = stream(&server).await;
    for k in 0..200 {
        inputs.send(item(k, of_ids(&ids(k as u32, 3)))).await.unwrap();
    }
    until("the stream has taken its places", || server.engine.num_live() >= 32).await;
    // A call that comes after them is taken: not all 72 places are the stream's.
    let other = client(&server).await;
    let call = tokio::spawn(async move {
        let embed = EmbedRequest { inputs: vec![of_ids(&[1, 2, 3])], options: None };
        let mut other = other;
        other.embed(embed).await
    });
    until("the call has its place", || server.engine.num_live() == 33).await;
    gate.open();
    soon("the call", call).await.unwrap().unwrap();
    let mut told = BTreeMap::new();
    for _ in 0..200 {
        let (id, outcome) = next(&mut results).await.unwrap();
        assert!(matches!(outcome, Outcome::Embedding(_)), "{id}: {outcome:?}");
        told.insert(id, ());
    }
    assert_eq!(told.len(), 200);
    server.idle().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_queue_refuses_calls_and_inputs_and_says_when_to_come_back() {
    let (server, gate) = Server::hung(config(), 0).await;
    let mut streams = Vec::new();
    let mut generation = server.generation().await;
    for k in 0..72 {
        streams.push(generation.generate_stream(request(&ids(k, 3), 2)).await.unwrap());
    }
    let embed = || EmbedRequest { inputs: vec![of_ids(&[1, 2])], options: None };
    let status = client(&server).await.embed(embed()).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert!(status.get_details_retry_info().is_some());
    let (inputs, mut results) = stream(&server).await;
    inputs.send(item(7, of_ids(&[1, 2]))).await.unwrap();
    let Some((7, Outcome::Error(error))) = next(&mut results).await else { panic!("no error for the input") };
    assert_eq!(error.code, i32::from(Code::ResourceExhausted));
    assert!(error.retry_after_ms.is_some());
    drop(streams);
    gate.open();
    until("the places are free", || server.engine.num_live() == 0).await;
    inputs.send(item(8, of_ids(&[1, 2]))).await.unwrap();
    assert!(matches!(next(&mut results).await, Some((8, Outcome::Embedding(_)))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vectors_that_are_not_sent_yet_take_their_room() {
    // So large that the room for all vectors is that of sixteen.
    let info = ModelInfo { embedding_size: params::limits::EMBED_NUMBERS, ..info() };
    let factory = fakes(&config(), |_| FakeOptions::default());
    let server = Server::with(info, ModelText::default(), config(), factory, ServeOptions::default()).await;
    let embed = || EmbedRequest { inputs: vec![of_ids(&[1, 2, 3])], options: None };
    // A client that lets the server send nothing but headers.
    let uri = format!("http://{}", server.address).parse().unwrap();
    let deaf = Channel::builder(uri).initial_stream_window_size(0).connect().await.unwrap();
    let calls: Vec<_> = (0..16).map(|_| EmbeddingsClient::new(deaf.clone())).collect();
    let calls = calls.into_iter().map(|mut client| tokio::spawn(async move { client.embed(embed()).await }));
    let calls: Vec<_> = calls.collect();
    let metrics = || server.engine.telemetry().encode();
    until("all are computed", || metrics().contains("finished_reason=\"stop\"} 16")).await;
    let mut client = client(&server).await;
    let refused = client.embed(embed()).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert!(refused.message().contains("vectors"), "{refused}");
    calls.iter().for_each(|call| call.abort());
    let there_is_room = async { while client.embed(embed()).await.is_err() {} };
    soon("what nobody waits for makes room", there_is_room).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_goes_away_takes_its_inputs_along() {
    let (server, gate) = Server::hung(config(), 0).await;
    let inputs: Vec<_> = (0..100).map(|k| of_ids(&ids(k, 50))).collect();
    let mut leaver = client(&server).await;
    let embed = EmbedRequest { inputs: inputs.clone(), options: None };
    let call = tokio::spawn(async move { leaver.embed(embed).await });
    let (sender, results) = stream(&server).await;
    for (k, input) in inputs.into_iter().enumerate() {
        sender.send(item(k as u64, input)).await.unwrap();
    }
    until("both are there", || server.engine.num_live() == 64).await;
    call.abort();
    drop((sender, results));
    gate.open();
    until("nothing is left of them", || server.engine.num_live() == 0).await;
    server.idle().await;
    let computed = server.engine.telemetry().encode();
    assert!(computed.contains("finished_reason=\"abort\"}"), "{computed}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_engine_that_fails_ends_its_calls_and_the_next_life_answers() {
    let options = |life| FakeOptions { mishap: (life == 0).then_some((1, Mishap::Panic)), ..FakeOptions::default() };
    let server = Server::start(config(), fakes(&config(), options)).await;
    let embed = || EmbedRequest { inputs: (0..40).map(|k| of_ids(&ids(k, 60))).collect(), options: None };
    // An input that was not yet in line comes to no engine.
    let failed = client(&server).await.embed(embed()).await.unwrap_err().code();
    assert!([Code::Internal, Code::Unavailable].contains(&failed), "{failed}");
    let mut client = client(&server).await;
    let again = async {
        loop {
            match client.embed(embed()).await {
                Err(status) if status.code() == Code::Unavailable => tokio::task::yield_now().await,
                answer => return answer.unwrap().into_inner(),
            }
        }
    };
    assert_eq!(soon("the next life", again).await.embeddings.len(), 40);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deadline_that_has_passed_and_a_server_that_drains_refuse() {
    let (server, gate) = Server::hung(config(), 0).await;
    let input = || vec![EngineInput::Tokens(vec![TokenId(1)])];
    let late = EngineRequest { deadline: Some(Instant::now()), ..EngineRequest::new(input()) };
    assert_eq!(server.engine.embed(late).await.unwrap_err().code, ErrorCode::DeadlineExceeded);
    // The engine hangs, and the deadline comes all the same.
    let soon_late = Instant::now() + std::time::Duration::from_millis(20);
    let late = EngineRequest { deadline: Some(soon_late), ..EngineRequest::new(input()) };
    assert_eq!(server.engine.embed(late).await.unwrap_err().code, ErrorCode::DeadlineExceeded);
    gate.open();
    server.engine.begin_drain();
    assert_eq!(server.engine.embed(EngineRequest::new(input())).await.unwrap_err().code, ErrorCode::Unavailable);
    server.idle().await;
}
