//! The faces: gRPC, JSON over HTTP, health, reflection and metrics, on one listener, and how they go down.
//!
//! Draining goes in steps, so that nobody loses an answer: health turns `NOT_SERVING`; a moment later, when the calls that
//! crossed with the signal have arrived, new ones are refused with `UNAVAILABLE`, on old connections and new ones; when the last request has been computed, or the drain timeout has
//! passed, the listener closes and connections end once their streams have; what still streams after the timeout is cut.

pub mod access;
mod anthropic;
mod backend;
mod bodies;
mod bucket;
mod closing;
mod connection;
mod control_frames;
mod cors;
mod events;
pub mod grpc;
mod held;
mod host;
mod http;
mod lines;
mod metrics;
mod models;
mod oip;
mod ollama;
mod openai;
#[cfg(feature = "web")]
mod page;
mod patience;
mod peer;
mod refusal;
mod ring;
mod throughput;
pub mod tls;
mod trace_context;
mod turns;
mod unread;
mod vllm_engine;

use std::{sync::Arc, time::Duration};

use axum::{Router, middleware};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinSet,
    time::{Instant, sleep, sleep_until, timeout, timeout_at},
};

pub use self::models::ModelOptions;
use self::{
    access::{Access, Guard},
    closing::Closer,
    models::Models,
    peer::{FromPeer, Peer},
    tls::Tls,
    unread::Patience,
};
use crate::{
    config::{AllowedOrigins, StreamArgs},
    engine::load::Started,
    error::Result,
};

/// Connections at once; more wait to be accepted.
const MAX_CONNECTIONS: usize = 4096;
/// Pause where no connection can be accepted because the process is out of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Long enough for a call to cross a data centre and be decoded, too short for a client to see health turn and call.
const DRAIN_GRACE: Duration = Duration::from_millis(25);
/// What connections get to send their last bytes, once nothing more will be added to them.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// How to serve.
#[derive(Debug)]
pub struct ServeOptions {
    /// How long calls are still taken after health has turned: those that were on their way when shutdown began.
    pub drain_grace: Duration,
    /// How long streams under way may go on once shutdown begins.
    pub drain_timeout: Duration,
    /// Sites whose pages may call from a browser.
    pub allowed_origins: AllowedOrigins,
    /// Who may call.
    pub access: Access,
    /// With which certificate; none for plain text.
    pub tls: Option<Tls>,
    /// Bounds of streams that outlive their connection, and of sessions.
    pub streams: StreamArgs,
    /// Models beside the first.
    pub models: ModelOptions,
}

impl Default for ServeOptions {
    fn default() -> Self {
        Self {
            drain_grace: DRAIN_GRACE,
            drain_timeout: Duration::from_secs(30),
            allowed_origins: AllowedOrigins::default(),
            access: Access::default(),
            tls: None,
            streams: StreamArgs::default(),
            models: ModelOptions::default(),
        }
    }
}

/// Serves models on `listener` until `shutdown` resolves, then drains. Requests that name no model go to `first`.
///
/// # Errors
/// `Internal` where the services cannot be set up. Once it serves, it ends without an error.
pub async fn serve(
    first: impl Into<Started>,
    listener: TcpListener,
    options: ServeOptions,
    shutdown: impl Future<Output = ()>,
) -> Result<()> {
    let closer = Closer::new();
    let going = (closer.watch(), options.access.clone());
    let first = first.into();
    // Before the engine ends a sequence that is not read: what can be read on elsewhere goes on without this reader.
    let patience = first.engine.config().stall_timeout * 3 / 4;
    let models = Models::new(first, options.models, going, options.streams);
    let queues = models.clone();
    let patience = Patience::new(patience, move |within| queues.is_crowded(within));
    let guarded = grpc::routes(&models, options.drain_grace)?.merge(http::routes(&models, &options.allowed_origins));
    let pages = metrics::routes(models.clone(), options.access.clone());
    let guard = Guard { access: options.access, origins: options.allowed_origins.clone() };
    let guard = middleware::from_fn_with_state(guard, access::guard);
    let guarded = held::until_sent(guarded).fallback(metrics::unknown).layer(guard);
    // Pages that say nothing of anybody's requests.
    let router = guarded.merge(pages).merge(root());
    let router = cors::open(router, &options.allowed_origins);
    let router = unread::noted(trace_context::carry(router, &models));
    let (tls, tasks, places) = (options.tls, JoinSet::new(), places());
    let mut connections = Connections { router, tls, patience, closer, tasks, places };

    connections.accept_until(&listener, shutdown).await;
    models.announce_drain();
    if !options.drain_grace.is_zero() {
        connections.accept_until(&listener, sleep(options.drain_grace)).await;
    }
    models.begin_drain();
    tracing::info!("draining: streams under way go on, new requests are refused");
    let deadline = Instant::now() + options.drain_timeout;
    let drained = async {
        tokio::select! {
            () = models.drained() => tracing::info!("every request has ended"),
            () = sleep_until(deadline) => tracing::warn!("the drain timeout passed: what still streams is cut off"),
        }
    };
    connections.accept_until(&listener, drained).await;
    drop(listener);
    connections.close(deadline).await;
    Ok(())
}

/// What is at `/`: the chat page for browsers, a line for programs.
fn root() -> Router {
    #[cfg(feature = "web")]
    let router = page::routes(metrics::LINE);
    #[cfg(not(feature = "web"))]
    let router = Router::new().route("/", axum::routing::get(metrics::LINE));
    router
}

fn places() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(MAX_CONNECTIONS))
}

/// The connections that are open, and what each is served with.
struct Connections {
    router: Router,
    tls: Option<Tls>,
    /// How long a reader may take nothing of an answer.
    patience: Patience,
    closer: Closer,
    tasks: JoinSet<()>,
    places: Arc<Semaphore>,
}

impl Connections {
    /// Accepts connections until `end` resolves.
    async fn accept_until(&mut self, listener: &TcpListener, end: impl Future<Output = ()>) {
        tokio::pin!(end);
        loop {
            tokio::select! {
                () = &mut end => return,
                // Tasks that ended are let go; their outcome is theirs.
                Some(_ended) = self.tasks.join_next() => {}
                (stream, place) = accept(listener, &self.places) => {
                    let peer = Peer(stream.peer_addr().ok().map(|address| address.ip()));
                    let (router, tls) = (FromPeer::new(self.router.clone(), peer), self.tls.clone());
                    let (closing, patience) = (self.closer.watch(), self.patience.clone());
                    self.tasks.spawn(async move {
                        connection::serve(stream, tls, router, patience, closing).await;
                        drop(place);
                    });
                }
            }
        }
    }

    /// Ends all connections: after their calls, but at `deadline` at the latest.
    async fn close(mut self, deadline: Instant) {
        self.closer.leave();
        let ended = async |tasks: &mut JoinSet<()>| while tasks.join_next().await.is_some() {};
        if timeout_at(deadline, ended(&mut self.tasks)).await.is_err() {
            self.closer.cut();
            // Clients that do not read do not hear this either: their connections are dropped.
            let _unheard = timeout(LAST_WORDS, ended(&mut self.tasks)).await;
        }
        self.tasks.shutdown().await;
    }
}

/// The next connection, and its place among those that are open.
async fn accept(listener: &TcpListener, places: &Arc<Semaphore>) -> (TcpStream, Option<OwnedSemaphorePermit>) {
    // An error would mean that the semaphore was closed, which nobody does.
    let place = places.clone().acquire_owned().await.ok();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return (stream, place),
            Err(error) => {
                tracing::warn!(%error, "no connection can be accepted");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}
