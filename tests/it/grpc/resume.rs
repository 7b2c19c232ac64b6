//! Streams that outlive their connection, what every stream says first and last, and heartbeats.

use std::{sync::Arc, time::Duration};

use candlewick::{
    config::{EngineConfig, StreamArgs},
    engine::{
        ModelText,
        fake::{FakeOptions, Gate, Mishap},
    },
    error::Code as ErrorCode,
    proto::candlewick::v1::{
        GenerateRequest, GenerateStreamRequest, ResumeRequest, ResumeResponse, SlowReader, Started,
        generate_stream_response::Event, generation_client::GenerationClient, progress::Stage,
        resume_response::Event as ResumeEvent,
    },
    server::ServeOptions,
};
use sha2::{Digest, Sha256};
use tonic::{Code, Streaming, transport::Channel};
use tonic_types::StatusExt;

use super::{Server, config, expected, fakes, ids, info, read, request, soon, until};

async fn server(streams: StreamArgs) -> Server {
    let options = ServeOptions { streams, ..ServeOptions::default() };
    Server::with(info(), ModelText::default(), config(), fakes(&config(), |_| FakeOptions::default()), options).await
}

fn resumable(prompt: &[u32], max_tokens: u32) -> GenerateStreamRequest {
    let mut request = request(prompt, max_tokens);
    request.options.as_mut().unwrap().resumable = Some(true);
    request
}

/// Reads `n` events of a new stream and drops it; what it said first.
async fn begun(client: &mut GenerationClient<Channel>, request: GenerateStreamRequest, n: usize) -> Started {
    let mut stream = client.generate_stream(request).await.unwrap().into_inner();
    let mut started = None;
    for _ in 0..n {
        if let Event::Started(event) = soon("an event", stream.message()).await.unwrap().unwrap().event.unwrap() {
            started = Some(event);
        }
    }
    *started.unwrap()
}

/// The tokens of what comes after `after_seq`, and whether it came to its end.
async fn rest(mut stream: Streaming<ResumeResponse>, after_seq: u64) -> (Vec<u32>, bool) {
    let (mut tokens, mut finished, mut seq) = (Vec::new(), false, after_seq);
    while let Some(response) = soon("an event", stream.message()).await.unwrap() {
        seq += 1;
        assert_eq!(response.seq, seq);
        match response.event.unwrap() {
            ResumeEvent::Delta(delta) => tokens.extend(delta.token_ids),
            ResumeEvent::Finished(_) => finished = true,
            _ => {}
        }
    }
    (tokens, finished)
}

fn of(started: &Started, after_seq: u64) -> ResumeRequest {
    ResumeRequest { stream_id: started.stream_id.clone().unwrap(), after_seq: Some(after_seq) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_resumable_stream_that_is_dropped_goes_on_and_is_read_on() {
    let server = server(StreamArgs::default()).await;
    let mut client = server.generation().await;
    let prompt = ids(1, 20);
    let started = begun(&mut client, resumable(&prompt, 200), 4).await;
    until("all is generated, though nobody reads", || server.engine.telemetry().generated_tokens() == 200).await;
    // Three deltas of a token each were read, and can be read again.
    let (tokens, finished) = rest(client.resume(of(&started, 4)).await.unwrap().into_inner(), 4).await;
    assert!(finished);
    assert_eq!(tokens, expected(&prompt, 200)[200 - tokens.len()..]);
    assert!(tokens.len() >= 150, "{}", tokens.len());
    let (again, _) = rest(client.resume(of(&started, 0)).await.unwrap().into_inner(), 0).await;
    assert_eq!(again, expected(&prompt, 200));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_streams_that_are_dropped_are_cancelled_and_have_no_id() {
    let server = server(StreamArgs::default()).await;
    let mut client = server.generation().await;
    let started = begun(&mut client, request(&ids(1, 20), 900), 3).await;
    assert_eq!(started.stream_id, None);
    server.idle().await;
    let nobody = ResumeRequest { stream_id: "nobody".into(), after_seq: None };
    assert_eq!(client.resume(nobody).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ring_that_has_moved_on_says_so() {
    let server = server(StreamArgs { resume_ring_events: 8, ..StreamArgs::default() }).await;
    let mut client = server.generation().await;
    let started = begun(&mut client, resumable(&ids(2, 9), 100), 2).await;
    until("all is generated", || server.engine.telemetry().generated_tokens() == 100).await;
    server.idle().await;
    let lost = client.resume(of(&started, 2)).await.unwrap_err();
    assert_eq!(lost.code(), Code::DataLoss);
    assert_eq!(lost.get_details_error_info().unwrap().reason, "REPLAY_GONE");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_nobody_comes_back_to_is_cancelled() {
    let streams = StreamArgs { resume_ttl: std::time::Duration::ZERO, ..StreamArgs::default() };
    let server = server(streams).await;
    let mut client = server.generation().await;
    let started = begun(&mut client, resumable(&ids(2, 9), 900), 2).await;
    let gone = async {
        while client.resume(of(&started, 0)).await.is_ok() {
            tokio::task::yield_now().await;
        }
    };
    soon("the stream is forgotten", gone).await;
    server.idle().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_resumes_takes_over_from_who_reads() {
    let (server, gate) = Server::hung(config(), 3).await;
    let mut client = server.generation().await;
    let prompt = ids(4, 12);
    let mut first = client.generate_stream(resumable(&prompt, 30)).await.unwrap().into_inner();
    let Event::Started(started) = soon("started", first.message()).await.unwrap().unwrap().event.unwrap() else {
        panic!("started comes first")
    };
    let second = client.resume(of(&started, 0)).await.unwrap().into_inner();
    let taken_over = async {
        loop {
            match first.message().await {
                Ok(event) => assert!(event.is_some(), "it does not end as if all had come"),
                Err(status) => break status,
            }
        }
    };
    assert_eq!(soon("the first reader's end", taken_over).await.code(), Code::Aborted);
    gate.open();
    assert_eq!(rest(second, 0).await, (expected(&prompt, 30), true));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retry_with_the_same_key_is_the_request_under_way() {
    let (server, gate) = Server::hung(config(), 3).await;
    let mut client = server.generation().await;
    let prompt = ids(5, 12);
    let keyed = |prompt: &[u32]| {
        let mut request = request(prompt, 30);
        request.options.as_mut().unwrap().idempotency_key = Some("once".into());
        request
    };
    let first = client.generate_stream(keyed(&prompt)).await.unwrap().into_inner();
    let second = client.generate_stream(keyed(&prompt)).await.unwrap().into_inner();
    assert_eq!(server.engine.num_live(), 1);
    let other = client.generate_stream(keyed(&ids(6, 12))).await.unwrap_err();
    assert_eq!(other.code(), Code::InvalidArgument);
    let details = other.get_error_details();
    assert_eq!(details.bad_request().unwrap().field_violations[0].field, "options.idempotency_key");
    gate.open();
    assert_eq!(read(second).await.token_ids(), expected(&prompt, 30));
    assert_eq!(read(first).await.error.unwrap().code(), Code::Aborted);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn resumable_streams_are_bounded_in_number_and_old_ones_make_room() {
    let gate = Arc::new(Gate::default());
    let held = gate.clone();
    let factory = fakes(&config(), move |_| FakeOptions {
        mishap: Some((3, Mishap::Hang(held.clone()))),
        ..FakeOptions::default()
    });
    let streams = StreamArgs { max_resumable_streams: 2, ..StreamArgs::default() };
    let options = ServeOptions { streams, ..ServeOptions::default() };
    let server = Server::with(info(), ModelText::default(), config(), factory, options).await;
    let mut client = server.generation().await;
    let mut streams = Vec::new();
    for k in 0..2 {
        streams.push(client.generate_stream(resumable(&ids(k, 9), 5)).await.unwrap().into_inner());
    }
    let refused = client.generate_stream(resumable(&ids(7, 9), 5)).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert_eq!(server.engine.telemetry().refused(ErrorCode::ResourceExhausted), 1);
    gate.open();
    for stream in streams {
        assert_eq!(read(stream).await.token_ids().len(), 5);
    }
    let room = async {
        while client.generate_stream(resumable(&ids(7, 9), 5)).await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    soon("an ended stream that nobody reads makes room", room).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_says_what_is_in_force_first_and_proves_itself_last() {
    let server = server(StreamArgs::default()).await;
    let prompt = ids(8, 33);
    let mut asked = request(&prompt, 12);
    let options = asked.options.as_mut().unwrap();
    options.slow_reader = Some(SlowReader::Coalesce.into());
    options.priority = Some(3);
    options.sampling.as_mut().unwrap().seed = Some(77);
    let told = read(server.generation().await.generate_stream(asked).await.unwrap().into_inner()).await;
    let started = told.started.clone().unwrap();
    assert_eq!((started.slow_reader(), started.priority), (SlowReader::Coalesce, Some(3)));
    assert_eq!(started.heartbeat_interval_ms, Some(5000));
    let tokens = told.token_ids();
    let finished = told.finished.unwrap();
    let receipt = finished.receipt.unwrap();
    let hash = |ids: &[u32]| {
        let hash = ids.iter().fold(Sha256::new(), |hash, id| hash.chain_update(id.to_le_bytes())).finalize();
        hash.iter().map(|byte| format!("{byte:02x}")).collect::<String>()
    };
    assert_eq!((receipt.seed, receipt.weights_hash.as_str(), receipt.model.as_str()), (77, "f00d", "fake"));
    assert_eq!((receipt.prompt_hash, receipt.output_hash), (hash(&prompt), hash(&tokens)));
    assert_eq!(receipt.parameters, started.effective);
    let timings = finished.timings.unwrap();
    assert!(timings.queue_ms > 0.0 && timings.prefill_ms >= 0.0 && timings.decode_ms > 0.0, "{timings:?}");
    assert!(timings.total_ms >= timings.queue_ms + timings.prefill_ms + timings.decode_ms, "{timings:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_answered_at_once_is_told_in_full_too() {
    let server = server(StreamArgs::default()).await;
    let streamed =
        read(server.generation().await.generate_stream(request(&ids(8, 33), 12)).await.unwrap().into_inner()).await;
    let GenerateStreamRequest { prompt, options } = request(&ids(8, 33), 12);
    let mut options = options.unwrap();
    options.priority = Some(3);
    options.sampling.as_mut().unwrap().n = Some(2);
    let asked = GenerateRequest { prompt, options: Some(options) };
    let whole = server.generation().await.generate(asked).await.unwrap().into_inner();
    let started = whole.started.unwrap();
    assert_eq!((started.slow_reader(), started.priority), (SlowReader::Pause, Some(3)));
    assert_eq!((started.heartbeat_interval_ms, started.stream_id), (Some(0), None), "there is no stream");
    let proof = streamed.finished.unwrap().receipt.unwrap();
    let ends = std::iter::once(whole.finished).chain(whole.alternatives.into_iter().map(|other| other.finished));
    let mut receipts = 0;
    for end in ends.map(Option::unwrap) {
        let receipt = end.receipt.unwrap();
        assert_eq!(receipt.parameters, started.effective);
        assert_eq!((receipt.prompt_hash, receipt.output_hash), (proof.prompt_hash.clone(), proof.output_hash.clone()));
        assert!(end.timings.unwrap().total_ms > 0.0);
        receipts += 1;
    }
    assert_eq!(receipts, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_waits_or_prefills_says_how_far_it_is() {
    let config = EngineConfig { max_num_seqs: 1, ..config() };
    let (server, gate) = Server::hung(config, 1).await;
    let mut client = server.generation().await;
    let mut streams = Vec::new();
    for k in 0..3 {
        // 64 tokens a step: the first hangs in the second half of its prompt.
        let mut request = request(&ids(k, 100), 3);
        request.options.as_mut().unwrap().heartbeat_interval_ms = Some(100);
        streams.push(client.generate_stream(request).await.unwrap().into_inner());
        until("the engine has it", || server.engine.num_live() as u32 == k + 1).await;
    }
    let mut stages = Vec::new();
    for (k, stream) in streams.iter_mut().enumerate() {
        let stage = async {
            loop {
                match stream.message().await.unwrap().unwrap().event.unwrap() {
                    Event::Progress(progress) => match progress.stage.unwrap() {
                        // Until the first step is through.
                        Stage::Prefill(prefill) if prefill.done_tokens == 0 => {}
                        // Until the engine has looked at it.
                        Stage::Queued(_) if k == 0 => {}
                        stage => break stage,
                    },
                    Event::Started(_) => {}
                    other => panic!("{other:?}"),
                }
            }
        };
        stages.push(soon("a heartbeat", stage).await);
    }
    let Stage::Prefill(prefill) = &stages[0] else { panic!("{stages:?}") };
    assert_eq!((prefill.done_tokens, prefill.total_tokens, prefill.cached_tokens), (64, 100, 0));
    for (k, stage) in stages[1..].iter().enumerate() {
        let Stage::Queued(queued) = stage else { panic!("{stages:?}") };
        assert_eq!(queued.position as usize, k);
    }
    gate.open();
    for (k, mut stream) in (0..).zip(streams) {
        let mut tokens = Vec::new();
        while let Some(response) = soon("an event", stream.message()).await.unwrap() {
            if let Event::Delta(delta) = response.event.unwrap() {
                tokens.extend(delta.token_ids);
            }
        }
        assert_eq!(tokens, expected(&ids(k, 100), 3));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heartbeats_that_would_do_nothing_else_are_refused() {
    let server = server(StreamArgs::default()).await;
    let mut client = server.generation().await;
    for (ms, is_fine) in [(0, true), (1, false), (99, false), (100, true), (3_600_000, true), (3_600_001, false)] {
        let mut request = request(&ids(1, 5), 2);
        request.options.as_mut().unwrap().heartbeat_interval_ms = Some(ms);
        match client.generate_stream(request).await {
            Ok(stream) => assert!(is_fine && read(stream.into_inner()).await.finished.is_some(), "{ms}"),
            Err(refused) => {
                let field = refused.get_error_details().bad_request().unwrap().field_violations[0].field.clone();
                assert_eq!((field.as_str(), is_fine), ("options.heartbeat_interval_ms", false), "{ms}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_for_streams_is_refused_elsewhere() {
    let server = server(StreamArgs::default()).await;
    let mut options = super::options(5);
    options.resumable = Some(true);
    let request = candlewick::proto::candlewick::v1::GenerateRequest {
        prompt: super::prompt_of(&ids(1, 5)),
        options: Some(options),
    };
    let refused = server.generation().await.generate(request).await.unwrap_err();
    assert_eq!(refused.get_error_details().bad_request().unwrap().field_violations[0].field, "options.resumable");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_resumable_stream_goes_on_without_a_reader_that_stands_still() {
    let config = EngineConfig { stall_timeout: Duration::from_secs(2), ..config() };
    let server = Server::start(config.clone(), fakes(&config, |_| FakeOptions::default())).await;
    let prompt = ids(1, 9);
    let mut narrow = GenerationClient::new(server.channel_of(512).await);
    let mut stuck = narrow.generate_stream(resumable(&prompt, 900)).await.unwrap().into_inner();
    let first = soon("its beginning", stuck.message()).await.unwrap().unwrap();
    let Some(Event::Started(started)) = first.event else { panic!("{first:?}") };
    // Were its reader waited for, it would have ended with an error, or hold its place.
    until("it has ended", || server.engine.num_live() == 0).await;
    let resume = ResumeRequest { stream_id: started.stream_id.unwrap(), after_seq: Some(1) };
    let resumed = server.generation().await.resume(resume).await.unwrap();
    assert_eq!(rest(resumed.into_inner(), 1).await, (expected(&prompt, 900), true));
}
