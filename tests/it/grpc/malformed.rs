//! Requests that can never work: each is refused at once, by the path of the field at fault.

use candlewick::proto::candlewick::v1::{
    CompleteRequest, DetokenizeRequest, GenerateStreamRequest, GetRequest, Message, Prompt, RequestOptions, Role,
    SamplingParams, TokenizeRequest, chat_client::ChatClient, models_client::ModelsClient, tokens_client::TokensClient,
};
use tonic::{Code, Status, metadata::MetadataValue};
use tonic_types::StatusExt;

use super::{Server, expected, ids, options, prompt_of, read, request};

/// Makes parameters wrong in one place.
type Spoil = fn(&mut SamplingParams);

/// The only field that a refusal complains of.
fn field(status: &Status) -> String {
    let violations =
        status.get_details_bad_request().unwrap_or_else(|| panic!("no BadRequest in {status:?}")).field_violations;
    assert_eq!(violations.len(), 1, "{violations:?}");
    assert!(!violations[0].description.is_empty());
    violations[0].field.clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_sampling_parameter_is_refused_by_its_path() {
    let wrong: [(&str, Spoil); 19] = [
        ("temperature", |p| p.temperature = Some(-1.0)),
        ("temperature", |p| p.temperature = Some(f32::NAN)),
        ("temperature", |p| p.temperature = Some(f32::INFINITY)),
        ("top_p", |p| p.top_p = Some(7.0)),
        ("top_p", |p| p.top_p = Some(0.0)),
        ("min_p", |p| p.min_p = Some(1.5)),
        ("repetition_penalty", |p| p.repetition_penalty = Some(0.0)),
        ("frequency_penalty", |p| p.frequency_penalty = Some(-2.5)),
        ("presence_penalty", |p| p.presence_penalty = Some(2.5)),
        ("logit_bias[3]", |p| p.logit_bias = [(3, 1000.0)].into()),
        ("logit_bias[5000000]", |p| p.logit_bias = [(5_000_000, 1.0)].into()),
        ("max_tokens", |p| p.max_tokens = Some(0)),
        ("max_tokens", |p| p.max_tokens = Some(100_000)),
        ("min_tokens", |p| (p.min_tokens, p.max_tokens) = (Some(9), Some(4))),
        ("stop", |p| p.stop = vec!["no tokenizer, no text".into()]),
        ("stop", |p| p.stop = vec!["x".into(); 100]),
        ("stop[0]", |p| p.stop = vec![String::new()]),
        ("stop_token_ids[1]", |p| p.stop_token_ids = vec![1, 5_000_000]),
        ("logprobs", |p| p.logprobs = Some(21)),
    ];
    let server = Server::well().await;
    let mut client = server.generation().await;
    for (path, spoil) in wrong {
        let mut request = request(&ids(1, 5), 5);
        spoil(request.options.as_mut().unwrap().sampling.as_mut().unwrap());
        let refused = client.generate_stream(request).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{path}: {refused:?}");
        assert_eq!(field(&refused), format!("options.sampling.{path}"));
        assert!(refused.message().contains(&field(&refused)), "{}", refused.message());
    }
    let prompt = ids(1, 5);
    let read = read(client.generate_stream(request(&prompt, 5)).await.unwrap().into_inner()).await;
    assert_eq!(read.token_ids(), expected(&prompt, 5), "the server goes on");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_prompt_or_option_is_refused_by_its_path() {
    let with = |options: RequestOptions| GenerateStreamRequest { prompt: prompt_of(&[1]), options: Some(options) };
    let long = "x".repeat(1000);
    let wrong = [
        ("prompt", GenerateStreamRequest { prompt: None, options: None }),
        ("prompt", GenerateStreamRequest { prompt: Some(Prompt { prompt: None }), options: None }),
        ("prompt", request(&[], 5)),
        ("prompt", request(&ids(1, 5000), 5)),
        ("prompt.token_ids.ids[1]", request(&[1, 5_000_000], 5)),
        ("options.request_id", with(RequestOptions { request_id: Some(long.clone()), ..options(5) })),
        ("options.cache_salt", with(RequestOptions { cache_salt: Some(long.clone()), ..options(5) })),
    ];
    let server = Server::well().await;
    let mut client = server.generation().await;
    for (path, request) in wrong {
        let refused = client.generate_stream(request).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{path}: {refused:?}");
        assert_eq!(field(&refused), path);
    }
    assert!(server.engine.telemetry().refused(candlewick::error::Code::InvalidArgument) >= 7);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_model_is_not_found_and_the_one_served_is_named() {
    let server = Server::well().await;
    let mut other = request(&ids(1, 5), 5);
    other.options.as_mut().unwrap().model = Some("other".into());
    let refused = server.generation().await.generate_stream(other).await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound);
    assert!(refused.message().contains("fake"), "{}", refused.message());
    assert_eq!(refused.get_details_error_info().unwrap().reason, "NOT_FOUND");
    let refused = ModelsClient::new(server.channel().await).get(GetRequest { name: "other".into() }).await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn text_without_a_tokenizer_is_a_failed_precondition() {
    let server = Server::well().await;
    let channel = server.channel().await;
    let mut tokens = TokensClient::new(channel.clone());
    let tokenize = tokens.tokenize(TokenizeRequest { text: "hello".into(), ..TokenizeRequest::default() }).await;
    assert_eq!(tokenize.unwrap_err().code(), Code::FailedPrecondition);
    let detokenize = tokens.detokenize(DetokenizeRequest { token_ids: vec![1], ..DetokenizeRequest::default() }).await;
    assert_eq!(detokenize.unwrap_err().code(), Code::FailedPrecondition);
    let messages = vec![Message { role: Role::User.into(), content: "hello".into(), ..Message::default() }];
    let chat = ChatClient::new(channel).complete(CompleteRequest { messages, options: None, chat: None }).await;
    assert_eq!(chat.unwrap_err().code(), Code::FailedPrecondition);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_without_a_role_or_none_at_all_are_refused_by_their_path() {
    let server = Server::well().await;
    let mut chat = ChatClient::new(server.channel().await);
    let refused = chat.complete(CompleteRequest::default()).await.unwrap_err();
    assert_eq!((refused.code(), field(&refused).as_str()), (Code::InvalidArgument, "messages"));
    let user = Message { role: Role::User.into(), content: "hello".into(), ..Message::default() };
    for role in [0, 77] {
        let messages = vec![user.clone(), Message { role, ..Message::default() }];
        let refused = chat.complete(CompleteRequest { messages, options: None, chat: None }).await.unwrap_err();
        assert_eq!((refused.code(), field(&refused).as_str()), (Code::InvalidArgument, "messages[1].role"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deadline_that_cannot_be_read_is_refused_by_its_header() {
    let server = Server::well().await;
    let mut call = tonic::Request::new(request(&ids(1, 5), 5));
    call.metadata_mut().insert("grpc-timeout", MetadataValue::from_static("soon"));
    let refused = server.generation().await.generate_stream(call).await.unwrap_err();
    assert_eq!((refused.code(), field(&refused).as_str()), (Code::InvalidArgument, "grpc-timeout"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_beyond_the_size_limit_is_refused_and_the_connection_goes_on() {
    let server = Server::well().await;
    let mut client = server.generation().await;
    let huge = vec![999; 5 << 20];
    let refused = client.generate_stream(request(&huge, 5)).await.unwrap_err();
    assert_eq!(refused.code(), Code::OutOfRange, "{refused:?}");
    assert_eq!(refused.get_details_error_info().unwrap().reason, "MESSAGE_TOO_LARGE");
    assert!(client.generate_stream(request(&ids(1, 5), 5)).await.is_ok());
}
