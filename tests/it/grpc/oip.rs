//! The Open Inference Protocol, as Triton's clients speak it.

use std::collections::HashMap;

use candlewick::proto::inference::{
    InferParameter, ModelInferRequest, ModelInferResponse, ModelMetadataRequest, ModelReadyRequest,
    ModelStreamInferResponse, RepositoryIndexRequest, ServerLiveRequest, ServerReadyRequest,
    grpc_inference_service_client::GrpcInferenceServiceClient,
    infer_parameter::ParameterChoice,
    model_infer_request::{InferInputTensor, InferRequestedOutputTensor},
};
use futures::stream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Streaming, transport::Channel};
use tonic_types::StatusExt;

use super::{
    Server, soon,
    text::{self, continued},
};

async fn client(server: &Server) -> GrpcInferenceServiceClient<Channel> {
    GrpcInferenceServiceClient::new(server.channel().await)
}

fn input(request: &mut ModelInferRequest, name: &str, datatype: &str, raw: Vec<u8>) {
    request.inputs.push(InferInputTensor {
        name: name.into(),
        datatype: datatype.into(),
        shape: vec![1],
        ..InferInputTensor::default()
    });
    request.raw_input_contents.push(raw);
}

fn bytes(text: &str) -> Vec<u8> {
    [&(text.len() as u32).to_le_bytes()[..], text.as_bytes()].concat()
}

fn request(id: &str, text: &str, parameters: &str, flags: &[&str]) -> ModelInferRequest {
    let mut request = ModelInferRequest { model_name: "fake".into(), id: id.into(), ..ModelInferRequest::default() };
    input(&mut request, "text_input", "BYTES", bytes(text));
    input(&mut request, "sampling_parameters", "BYTES", bytes(parameters));
    for flag in flags {
        input(&mut request, flag, "BOOL", vec![1]);
    }
    request
}

/// An output's one element, after its length where it is text.
fn output<'r>(response: &'r ModelInferResponse, name: &str) -> Option<&'r [u8]> {
    let at = response.outputs.iter().position(|output| output.name == name)?;
    let raw = &response.raw_output_contents[at];
    Some(if response.outputs[at].datatype == "BYTES" { &raw[4..] } else { raw })
}

fn said(response: &ModelInferResponse) -> String {
    String::from_utf8(output(response, "text_output").unwrap_or_default().to_vec()).unwrap()
}

fn is_final(response: &ModelInferResponse) -> bool {
    let choice = response.parameters["triton_final_response"].parameter_choice.clone();
    choice == Some(ParameterChoice::BoolParam(true))
}

async fn next(stream: &mut Streaming<ModelStreamInferResponse>) -> Option<ModelStreamInferResponse> {
    soon("a response", stream.message()).await.unwrap()
}

/// All responses by the ids of their requests, with the errors said.
async fn all(mut stream: Streaming<ModelStreamInferResponse>) -> HashMap<String, Vec<(String, ModelInferResponse)>> {
    let mut all: HashMap<_, Vec<_>> = HashMap::new();
    while let Some(ModelStreamInferResponse { error_message, infer_response }) = next(&mut stream).await {
        let response = infer_response.unwrap();
        all.entry(response.id.clone()).or_default().push((error_message, response));
    }
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_model_is_there_ready_and_described() {
    let server = text::server().await;
    let mut client = client(&server).await;
    assert!(client.server_live(ServerLiveRequest {}).await.unwrap().into_inner().live);
    assert!(client.server_ready(ServerReadyRequest {}).await.unwrap().into_inner().ready);
    for (name, version, ready) in [("fake", "", true), ("fake", "1", true), ("fake", "2", false), ("other", "", false)]
    {
        let request = ModelReadyRequest { name: name.into(), version: version.into() };
        assert_eq!(client.model_ready(request).await.unwrap().into_inner().ready, ready, "{name} {version}");
    }
    let request = |name: &str| ModelMetadataRequest { name: name.into(), version: String::new() };
    let model = client.model_metadata(request("fake")).await.unwrap().into_inner();
    assert_eq!((model.inputs[0].name.as_str(), model.outputs[0].name.as_str()), ("text_input", "text_output"));
    assert_eq!(client.model_metadata(request("other")).await.unwrap_err().code(), Code::NotFound);
    let index = client.repository_index(RepositoryIndexRequest::default()).await.unwrap().into_inner();
    assert_eq!(index.models[0].state, "READY");
    server.engine.begin_drain();
    assert!(!client.server_ready(ServerReadyRequest {}).await.unwrap().into_inner().ready);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_answer_has_all_that_was_asked_for() {
    let server = text::server().await;
    let mut client = client(&server).await;
    let limits = r#"{"max_tokens": "20", "temperature": 0}"#;
    let flags =
        ["exclude_input_in_output", "return_finish_reason", "return_num_input_tokens", "return_num_output_tokens"];
    let answer = client.model_infer(request("7", "hello", limits, &flags)).await.unwrap().into_inner();
    assert_eq!((answer.id.as_str(), said(&answer)), ("7", continued("hello", 20)));
    assert_eq!(output(&answer, "finish_reason"), Some(&b"length"[..]));
    assert_eq!(output(&answer, "num_input_tokens"), Some(&5_u32.to_le_bytes()[..]));
    assert_eq!(output(&answer, "num_output_tokens"), Some(&20_u32.to_le_bytes()[..]));

    // The prompt comes first where nobody says that it must not.
    let answer = client.model_infer(request("", "hello", limits, &[])).await.unwrap().into_inner();
    assert_eq!((answer.outputs.len(), said(&answer)), (1, format!("hello{}", continued("hello", 20))));

    let mut chosen = request("", "hello", limits, &[]);
    chosen.outputs = vec![InferRequestedOutputTensor { name: "finish_reason".into(), ..Default::default() }];
    let answer = client.model_infer(chosen).await.unwrap().into_inner();
    assert_eq!((answer.outputs.len(), output(&answer, "finish_reason")), (1, Some(&b"length"[..])));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_adds_up_to_what_one_answer_says() {
    let server = text::server().await;
    let mut client = client(&server).await;
    let limits = r#"{"max_tokens": 20}"#;
    let returned = ["return_finish_reason", "return_num_output_tokens"];
    let flags = [&["exclude_input_in_output"], &returned[..]].concat();
    let whole = client.model_infer(request("w", "hello", limits, &flags)).await.unwrap().into_inner();
    let flags = [&["stream"], &returned[..]].concat();
    let requests = stream::iter([request("s", "hello", limits, &flags)]);
    let streamed = all(client.model_stream_infer(requests).await.unwrap().into_inner()).await.remove("s").unwrap();

    let tokens = |response: &ModelInferResponse| {
        u32::from_le_bytes(output(response, "num_output_tokens").unwrap().try_into().unwrap())
    };
    let reason = |response: &ModelInferResponse| output(response, "finish_reason").unwrap().to_vec();
    let ((_, last), deltas) = streamed.split_last().unwrap();
    assert!(deltas.len() > 5 && deltas.iter().all(|(_, delta)| reason(delta) == b"None"));
    assert_eq!(reason(last), b"length");
    assert_eq!(streamed.iter().map(|(_, response)| tokens(response)).sum::<u32>(), tokens(&whole));
    assert_eq!(tokens(&whole), 20);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_is_wrong_is_refused_with_the_field() {
    let server = text::server().await;
    let mut client = client(&server).await;
    let mut unknown = request("", "hello", "{}", &[]);
    unknown.outputs = vec![InferRequestedOutputTensor { name: "logits".into(), ..Default::default() }];
    let cases = [
        ("sampling_parameters.temperature", request("", "hello", r#"{"temperature": -3}"#, &[])),
        ("sampling_parameters.beams", request("", "hello", r#"{"beams": 3}"#, &[])),
        ("stream", request("", "hello", "{}", &["stream"])),
        ("inputs", ModelInferRequest { model_name: "fake".into(), ..ModelInferRequest::default() }),
        ("outputs[0].name", unknown),
        ("text_input", request("", "", "{}", &[])),
        ("id", request(&"x".repeat(1000), "hello", "{}", &[])),
    ];
    for (path, request) in cases {
        let refused = client.model_infer(request).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{path}: {refused:?}");
        assert_eq!(refused.get_details_bad_request().unwrap().field_violations[0].field, path);
    }
    let other = ModelInferRequest { model_name: "other".into(), ..request("", "hello", "{}", &[]) };
    assert_eq!(client.model_infer(other).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(server.engine.telemetry().prompt_tokens(), 0, "none of them was begun");
    server.idle().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_carries_several_requests_and_an_error_ends_its_own_alone() {
    let server = text::server().await;
    let limits = r#"{"max_tokens": 30}"#;
    let mut empty_final = request("c", "three", limits, &["stream"]);
    let yes = InferParameter { parameter_choice: Some(ParameterChoice::BoolParam(true)) };
    empty_final.parameters.insert("triton_enable_empty_final_response".into(), yes);
    let requests = [
        request("a", "one", limits, &["stream"]),
        request("bad", "hello", r#"{"top_p": 9}"#, &["stream"]),
        request("b", "two", limits, &["exclude_input_in_output"]),
        empty_final,
        request("worse", "hello", "no json", &[]),
    ];
    let stream = client(&server).await.model_stream_infer(stream::iter(requests)).await.unwrap().into_inner();
    let all = all(stream).await;
    for (id, prompt) in [("a", "one"), ("b", "two"), ("c", "three")] {
        let responses = &all[id];
        assert!(responses.iter().all(|(error, _)| error.is_empty()));
        let text: String = responses.iter().map(|(_, response)| said(response)).collect();
        assert_eq!(text, continued(prompt, 30), "{id}");
        let finals: Vec<_> = responses.iter().map(|(_, response)| is_final(response)).collect();
        assert_eq!(finals.iter().position(|&f| f), Some(finals.len() - 1), "{id}: the last, and no other");
    }
    assert!(all["a"].len() > 5 && all["b"].len() == 1);
    assert!(all["c"].last().unwrap().1.outputs.is_empty(), "as asked for");
    for (id, path) in [("bad", "sampling_parameters.top_p"), ("worse", "sampling_parameters")] {
        let [(error, response)] = &all[id][..] else { panic!("not one response: {:?}", all[id]) };
        assert!(error.starts_with(path) && is_final(response), "{error}");
    }
    server.idle().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_come_while_the_client_still_asks_and_more_than_run_at_once_wait_their_turn() {
    let server = text::server().await;
    let (ask, asked) = mpsc::channel(4);
    let mut client = client(&server).await;
    let mut stream = client.model_stream_infer(ReceiverStream::new(asked)).await.unwrap().into_inner();
    let limits = r#"{"max_tokens": 2}"#;
    ask.send(request("first", "x", limits, &[])).await.unwrap();
    assert_eq!(next(&mut stream).await.unwrap().infer_response.unwrap().id, "first");
    let asking = tokio::spawn(async move {
        for n in 0..200 {
            ask.send(request(&n.to_string(), "x", limits, &[])).await.unwrap();
        }
    });
    let all = all(stream).await;
    asking.await.unwrap();
    // The queue of this engine has room for more than a stream may run at once, so none is refused.
    assert_eq!(all.len(), 200);
    assert!(all.values().flatten().all(|(error, _)| error.is_empty()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_goes_away_takes_all_its_requests_along() {
    let (server, gate) = text::server_that_hangs(2).await;
    let requests = ["a", "b", "c"].map(|id| request(id, id, r#"{"max_tokens": 200}"#, &["stream"]));
    let open = stream::iter(requests);
    let mut stream = client(&server)
        .await
        .model_stream_infer(futures::StreamExt::chain(open, stream::pending()))
        .await
        .unwrap()
        .into_inner();
    next(&mut stream).await.unwrap();
    drop(stream);
    gate.open();
    server.idle().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_nobody_asks_on_does_not_hold_up_the_end_of_the_server() {
    let server = text::server().await;
    let mut stream = client(&server).await.model_stream_infer(stream::pending()).await.unwrap().into_inner();
    let served = server.shut_down();
    assert!(next(&mut stream).await.is_none());
    soon("the end of the server", served).await.unwrap().unwrap();
}
