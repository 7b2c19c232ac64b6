//! The wire of vLLM's engine, as routers use it.

use candlewick::{
    engine::fake::{EMBEDDING_SIZE, FakeExecutor},
    ids::TokenId,
    params::Pooling,
    proto::vllm::grpc::engine::{
        AbortRequest, EmbedRequest, GenerateRequest, GenerateResponse, GetModelInfoRequest, GetServerInfoRequest,
        HealthCheckRequest, SamplingParams, TokenizedInput, generate_complete::MatchedStop, generate_request::Input,
        generate_response::Response, vllm_engine_client::VllmEngineClient,
    },
};
use tonic::{Code, Streaming, transport::Channel};
use tonic_types::StatusExt;

use super::{Server, config, expected, ids, soon};

fn request(id: &str, ids: &[u32], stream: bool, params: SamplingParams) -> GenerateRequest {
    GenerateRequest {
        request_id: id.into(),
        input: Some(Input::Tokenized(TokenizedInput { original_text: String::new(), input_ids: ids.to_vec() })),
        sampling_params: Some(params),
        stream,
        ..GenerateRequest::default()
    }
}

fn up_to(max_tokens: u32) -> SamplingParams {
    SamplingParams {
        temperature: Some(0.0),
        max_tokens: Some(max_tokens),
        ignore_eos: true,
        ..SamplingParams::default()
    }
}

async fn client(server: &Server) -> VllmEngineClient<Channel> {
    VllmEngineClient::new(server.channel().await)
}

async fn all(mut stream: Streaming<GenerateResponse>) -> Result<Vec<Response>, tonic::Status> {
    let mut responses = Vec::new();
    while let Some(response) = soon("a response", stream.message()).await? {
        responses.push(response.response.unwrap());
    }
    Ok(responses)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chunks_carry_every_token_and_a_complete_ends_the_stream() {
    let server = Server::well().await;
    let prompt = ids(4, 40);
    let stream = client(&server).await.generate(request("a", &prompt, true, up_to(30))).await.unwrap();
    let mut responses = all(stream.into_inner()).await.unwrap();
    let Some(Response::Complete(complete)) = responses.pop() else { panic!("no complete at the end") };
    let (mut tokens, mut counted) = (Vec::new(), 0);
    for response in responses {
        let Response::Chunk(chunk) = response else { panic!("a complete before the end") };
        assert_eq!(chunk.prompt_tokens, 40);
        counted += chunk.completion_tokens;
        tokens.extend(chunk.token_ids);
    }
    assert_eq!(tokens, expected(&prompt, 30));
    assert_eq!((counted, complete.output_ids), (30, tokens));
    assert_eq!((complete.finish_reason.as_str(), complete.matched_stop), ("length", None));
    assert_eq!((complete.prompt_tokens, complete.completion_tokens), (40, 30));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_streaming_one_complete_has_everything() {
    let server = Server::well().await;
    let prompt = ids(4, 40);
    let whole = expected(&prompt, 30);
    let end = (1..30).find(|&k| !whole[..k].contains(&whole[k])).unwrap();
    let params = SamplingParams { stop_token_ids: vec![whole[end]], ..up_to(30) };
    let stream = client(&server).await.generate(request("a", &prompt, false, params)).await.unwrap();
    let responses = all(stream.into_inner()).await.unwrap();
    let [Response::Complete(complete)] = responses.as_slice() else { panic!("not one complete: {responses:?}") };
    assert_eq!(complete.output_ids, whole[..=end]);
    assert_eq!(complete.finish_reason, "stop");
    assert_eq!(complete.matched_stop, Some(MatchedStop::MatchedTokenId(whole[end])));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_requests_are_invalid_arguments_by_their_path() {
    let server = Server::well().await;
    let mut client = client(&server).await;
    let long = ids(1, 5000);
    let wrong = [
        ("tokenized.input_ids", request("no ids", &[], true, up_to(5))),
        ("tokenized.input_ids[1]", request("an id past the vocabulary", &[1, 5_000_000], true, up_to(5))),
        ("tokenized.input_ids", request("too long", &long, true, up_to(5))),
        (
            "sampling_params.temperature",
            request("cold", &[1], true, SamplingParams { temperature: Some(-1.0), ..up_to(5) }),
        ),
        ("sampling_params.top_p", request("wide", &[1], true, SamplingParams { top_p: 7.0, ..up_to(5) })),
        ("sampling_params.min_tokens", request("long", &[1], true, SamplingParams { min_tokens: 9, ..up_to(5) })),
        ("sampling_params.n", request("many", &[1], true, SamplingParams { n: 1000, ..up_to(5) })),
        ("input", GenerateRequest::default()),
    ];
    for (path, request) in wrong {
        for stream in [true, false] {
            let refused = client.generate(GenerateRequest { stream, ..request.clone() }).await.unwrap_err();
            assert_eq!(refused.code(), Code::InvalidArgument, "{path}: {refused:?}");
            assert_eq!(refused.get_details_bad_request().unwrap().field_violations[0].field, path);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_abort_by_id_ends_that_stream_and_frees_it() {
    let (server, gate) = Server::hung(config(), 3).await;
    let mut client = client(&server).await;
    let one = client.generate(request("one", &ids(1, 9), true, up_to(100))).await.unwrap().into_inner();
    let other = client.generate(request("other", &ids(2, 9), false, up_to(100))).await.unwrap().into_inner();
    client.abort(AbortRequest { request_ids: vec!["one".into(), "unknown".into()] }).await.unwrap();
    assert_eq!(all(one).await.unwrap_err().code(), Code::Cancelled);
    gate.open();
    assert_eq!(all(other).await.unwrap().len(), 1);
    server.idle().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_abort_names_thousands_at_the_most() {
    let (server, gate) = Server::hung(config(), 3).await;
    let mut client = client(&server).await;
    let stream = client.generate(request("7", &ids(1, 9), true, up_to(20))).await.unwrap().into_inner();
    let ids = |n: usize| AbortRequest { request_ids: (0..n).map(|k| k.to_string()).collect() };
    let refused = client.abort(ids(4097)).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert_eq!(refused.get_details_bad_request().unwrap().field_violations[0].field, "request_ids");
    client.abort(ids(4096)).await.unwrap();
    assert_eq!(all(stream).await.unwrap_err().code(), Code::Cancelled);
    gate.open();
    server.idle().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn headers_go_out_before_the_first_token_streaming_or_not() {
    let (server, gate) = Server::hung(config(), 0).await;
    let mut client = client(&server).await;
    for stream in [true, false] {
        let call = client.generate(request("early", &ids(1, 9), stream, up_to(5)));
        soon("headers from an engine that computes nothing", call).await.unwrap();
    }
    gate.open();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn routers_learn_what_they_need_to_register_a_worker() {
    let server = Server::well().await;
    let mut client = client(&server).await;
    assert!(client.health_check(HealthCheckRequest {}).await.unwrap().into_inner().healthy);
    let model = client.get_model_info(GetModelInfoRequest {}).await.unwrap().into_inner();
    assert_eq!((model.served_model_name.as_str(), model.vocab_size, model.max_context_length), ("fake", 1000, 1024));
    assert!(model.is_generation && !model.supports_vision);
    let info = client.get_server_info(GetServerInfoRequest {}).await.unwrap().into_inner();
    assert_eq!((info.server_type.as_str(), info.data_parallel_size, info.block_size), ("vllm-grpc", 1, 16));
    assert_eq!(info.max_num_seqs, 8);
    server.engine.begin_drain();
    assert!(!client.health_check(HealthCheckRequest {}).await.unwrap().into_inner().healthy);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn embed_gives_the_vector_of_the_models_own_pooling() {
    let server = Server::well().await;
    let prompt = ids(4, 40);
    let embed = |input_ids: Vec<u32>| EmbedRequest {
        request_id: "e".into(),
        tokenized: Some(TokenizedInput { original_text: String::new(), input_ids }),
    };
    let mut client = client(&server).await;
    let embedded = client.embed(embed(prompt.clone())).await.unwrap().into_inner();
    assert_eq!((embedded.prompt_tokens, embedded.embedding_dim), (40, EMBEDDING_SIZE as u32));
    let tokens: Vec<_> = prompt.into_iter().map(TokenId).collect();
    let expected = FakeExecutor::expected_vector(&tokens, Pooling::Last);
    let length = expected.iter().map(|x| x * x).sum::<f32>().sqrt();
    for (x, expected) in embedded.embedding.iter().zip(expected) {
        assert!((x - expected / length).abs() < 1e-6);
    }
    for (wrong, field) in [(vec![], "tokenized.input_ids"), (vec![1, 5000], "tokenized.input_ids[1]")] {
        let status = client.embed(embed(wrong)).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        assert_eq!(status.get_details_bad_request().unwrap().field_violations[0].field, field);
    }
}
