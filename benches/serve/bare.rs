//! The same wire without a server of ours: what tonic, hyper, h2 and the kernel take of a streamed token.
//!
//! A thread gives each stream a ready message a step, through a bounded channel; tonic's own server does the rest.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use candlewick::proto::candlewick::v1::{
    Delta, GenerateRequest, GenerateResponse, GenerateStreamRequest, GenerateStreamResponse, QuoteRequest,
    QuoteResponse, ResumeRequest, ResumeResponse,
    generate_stream_response::Event,
    generation_server::{Generation, GenerationServer},
};
use tokio::{net::TcpListener, sync::mpsc};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, transport::Server};

use super::Outcome;

/// Messages that wait for a stream's reader, at the most.
const WAITING: usize = 16;

type Told = Result<GenerateStreamResponse, Status>;

/// See the [module](self).
#[derive(Clone, Default)]
pub(super) struct Bare {
    streams: Arc<Mutex<Vec<mpsc::Sender<Told>>>>,
    told: Arc<AtomicU64>,
}

impl Bare {
    /// A server in this process, and its address.
    pub(super) async fn start(step: Duration) -> Outcome<(Self, String)> {
        let bare = Self::default();
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?.to_string();
        let server = Server::builder().tcp_nodelay(true).add_service(GenerationServer::new(bare.clone()));
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        let teller = bare.clone();
        // By the name of the thread that is not counted.
        thread::Builder::new().name("engine".into()).spawn(move || teller.tell(step))?;
        Ok((bare, address))
    }

    /// Messages that went to streams.
    pub(super) fn told(&self) -> u64 {
        self.told.load(Ordering::Relaxed)
    }

    /// Streams under way.
    pub(super) fn live(&self) -> u64 {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner).len() as u64
    }

    fn tell(&self, step: Duration) {
        let mut next = Instant::now();
        for seq in 1.. {
            thread::sleep(next.saturating_duration_since(Instant::now()));
            next = next.max(Instant::now()) + step;
            self.streams.lock().unwrap_or_else(PoisonError::into_inner).retain(|stream| {
                let delta = Delta { text: " word".into(), token_ids: vec![300], ..Delta::default() };
                let response = GenerateStreamResponse { seq, event: Some(Event::Delta(delta)) };
                match stream.try_send(Ok(response)) {
                    Ok(()) => self.told.fetch_add(1, Ordering::Relaxed),
                    Err(mpsc::error::TrySendError::Full(_)) => 0,
                    Err(mpsc::error::TrySendError::Closed(_)) => return false,
                };
                true
            });
        }
    }
}

#[tonic::async_trait]
impl Generation for Bare {
    async fn generate(&self, _: Request<GenerateRequest>) -> Result<Response<GenerateResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    type GenerateStreamStream = ReceiverStream<Told>;

    async fn generate_stream(
        &self,
        _: Request<GenerateStreamRequest>,
    ) -> Result<Response<Self::GenerateStreamStream>, Status> {
        let (tell, told) = mpsc::channel(WAITING);
        self.streams.lock().unwrap_or_else(PoisonError::into_inner).push(tell);
        Ok(Response::new(ReceiverStream::new(told)))
    }

    type ResumeStream = ReceiverStream<Result<ResumeResponse, Status>>;

    async fn resume(&self, _: Request<ResumeRequest>) -> Result<Response<Self::ResumeStream>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn quote(&self, _: Request<QuoteRequest>) -> Result<Response<QuoteResponse>, Status> {
        Err(Status::unimplemented(""))
    }
}
