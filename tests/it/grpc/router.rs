//! What a router asks of a worker besides tokens: its cache, its tokenizer, its load.

use std::{
    collections::HashSet,
    io::{Cursor, Read},
    path::Path,
};

use candlewick::{
    config::EngineConfig,
    engine::fake::{FakeOptions, Mishap},
    proto::{
        smg::grpc::common::{GetTokenizerRequest, KvEventBatch, SubscribeKvEventsRequest, kv_cache_event::Data},
        vllm::grpc::engine::{
            GenerateRequest, GetLoadsRequest, GetModelInfoRequest, SamplingParams, TokenizedInput,
            generate_request::Input, generate_response::Response, vllm_engine_client::VllmEngineClient,
        },
    },
    server::ServeOptions,
    text::{Tokenizer, TokenizerConfig},
};
use sha2::{Digest, Sha256};
use tonic::{Code, Streaming, transport::Channel};

use super::{Server, config, fakes, ids, info, soon, text, until};

async fn client(server: &Server) -> VllmEngineClient<Channel> {
    VllmEngineClient::new(server.channel().await)
}

fn request(ids: &[u32], max_tokens: u32, change: impl FnOnce(&mut SamplingParams)) -> GenerateRequest {
    let mut params =
        SamplingParams { temperature: Some(0.0), max_tokens: Some(max_tokens), ignore_eos: true, ..Default::default() };
    change(&mut params);
    GenerateRequest {
        input: Some(Input::Tokenized(TokenizedInput { original_text: String::new(), input_ids: ids.to_vec() })),
        sampling_params: Some(params),
        stream: true,
        ..GenerateRequest::default()
    }
}

/// Runs a prompt to its end.
async fn visit(client: &mut VllmEngineClient<Channel>, ids: &[u32]) {
    let mut stream = client.generate(request(ids, 1, |_| {})).await.unwrap().into_inner();
    while soon("a response", stream.message()).await.unwrap().is_some() {}
}

async fn subscribe(client: &mut VllmEngineClient<Channel>, after: u64) -> Streaming<KvEventBatch> {
    let request = SubscribeKvEventsRequest { start_sequence_number: after };
    client.subscribe_kv_events(request).await.unwrap().into_inner()
}

async fn next(stream: &mut Streaming<KvEventBatch>) -> KvEventBatch {
    soon("a batch", stream.message()).await.unwrap().unwrap()
}

/// The blocks that a batch adds, each as its hash, that of the one before, and its tokens.
fn stored(batch: &KvEventBatch) -> Vec<(i64, Option<i64>, Vec<u32>)> {
    let mut blocks = Vec::new();
    for event in &batch.events {
        if let Some(Data::Stored(run)) = &event.data {
            let mut parent = run.parent_block_hash;
            for block in &run.blocks {
                assert_eq!(block.block_size as usize, block.token_ids.len());
                blocks.push((block.block_hash, parent, block.token_ids.clone()));
                parent = Some(block.block_hash);
            }
        }
    }
    blocks
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_router_learns_what_prompts_leave_in_the_cache_and_in_which_order() {
    let server = Server::well().await;
    let mut client = client(&server).await;
    let mut events = subscribe(&mut client, 0).await;
    let prompt = ids(3, 40);
    visit(&mut client, &prompt).await;
    let first = next(&mut events).await;
    let blocks = stored(&first);
    let told: Vec<_> = blocks.iter().map(|(_, _, tokens)| tokens.as_slice()).collect();
    assert_eq!(told, [&prompt[..16], &prompt[16..32]], "two whole blocks of 16");
    assert_eq!((blocks[0].1, blocks[1].1), (None, Some(blocks[0].0)));

    // Another prompt with the same beginning adds what is new, after what is there.
    let longer: Vec<_> = prompt[..32].iter().copied().chain(ids(9, 20)).collect();
    visit(&mut client, &longer).await;
    let second = next(&mut events).await;
    assert_eq!(second.sequence_number, first.sequence_number + 1);
    let [(_, parent, tokens)] = &stored(&second)[..] else { panic!("not one block: {second:?}") };
    assert_eq!((*parent, &tokens[..]), (Some(blocks[1].0), &longer[32..48]));

    // Who comes back goes on behind what it has; who has nothing gets everything.
    let mut back = subscribe(&mut client, first.sequence_number).await;
    assert_eq!(next(&mut back).await, second);
    let mut anew = subscribe(&mut client, 0).await;
    assert_eq!((next(&mut anew).await, next(&mut anew).await), (first, second));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_router_that_knows_another_process_is_told_the_cache_as_it_stands() {
    let server = Server::well().await;
    let mut client = client(&server).await;
    visit(&mut client, &ids(3, 40)).await;
    let last = next(&mut subscribe(&mut client, 0).await).await.sequence_number;
    for after in [1, last + 1000, u64::MAX] {
        let mut events = subscribe(&mut client, after).await;
        let chunk = next(&mut events).await;
        let snapshot = chunk.snapshot.unwrap();
        assert_eq!((snapshot.index, snapshot.count, snapshot.blocks, snapshot.unknown_before), (0, 1, 2, 0));
        assert_eq!((chunk.sequence_number, stored(&chunk).len()), (last, 2));
        assert!(matches!(chunk.events[0].data, Some(Data::Cleared(_))), "what it knew is gone");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_evicted_is_told_and_who_follows_knows_all_there_is() {
    let config = EngineConfig { num_blocks: 12, max_model_len: 128, ..config() };
    let server = Server::start(config.clone(), fakes(&config, |_| FakeOptions::default())).await;
    let mut client = client(&server).await;
    let mut events = subscribe(&mut client, 0).await;
    for seed in 0..6 {
        visit(&mut client, &ids(seed, 60)).await;
    }
    // Six prompts of three whole blocks each, of which twelve blocks hold four at the most.
    let (mut known, mut all) = (HashSet::new(), 0);
    while all < 18 {
        for event in next(&mut events).await.events {
            match event.data.unwrap() {
                Data::Stored(run) => {
                    all += run.blocks.len();
                    known.extend(run.blocks.iter().map(|block| block.block_hash));
                }
                Data::Removed(run) => assert!(run.block_hashes.iter().all(|hash| known.remove(hash))),
                Data::Cleared(_) => panic!("nothing was cleared"),
            }
        }
    }
    assert!(known.len() <= 12, "{} blocks in a cache of 12", known.len());
    let snapshot = next(&mut subscribe(&mut client, 1).await).await;
    assert_eq!(stored(&snapshot).into_iter().map(|(hash, ..)| hash).collect::<HashSet<_>>(), known);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cache_that_goes_down_with_its_engine_is_told_cleared() {
    let factory = fakes(&config(), |life| FakeOptions {
        mishap: (life == 0).then_some((2, Mishap::Panic)),
        ..FakeOptions::default()
    });
    let server = Server::start(config(), factory).await;
    let mut client = client(&server).await;
    let mut events = subscribe(&mut client, 0).await;
    visit(&mut client, &ids(3, 40)).await;
    assert_eq!(stored(&next(&mut events).await).len(), 2);
    // The next step panics.
    let mut failed = client.generate(request(&ids(4, 40), 5, |_| {})).await.unwrap().into_inner();
    while let Ok(Some(_)) = soon("the end", failed.message()).await {}
    // Perhaps after what the failed one had stored.
    while !matches!(next(&mut events).await.events[0].data, Some(Data::Cleared(_))) {}
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_that_are_turned_off_are_unimplemented() {
    for config in [
        EngineConfig { enable_kv_cache_events: false, ..config() },
        EngineConfig { enable_prefix_caching: false, ..config() },
    ] {
        let server = Server::start(config.clone(), fakes(&config, |_| FakeOptions::default())).await;
        let refused = client(&server).await.subscribe_kv_events(SubscribeKvEventsRequest::default()).await;
        assert_eq!(refused.unwrap_err().code(), Code::Unimplemented);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_in_browsers_do_not_learn_what_is_cached() {
    let server = Server::well().await;
    let mut page = VllmEngineClient::with_interceptor(server.channel().await, |mut request: tonic::Request<()>| {
        request.metadata_mut().insert("origin", "http://localhost".parse().unwrap());
        Ok(request)
    });
    let refused = page.subscribe_kv_events(SubscribeKvEventsRequest::default()).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    page.get_loads(GetLoadsRequest::default()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscription_does_not_hold_up_the_end_of_the_server() {
    let server = Server::well().await;
    let mut events = subscribe(&mut client(&server).await, 0).await;
    let served = server.shut_down();
    assert!(soon("the end of the stream", events.message()).await.unwrap().is_none());
    soon("the end of the server", served).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn loads_tell_who_runs_who_waits_and_how_much_room_there_is() {
    let config = EngineConfig { max_num_seqs: 2, ..config() };
    let (server, gate) = Server::hung(config, 3).await;
    let mut client = client(&server).await;
    let mut streams = Vec::new();
    for seed in 0..3 {
        streams.push(client.generate(request(&ids(seed, 60), 900, |_| {})).await.unwrap());
    }
    let response = client.get_loads(GetLoadsRequest::default()).await.unwrap().into_inner();
    assert_eq!((response.dp_rank_count, response.loads.len()), (1, 1));
    let load = response.loads[0];
    assert_eq!((load.max_running_requests, load.max_total_num_tokens), (2, 256 * 16));
    assert!((0.0..=1.0).contains(&load.token_usage) && load.num_total_reqs <= 3);
    let engine = &server.engine;
    until("somebody holds blocks", || engine.telemetry().state().kv_cache_usage > 0.0).await;
    let load = client.get_loads(GetLoadsRequest::default()).await.unwrap().into_inner().loads[0];
    assert!(load.num_used_tokens > 0 && load.num_total_reqs > 0, "{load:?}");
    gate.open();
    drop(streams);
    server.idle().await;
    let load = client.get_loads(GetLoadsRequest::default()).await.unwrap().into_inner().loads[0];
    assert_eq!((load.num_total_reqs, load.num_used_tokens, load.num_waiting_uncached_tokens), (0, 0, 0));
    assert_eq!(load.token_usage, 0.0, "what is cached can be had");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_tokenizer_goes_out_as_files_that_say_the_same() {
    let server = text::server().await;
    let mut stream = client(&server).await.get_tokenizer(GetTokenizerRequest {}).await.unwrap().into_inner();
    let (mut archive, mut sums) = (Vec::new(), Vec::new());
    while let Some(chunk) = soon("a chunk", stream.message()).await.unwrap() {
        archive.extend(chunk.data);
        sums.push(chunk.sha256);
    }
    let last = sums.pop().unwrap();
    assert!(sums.iter().all(String::is_empty), "the last chunk alone has the sum");
    let sum: String = Sha256::digest(&archive).iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(last, sum);

    let mut zip = zip::ZipArchive::new(Cursor::new(archive)).unwrap();
    let mut file = |name: &str| {
        let mut bytes = Vec::new();
        zip.by_name(name).unwrap().read_to_end(&mut bytes).unwrap();
        bytes
    };
    let tokenizer = Tokenizer::from_json_bytes(Path::new("tokenizer.json"), &file("tokenizer.json")).unwrap();
    let text = "Once upon a time, été 漢字 🦙!\n\n";
    assert_eq!(tokenizer.encode(text, true).unwrap(), text::tokenizer().encode(text, true).unwrap());
    let config = TokenizerConfig::from_json_bytes(Path::new("config"), &file("tokenizer_config.json")).unwrap();
    assert!(config.chat_templates[0].1.contains("<assistant>"));
    let config: serde_json::Value = serde_json::from_slice(&file("config.json")).unwrap();
    assert_eq!((&config["model_type"], &config["vocab_size"]), (&"fake".into(), &256.into()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_without_a_tokenizer_says_so() {
    let server = Server::well().await;
    let refused = client(&server).await.get_tokenizer(GetTokenizerRequest {}).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_of_several_answers_has_its_index_and_its_complete_and_the_prompt_its_log_probabilities() {
    let server = Server::well().await;
    let prompt = ids(5, 20);
    let change = |params: &mut SamplingParams| (params.n, params.prompt_logprobs) = (3, Some(0));
    let mut stream = client(&server).await.generate(request(&prompt, 6, change)).await.unwrap().into_inner();
    let (mut tokens, mut ended, mut prompt_logprobs) = (vec![Vec::new(); 3], Vec::new(), 0);
    while let Some(response) = soon("a response", stream.message()).await.unwrap() {
        match response.response.unwrap() {
            Response::Chunk(chunk) => {
                if let Some(logprobs) = chunk.input_logprobs {
                    assert_eq!(logprobs.token_ids, prompt);
                    let values: Vec<_> = logprobs.token_logprobs.iter().map(|entry| entry.value.is_some()).collect();
                    assert_eq!(values.iter().position(|&has| has), Some(1), "nothing predicts the first");
                    prompt_logprobs += values.len();
                }
                tokens[chunk.index as usize].extend(chunk.token_ids);
            }
            Response::Complete(complete) => {
                assert_eq!(complete.output_ids, tokens[complete.index as usize]);
                assert_eq!((complete.completion_tokens, complete.finish_reason.as_str()), (6, "length"));
                ended.push(complete.index);
            }
        }
    }
    ended.sort_unstable();
    assert_eq!(ended, [0, 1, 2]);
    assert_eq!(prompt_logprobs, 20, "once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_file_is_named_only_where_a_router_could_read_it() {
    let server = Server::with(
        info(),
        Default::default(),
        config(),
        fakes(&config(), |_| FakeOptions::default()),
        ServeOptions::default(),
    )
    .await;
    let model = client(&server).await.get_model_info(GetModelInfoRequest {}).await.unwrap().into_inner();
    assert_eq!(model.tokenizer_path, "", "then it asks for the archive");
}
