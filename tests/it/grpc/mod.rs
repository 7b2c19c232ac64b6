//! The server over a real socket, with real clients, on an engine without arithmetic.

mod admin;
mod drain;
mod embeddings;
mod faces;
mod malformed;
mod metrics;
pub(crate) mod models;
mod oip;
mod onlookers;
mod quotes;
mod resume;
mod router;
mod sessions;
mod streams;
pub(crate) mod text;
pub(crate) mod tools;
mod trouble;
mod vllm;
mod web;

use std::{future::Future, net::SocketAddr, sync::Arc, time::Duration};

use candlewick::{
    config::EngineConfig,
    engine::{
        Engine, ExecutorFactory, ModelInfo, ModelText,
        fake::{FakeExecutor, FakeOptions, Gate, Mishap},
    },
    error::Result,
    ids::TokenId,
    proto::candlewick::v1::{
        Delta, Finished, GenerateStreamRequest, GenerateStreamResponse, Prompt, RequestOptions, SamplingParams,
        Started, TokenIds, generate_stream_response::Event, generation_client::GenerationClient, prompt,
    },
    server::{ServeOptions, serve},
    telemetry::Telemetry,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::oneshot,
    task::JoinHandle,
};
use tonic::{Status, Streaming, transport::Channel};

pub(crate) use crate::engine::{VOCAB_SIZE, config, fakes, info, until};

/// A server that runs.
pub(crate) struct Server {
    pub(crate) engine: Engine,
    pub(crate) address: SocketAddr,
    stop: oneshot::Sender<()>,
    served: JoinHandle<Result<()>>,
}

impl Server {
    /// On fakes that behave.
    pub(crate) async fn well() -> Self {
        Self::start(config(), fakes(&config(), |_| FakeOptions::default())).await
    }

    /// On a fake that hangs in step `step` of its first life until the gate is opened.
    pub(crate) async fn hung(config: EngineConfig, step: u64) -> (Self, Arc<Gate>) {
        let gate = Arc::new(Gate::default());
        let held = gate.clone();
        let options = move |life| FakeOptions {
            mishap: (life == 0).then(|| (step, Mishap::Hang(held.clone()))),
            ..FakeOptions::default()
        };
        let factory = fakes(&config, options);
        (Self::start(config, factory).await, gate)
    }

    pub(crate) async fn start(config: EngineConfig, factory: ExecutorFactory) -> Self {
        let options = ServeOptions { drain_grace: Duration::ZERO, ..ServeOptions::default() };
        Self::with(info(), ModelText::default(), config, factory, options).await
    }

    pub(crate) async fn with(
        info: ModelInfo,
        text: ModelText,
        config: EngineConfig,
        factory: ExecutorFactory,
        options: ServeOptions,
    ) -> Self {
        let telemetry = Arc::new(Telemetry::new(&info.name));
        let engine = Engine::start(info, text, config, telemetry, factory).await.unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let shutdown = async {
            let _ = stopped.await;
        };
        let served = tokio::spawn(serve(engine.clone(), listener, options, shutdown));
        Self { engine, address, stop, served }
    }

    /// A connection of its own.
    pub(crate) async fn channel(&self) -> Channel {
        let endpoint = Channel::from_shared(format!("http://{}", self.address)).unwrap();
        endpoint.connect().await.unwrap()
    }

    /// The same of a client that lets a stream send so many bytes before it reads them.
    pub(crate) async fn channel_of(&self, window_bytes: u32) -> Channel {
        let endpoint = Channel::from_shared(format!("http://{}", self.address)).unwrap();
        endpoint.initial_stream_window_size(window_bytes).connect().await.unwrap()
    }

    pub(crate) async fn generation(&self) -> GenerationClient<Channel> {
        GenerationClient::new(self.channel().await)
    }

    /// Begins to shut down; the handle ends when the server has.
    pub(crate) fn shut_down(self) -> JoinHandle<Result<()>> {
        self.stop.send(()).unwrap();
        self.served
    }

    /// Waits until no request holds anything.
    pub(crate) async fn idle(&self) {
        let telemetry = self.engine.telemetry();
        until("nothing runs, waits or holds blocks", || {
            let state = telemetry.state();
            state.num_running == 0 && state.num_waiting == 0 && state.kv_cache_usage == 0.0
        })
        .await;
    }

    /// A page over plain HTTP/1.1: its head and its body.
    pub(crate) async fn get(&self, path: &str) -> (String, String) {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.to_ascii_lowercase(), body.to_owned())
    }
}

/// Waits for what must come, for ten seconds at the most.
pub(crate) async fn soon<T>(what: &str, wait: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), wait).await.unwrap_or_else(|_| panic!("never happened: {what}"))
}

/// A prompt that differs from `seed` to `seed`.
pub(crate) fn ids(seed: u32, length: u32) -> Vec<u32> {
    (0..length).map(|k| (seed.wrapping_mul(7919) + k * 31) % VOCAB_SIZE).collect()
}

/// What a fake makes of a prompt.
pub(crate) fn expected(prompt: &[u32], n: usize) -> Vec<u32> {
    let prompt: Vec<_> = prompt.iter().copied().map(TokenId).collect();
    FakeExecutor::expected(VOCAB_SIZE, &prompt, n).into_iter().map(|id| id.0).collect()
}

pub(crate) fn prompt_of(ids: &[u32]) -> Option<Prompt> {
    Some(Prompt { prompt: Some(prompt::Prompt::TokenIds(TokenIds { ids: ids.to_vec() })) })
}

pub(crate) fn options(max_tokens: u32) -> RequestOptions {
    let sampling = SamplingParams { max_tokens: Some(max_tokens), ..SamplingParams::default() };
    RequestOptions { sampling: Some(sampling), ..RequestOptions::default() }
}

pub(crate) fn request(ids: &[u32], max_tokens: u32) -> GenerateStreamRequest {
    GenerateStreamRequest { prompt: prompt_of(ids), options: Some(options(max_tokens)) }
}

/// A stream read to its end.
#[derive(Debug, Default)]
pub(crate) struct Read {
    pub(crate) started: Option<Started>,
    pub(crate) deltas: Vec<Delta>,
    pub(crate) finished: Option<Finished>,
    pub(crate) error: Option<Status>,
    pub(crate) heartbeats: usize,
}

impl Read {
    pub(crate) fn token_ids(&self) -> Vec<u32> {
        self.deltas.iter().flat_map(|delta| delta.token_ids.iter().copied()).collect()
    }
}

/// Reads a stream and checks that its events are numbered from 1 and in order.
pub(crate) async fn read(mut stream: Streaming<GenerateStreamResponse>) -> Read {
    let mut read = Read::default();
    let mut next_seq = 1;
    loop {
        match soon("an event", stream.message()).await {
            Ok(Some(response)) => {
                assert_eq!(response.seq, next_seq);
                next_seq += 1;
                assert!(read.finished.is_none(), "nothing comes after the end");
                match response.event.unwrap() {
                    Event::Started(started) => assert!(read.started.replace(*started).is_none() && next_seq == 2),
                    Event::Delta(delta) => read.deltas.push(delta),
                    Event::Progress(_) => read.heartbeats += 1,
                    Event::PromptLogprobs(_) => panic!("nobody asked for these"),
                    Event::Finished(finished) => read.finished = Some(*finished),
                }
            }
            Ok(None) => return read,
            Err(status) => {
                read.error = Some(status);
                return read;
            }
        }
    }
}
