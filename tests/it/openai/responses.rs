//! `/v1/responses`: kept, gone on from, streamed, made in the background, cancelled, deleted.

use std::{collections::BTreeMap as Map, sync::Arc};

use candlewick::{
    config::StreamArgs,
    engine::fake::{Gate, Mishap},
};
use serde_json::{Value, json};

use super::http::{Answer, get, post, send};
use crate::grpc::{
    Server, config,
    text::{continued, server, server_that_hangs, server_that_shows_prompts, server_with},
    tools, until,
};

const PATH: &str = "/v1/responses";

async fn create(server: &Server, body: Value) -> Value {
    let answer = post(server.address, PATH, &body.to_string()).await;
    assert_eq!(answer.status, 200, "{body}");
    answer.json().await
}

fn text(response: &Value) -> &str {
    response["output"][0]["content"][0]["text"].as_str().unwrap()
}

fn id(response: &Value) -> String {
    response["id"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_conversation_goes_on_from_a_response_by_its_id_without_its_instructions() {
    let server = server().await;
    let first = create(&server, json!({"input": "Hi", "instructions": "Be brief.", "max_output_tokens": 9})).await;
    let said = continued("<system>Be brief.<user>Hi<assistant>", 9);
    assert_eq!((text(&first), first["status"].as_str()), (said.as_str(), Some("incomplete")));
    assert_eq!(first["incomplete_details"]["reason"], "max_output_tokens");
    assert_eq!(get(server.address, &format!("{PATH}/{}", id(&first))).await.json().await, first);
    let items = get(server.address, &format!("{PATH}/{}/input_items", id(&first))).await.json().await;
    assert_eq!(items["data"][0]["content"][0]["text"], "Hi");

    let input = json!([{"role": "user", "content": [{"type": "input_text", "text": "More"}]}]);
    let body = json!({"input": input, "previous_response_id": id(&first), "max_output_tokens": 9});
    let second = create(&server, body).await;
    assert_eq!(text(&second), continued(&format!("<user>Hi<assistant>{said}<user>More<assistant>"), 9));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_is_the_events_that_build_the_response_which_is_kept_at_its_end() {
    let server = server().await;
    let body = json!({"input": "Hi", "stream": true, "max_output_tokens": 9}).to_string();
    let events = post(server.address, PATH, &body).await.events().await;
    let events: Vec<(String, Value)> =
        events.into_iter().map(|(name, data)| (name.unwrap(), serde_json::from_str(&data).unwrap())).collect();
    for (k, (name, data)) in events.iter().enumerate() {
        assert_eq!((data["type"].as_str(), data["sequence_number"].as_u64()), (Some(name.as_str()), Some(k as u64)));
    }
    let is_delta = |name: &str| name == "response.output_text.delta";
    let names: Vec<_> = events.iter().map(|(name, _)| name.as_str()).filter(|name| !is_delta(name)).collect();
    let expected = [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.incomplete",
    ];
    assert_eq!(names, expected);
    let told: String = events.iter().filter_map(|(_, data)| data["delta"].as_str()).collect();
    let response = &events.last().unwrap().1["response"];
    assert_eq!((told.as_str(), text(response)), (continued("<user>Hi<assistant>", 9).as_str(), told.as_str()));
    assert_eq!(get(server.address, &format!("{PATH}/{}", id(response))).await.json().await, *response);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_background_response_is_made_while_nobody_waits() {
    let server = server().await;
    let begun = create(&server, json!({"input": "Hi", "background": true, "max_output_tokens": 9})).await;
    assert_eq!((&begun["status"], &begun["output"]), (&json!("in_progress"), &json!([])));
    server.idle().await;
    let path = format!("{PATH}/{}", id(&begun));
    let mut response = get(server.address, &path).await.json().await;
    while response["status"] == "in_progress" {
        tokio::task::yield_now().await;
        response = get(server.address, &path).await.json().await;
    }
    assert_eq!(text(&response), continued("<user>Hi<assistant>", 9));
    let cancelled = post(server.address, &format!("{path}/cancel"), "").await.json().await;
    assert_eq!(cancelled, response, "what is whole stays as it is");
}

/// The data of a stream's events, each with its number.
async fn numbered(answer: Answer) -> Vec<(u64, Value)> {
    assert_eq!(answer.status, 200);
    let data = |(name, data): (Option<String>, String)| {
        let data: Value = serde_json::from_str(&data).unwrap();
        assert_eq!(data["type"].as_str(), name.as_deref());
        (data["sequence_number"].as_u64().unwrap(), data)
    };
    answer.events().await.into_iter().map(data).collect()
}

/// What the deltas among them say.
fn said(events: &[(u64, Value)]) -> String {
    events.iter().filter_map(|(_, data)| data["delta"].as_str()).collect()
}

fn streamed_in_the_background(max_output_tokens: u32) -> String {
    json!({"input": "Hi", "background": true, "stream": true, "max_output_tokens": max_output_tokens}).to_string()
}

/// The id of a response whose stream begins here.
async fn id_of(answer: &mut Answer) -> String {
    let first = String::from_utf8(answer.chunk_bytes().await.unwrap()).unwrap();
    let (_, data) = first.split_once("data: ").unwrap();
    let created: Value = serde_json::from_str(data.lines().next().unwrap()).unwrap();
    assert_eq!((&created["type"], &created["response"]["background"]), (&json!("response.created"), &json!(true)));
    id(&created["response"])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_of_a_background_response_is_dropped_and_read_on_from_anywhere() {
    let (server, gate) = server_that_hangs(5).await;
    let mut dropped = post(server.address, PATH, &streamed_in_the_background(40)).await;
    let path = format!("{PATH}/{}", id_of(&mut dropped).await);
    until("it runs", || server.engine.telemetry().generated_tokens() > 0).await;
    drop(dropped);
    let response = get(server.address, &path).await.json().await;
    assert_eq!(response["status"], "in_progress", "it goes on");
    let ahead = get(server.address, &format!("{path}?stream=true&starting_after=1000")).await;
    assert_eq!((ahead.status, ahead.json().await["error"]["param"].clone()), (400, json!("starting_after")));
    gate.open();
    let all = numbered(get(server.address, &format!("{path}?stream=true")).await).await;
    assert!(all.iter().map(|(number, _)| *number).eq(0..all.len() as u64));
    assert_eq!(said(&all), continued("<user>Hi<assistant>", 40));
    let (_, last) = all.last().unwrap();
    assert_eq!((&last["type"], text(&last["response"])), (&json!("response.incomplete"), said(&all).as_str()));
    assert_eq!(get(server.address, &path).await.json().await, last["response"]);
    for after in [0, 7, all.len() - 2] {
        let rest = numbered(get(server.address, &format!("{path}?stream=true&starting_after={after}")).await).await;
        assert_eq!(rest, all[after + 1..]);
    }
    // As if nobody had gone.
    let whole = numbered(post(server.address, PATH, &streamed_in_the_background(40)).await).await;
    let types = |events: &[(u64, Value)]| events.iter().map(|(_, data)| data["type"].clone()).collect::<Vec<_>>();
    assert_eq!((types(&whole), said(&whole)), (types(&all), said(&all)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_whose_events_are_gone_says_so_and_the_response_is_there() {
    let limits = StreamArgs { resume_ring_events: 8, ..StreamArgs::default() };
    let server = server_with(None, config(), limits).await;
    let mut dropped = post(server.address, PATH, &streamed_in_the_background(40)).await;
    let path = format!("{PATH}/{}", id_of(&mut dropped).await);
    drop(dropped);
    server.idle().await;
    let mut response = get(server.address, &path).await.json().await;
    while response["status"] == "in_progress" {
        tokio::task::yield_now().await;
        response = get(server.address, &path).await.json().await;
    }
    assert_eq!(text(&response), continued("<user>Hi<assistant>", 40));
    let lost = get(server.address, &format!("{path}?stream=true&starting_after=3")).await;
    assert_eq!(lost.status, 410);
    assert!(lost.json().await["error"]["message"].as_str().unwrap().contains("no longer kept"));
    let plain = create(&server, json!({"input": "Hi", "background": true, "max_output_tokens": 2})).await;
    let refused = get(server.address, &format!("{PATH}/{}?stream=true", id(&plain))).await;
    assert_eq!((refused.status, refused.json().await["error"]["param"].clone()), (400, json!("stream")));
    assert_eq!(get(server.address, &format!("{PATH}/resp_none?stream=true")).await.status, 404);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_reads_a_background_response_as_it_comes_gets_all_of_it_however_small_its_ring() {
    let limits = StreamArgs { resume_ring_bytes: 256, ..StreamArgs::default() };
    let server = server_with(None, config(), limits).await;
    let metadata: Map<_, _> = (0..16).map(|k| (k.to_string(), "x".repeat(512))).collect();
    let body = json!({
        "input": "Hi", "background": true, "stream": true, "max_output_tokens": 40, "metadata": metadata,
    });
    let all = numbered(post(server.address, PATH, &body.to_string()).await).await;
    assert!(all.iter().map(|(number, _)| *number).eq(0..all.len() as u64));
    let (_, last) = all.last().unwrap();
    assert_eq!((&last["type"], said(&all)), (&json!("response.incomplete"), continued("<user>Hi<assistant>", 40)));
    assert_eq!(last["response"]["metadata"], json!(metadata));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn background_responses_beyond_what_may_be_kept_are_refused_and_those_under_way_are_made() {
    let gate = Arc::new(Gate::default());
    let limits = StreamArgs { resume_ring_bytes: 15 << 20, ..StreamArgs::default() };
    let server = server_with(Some((5, Mishap::Hang(gate.clone()))), config(), limits).await;
    let mut streams = Vec::new();
    for _ in 0..2 {
        let mut stream = post(server.address, PATH, &streamed_in_the_background(40)).await;
        streams.push((id_of(&mut stream).await, stream));
    }
    let refused = post(server.address, PATH, &streamed_in_the_background(40)).await;
    assert_eq!((refused.status, refused.header("retry-after")), (429, Some("1")));
    let message = refused.json().await["error"]["message"].as_str().unwrap().to_owned();
    assert!(message.contains("being made in the background") && message.contains("try again later"), "{message}");
    // What is not kept has its answer.
    let plain = json!({"input": "Hi", "max_output_tokens": 2, "stream": true}).to_string();
    let plain = post(server.address, PATH, &plain).await;
    gate.open();
    assert_eq!(plain.status, 200);
    for (id, stream) in streams {
        let rest = stream.text().await;
        assert!(rest.contains("response.incomplete"), "{rest}");
        assert_eq!(get(server.address, &format!("{PATH}/{id}")).await.json().await["status"], "incomplete");
    }
    create(&server, json!({"input": "Hi", "background": true, "stream": false})).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_streamed_background_response_ends_where_it_is_cancelled() {
    let (server, gate) = server_that_hangs(5).await;
    let mut stream = post(server.address, PATH, &streamed_in_the_background(400)).await;
    let path = format!("{PATH}/{}", id_of(&mut stream).await);
    until("it runs", || server.engine.telemetry().generated_tokens() > 0).await;
    let cancelled = post(server.address, &format!("{path}/cancel"), "").await.json().await;
    assert_eq!(cancelled["status"], "cancelled");
    let rest = stream.text().await;
    assert!(!rest.contains("response.completed") && !rest.contains("response.incomplete"), "{rest}");
    assert_eq!(get(server.address, &format!("{path}?stream=true")).await.status, 410);
    let aborted = "finished_reason=\"abort\"} 1";
    until("it is aborted", || server.engine.telemetry().encode().contains(aborted)).await;
    gate.open();
    server.idle().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cancelling_or_deleting_a_background_response_frees_its_sequence() {
    for delete in [false, true] {
        let (server, gate) = server_that_hangs(5).await;
        let begun = create(&server, json!({"input": "Hi", "background": true, "max_output_tokens": 400})).await;
        let path = format!("{PATH}/{}", id(&begun));
        until("it runs", || server.engine.telemetry().generated_tokens() > 0).await;
        if delete {
            let request = format!("DELETE {path} HTTP/1.1\r\nhost: x\r\n\r\n");
            assert_eq!(send(server.address, request.as_bytes()).await.json().await["deleted"], true);
            assert_eq!(get(server.address, &path).await.status, 404);
        } else {
            let cancelled = post(server.address, &format!("{path}/cancel"), "").await.json().await;
            assert_eq!(cancelled["status"], "cancelled");
        }
        let aborted = "finished_reason=\"abort\"} 1";
        until("it is aborted", || server.engine.telemetry().encode().contains(aborted)).await;
        gate.open();
        server.idle().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_work_or_is_not_kept_is_refused_by_its_name() {
    let server = server().await;
    for (status, param, body) in [
        (400, "input", json!({})),
        (400, "input", json!({"input": []})),
        (400, "input", json!({"input": 7})),
        (400, "input[0].role", json!({"input": [{"role": "king", "content": "x"}]})),
        (400, "input[0].type", json!({"input": [{"type": "item_reference", "id": "x"}]})),
        (400, "tools[0].type", json!({"input": "x", "tools": [{"type": "web_search"}]})),
        (400, "tool_choice", json!({"input": "x", "tool_choice": {"type": "function", "name": "f"}})),
        (400, "reasoning.effort", json!({"input": "x", "reasoning": {"effort": "frob"}})),
        (400, "reasoning.summary", json!({"input": "x", "reasoning": {"summary": "detailed"}})),
        (400, "text.verbosity", json!({"input": "x", "text": {"verbosity": "low"}})),
        (400, "include", json!({"input": "x", "include": ["reasoning.encrypted_content"]})),
        (400, "max_output_tokens", json!({"input": "x", "max_output_tokens": 0})),
        (400, "store", json!({"input": "x", "background": true, "store": false})),
        (400, "store", json!({"input": "x", "background": true, "stream": true, "store": false})),
        (400, "metadata", json!({"input": "x", "metadata": {"key": 7}})),
        (400, "metadata", json!({"input": "x", "metadata": {"key": "x".repeat(513)}})),
        (400, "metadata", json!({"input": "x", "metadata": {"x".repeat(65): "x"}})),
        (
            400,
            "metadata",
            json!({"input": "x", "metadata": (0..17).map(|k| (k.to_string(), "x")).collect::<Map<_, _>>()}),
        ),
        (404, "previous_response_id", json!({"input": "x", "previous_response_id": "resp_none"})),
    ] {
        let refused = post(server.address, PATH, &body.to_string()).await;
        assert_eq!(refused.status, status, "{body}");
        assert_eq!(refused.json().await["error"]["param"], param, "{body}");
    }
    let pairs: Map<_, _> = (0..16).map(|k| (format!("{k:0>64}"), "é".repeat(512))).collect();
    let most = create(&server, json!({"input": "x", "metadata": pairs, "max_output_tokens": 2})).await;
    assert_eq!(most["metadata"], json!(pairs), "as many as OpenAI takes");
    let unkept = create(&server, json!({"input": "x", "store": false, "max_output_tokens": 2})).await;
    assert_eq!(get(server.address, &format!("{PATH}/{}", id(&unkept))).await.status, 404);
}

/// A question with the tools that the scripted model calls.
fn with_tools() -> Value {
    let tool =
        |name: &str| json!({"type": "function", "name": name, "parameters": {"type": "object"}, "strict": false});
    json!({"input": "Weather?", "max_output_tokens": 400, "tools": [tool("get_weather"), tool("clock")]})
}

/// The items of an answer, without what is drawn.
fn items(response: &Value) -> Vec<Value> {
    let item = |item: &Value| match item["type"].as_str().unwrap() {
        "function_call" => json!([item["name"], item["arguments"], item["status"]]),
        kind => json!([kind, item["content"][0]["type"], item["content"][0]["text"]]),
    };
    response["output"].as_array().unwrap().iter().map(item).collect()
}

fn scripted() -> Vec<Value> {
    vec![
        json!(["reasoning", "reasoning_text", "I need it."]),
        json!(["message", "output_text", "Let me look."]),
        json!(["get_weather", "{\"city\": \"München\"}", "completed"]),
        json!(["clock", "{}", "completed"]),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thoughts_and_calls_of_functions_are_items_that_the_next_response_goes_on_from() {
    let server = tools::server(tools::SCRIPT).await;
    let first = create(&server, with_tools()).await;
    assert_eq!((items(&first), first["status"].as_str()), (scripted(), Some("completed")));
    let ids: Map<_, _> = first["output"].as_array().unwrap().iter().map(|item| (item["id"].to_string(), ())).collect();
    assert_eq!(ids.len(), 4, "each has its own");
    // The mark and what stands before its end.
    let thought = "<think>\nI need it.".len();
    assert_eq!(first["usage"]["output_tokens_details"]["reasoning_tokens"], thought);
    assert_eq!((&first["tools"][1]["name"], &first["tool_choice"]), (&json!("clock"), &json!("auto")));

    let call = first["output"][3]["call_id"].clone();
    let mut body = with_tools();
    body["input"] = json!([{"type": "function_call_output", "call_id": call, "output": "12:00"}]);
    body["previous_response_id"] = id(&first).into();
    let second = create(&server, body).await;
    let rendered = "<user>Weather?<assistant>Let me look.<tool_call>get_weather {\"city\": \"München\"}\
                    <tool_call>clock {}<tool>12:00<assistant>";
    assert_eq!(second["usage"]["input_tokens"], rendered.len());
    let listed = get(server.address, &format!("{PATH}/{}/input_items", id(&second))).await.json().await;
    assert_eq!((&listed["data"][0]["type"], &listed["data"][0]["call_id"]), (&json!("function_call_output"), &call));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_builds_its_items_one_after_another() {
    let server = tools::server(tools::SCRIPT).await;
    let mut body = with_tools();
    body["stream"] = true.into();
    let events = post(server.address, PATH, &body.to_string()).await.events().await;
    let events: Vec<Value> = events.iter().map(|(_, data)| serde_json::from_str(data).unwrap()).collect();
    let mut names: Vec<_> = events.iter().map(|event| event["type"].as_str().unwrap()).collect();
    names.dedup();
    let message = |kind: &str| {
        [
            "output_item.added",
            "content_part.added",
            &format!("{kind}.delta"),
            &format!("{kind}.done"),
            "content_part.done",
            "output_item.done",
        ]
        .map(|name| format!("response.{name}"))
        .to_vec()
    };
    let call =
        ["output_item.added", "function_call_arguments.delta", "function_call_arguments.done", "output_item.done"]
            .map(|name| format!("response.{name}"))
            .to_vec();
    let (begun, ended) = (["created", "in_progress"], ["completed"]);
    let named = |names: &[&str]| names.iter().map(|name| format!("response.{name}")).collect::<Vec<_>>();
    let expected =
        [named(&begun), message("reasoning_text"), message("output_text"), call.clone(), call, named(&ended)].concat();
    assert_eq!(names, expected);
    assert!(events.iter().enumerate().all(|(k, event)| event["sequence_number"] == k));

    let response = &events.last().unwrap()["response"];
    assert_eq!(items(response), scripted());
    for (index, item) in response["output"].as_array().unwrap().iter().enumerate() {
        let own = events.iter().filter(|event| event["output_index"] == index);
        let deltas: String = own.clone().filter_map(|event| event["delta"].as_str()).collect();
        let whole = item["arguments"].as_str().or(item["content"][0]["text"].as_str());
        assert_eq!(Some(deltas.as_str()), whole);
        let done = own.clone().find(|event| event["type"] == "response.output_item.done").unwrap();
        assert_eq!(done["item"], *item);
        let mut within = own.filter_map(|event| event["item_id"].as_str());
        assert!(within.all(|id| item["id"] == id));
    }
    assert_eq!(get(server.address, &format!("{PATH}/{}", id(response))).await.json().await, *response);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn items_of_the_past_and_the_effort_reach_the_template() {
    let server = server_that_shows_prompts().await;
    let body = json!({
        "max_output_tokens": 9, "reasoning": {"effort": "low", "summary": "auto"}, "parallel_tool_calls": false,
        "tools": [{"type": "function", "name": "clock"}],
        "input": [
            {"role": "user", "content": "Time?"},
            {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]},
            {"type": "function_call", "id": "fc_1", "call_id": "a", "name": "clock", "arguments": "{\"n\": 1}"},
            {"type": "function_call_output", "call_id": "a", "output": "12:00"},
        ],
    });
    let rendered = "<user>Time?<assistant>(Hm.)[a clock {\"n\": 1}]<tool a clock>12:00+clock/low<assistant>";
    let response = create(&server, body).await;
    assert_eq!(text(&response), continued(rendered, 9));
    assert_eq!((&response["reasoning"]["effort"], &response["parallel_tool_calls"]), (&json!("low"), &json!(false)));
}
