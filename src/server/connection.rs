//! One connection, encrypted or not: HTTP/1.1 or HTTP/2 by its first bytes, with every buffer bounded.

use std::time::Duration;

use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::conn::auto::Builder,
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncWrite, BufReader},
    net::TcpStream,
    time::timeout,
};

use super::{
    closing::Closing,
    control_frames::Counted,
    patience::Patient,
    peer::FromPeer,
    tls::Tls,
    unread::{Patience, Streams, unless_stuck},
};

/// Calls that one connection may have under way; more wait at the client, as HTTP/2 has it. A router holds one connection
/// for all of its clients.
const MAX_STREAMS: u32 = 4096;
/// Bytes of a response that wait for a client's window. Small, so that a client that does not read is soon felt: its
/// stream is not polled any more, and its sequence leaves the batch.
const SEND_BUFFER_BYTES: usize = 16 << 10;
/// Bytes of requests that a client may send ahead, a call and a connection.
const RECEIVE_WINDOW_BYTES: (u32, u32) = (256 << 10, 1 << 20);
/// Calls that a client may open and reset before they were looked at; more look like an attack (CVE-2023-44487), but a
/// router that cancels a crowd at once is none.
const MAX_RESETS: usize = 1024;
/// A client whose machine vanished is found out by pings. Clients may ping too, idle or not, but not flood ([`Counted`]).
const PING: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(20));
/// How long a client may take to say its first word, and each HTTP/1 request's headers.
const FIRST_WORD: Duration = Duration::from_secs(20);
const HTTP1_BUFFER_BYTES: usize = 32 << 10;
/// Bytes of a call's headers, all together (HTTP/2 counts 32 more for each). Keys, trace context and deadlines are short.
const MAX_HEADER_BYTES: u32 = 16 << 10;
/// Decrypted bytes that are read at once.
const TLS_BUFFER_BYTES: usize = 16 << 10;

/// Serves a connection to its end, which comes after the calls under way once the server is leaving. An answer of which
/// nothing is taken is given up when `patience` ends.
pub(super) async fn serve(stream: TcpStream, tls: Option<Tls>, router: FromPeer, patience: Patience, closing: Closing) {
    // Tokens are small and waited for. An error here means that the connection is gone, which shows below.
    let _gone = stream.set_nodelay(true);
    let Some(tls) = tls else {
        let first_word = async { stream.readable().await.ok() };
        if heard(first_word, &closing).await.is_some() {
            converse(stream, router, patience, closing).await;
        }
        return;
    };
    // What it says first must come in time too, once it is encrypted.
    let first_word = async {
        let encrypted = tls.accept(stream).await.inspect_err(|error| tracing::debug!(%error, "no TLS")).ok()?;
        let mut encrypted = BufReader::with_capacity(TLS_BUFFER_BYTES, encrypted);
        encrypted.fill_buf().await.ok()?;
        Some(encrypted)
    };
    if let Some(encrypted) = heard(first_word, &closing).await {
        converse(encrypted, router, patience, closing).await;
    }
}

/// What comes of a client's first word; none where it does not come in time.
async fn heard<T>(first_word: impl Future<Output = Option<T>>, closing: &Closing) -> Option<T> {
    tokio::select! {
        word = timeout(FIRST_WORD, first_word) => word.ok()?,
        () = closing.clone().leaving() => None,
    }
}

async fn converse(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    router: FromPeer,
    patience: Patience,
    closing: Closing,
) {
    let builder = builder(patience.clone());
    let connection = builder.serve_connection(TokioIo::new(Counted::new(stream)), TowerToHyperService::new(router));
    let served = async {
        tokio::pin!(connection);
        tokio::select! {
            served = connection.as_mut() => served,
            () = closing.leaving() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        }
    };
    match Patient::new(std::pin::pin!(unless_stuck(served, &patience))).await {
        Some(Ok(())) => {}
        Some(Err(error)) => tracing::debug!(error, "a connection broke"),
        None => tracing::debug!("a connection whose answer nobody took was closed"),
    }
}

fn builder(patience: Patience) -> Builder<Streams> {
    let mut builder = Builder::new(Streams { patience });
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(FIRST_WORD)
        .max_buf_size(HTTP1_BUFFER_BYTES)
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_HEADER_BYTES)
        .max_send_buf_size(SEND_BUFFER_BYTES)
        .initial_stream_window_size(RECEIVE_WINDOW_BYTES.0)
        .initial_connection_window_size(RECEIVE_WINDOW_BYTES.1)
        .max_pending_accept_reset_streams(MAX_RESETS)
        .keep_alive_interval(PING.0)
        .keep_alive_timeout(PING.1);
    builder
}
