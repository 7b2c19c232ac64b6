//! What clients of gRPC send, within bounds of memory and time.
//!
//! A message is gathered before a service sees it. While it has begun and is not whole it takes its share of the room for all
//! bodies, and it must be whole in time; a call that has but one message to send must begin with it in time as well. What a
//! client waits for on our side counts for nothing: only the time in which nothing comes does.

use std::{
    collections::HashSet,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes, HttpBody},
    extract::{Request, State},
    middleware,
};
use http_body::{Frame, SizeHint};
use prost::Message as _;
use prost_types::FileDescriptorSet;
use tokio::time::{Instant, Sleep, sleep};
use tonic::Status;

use super::{
    MAX_REQUEST_BYTES,
    status::{status, too_large},
};
use crate::{
    error::{Code, Error, Result},
    proto::FILE_DESCRIPTOR_SET,
    server::{
        access::is_open,
        bodies::{Bodies, BodyRoom},
    },
};

/// How long a client may leave a message unfinished, or its only message unsaid.
const PATIENCE: Duration = Duration::from_secs(30);
/// Bytes of the largest message where no key is asked for: the name of a service.
const OPEN_BYTES: usize = 4 << 10;
/// The flag and the length before each message.
const HEAD_BYTES: usize = 5;
/// Calls of this service are streams, and no part of our own descriptors.
const REFLECTION: &str = "/grpc.reflection.";

/// Calls in which clients say more than one thing, by their paths.
#[derive(Clone, Debug)]
struct Streaming(Arc<HashSet<String>>);

impl Streaming {
    fn new() -> Result<Self> {
        let unreadable = |error| Error::internal(format!("descriptors: {error}"));
        let set = FileDescriptorSet::decode(FILE_DESCRIPTOR_SET).map_err(unreadable)?;
        let mut paths = HashSet::new();
        for file in &set.file {
            for service in &file.service {
                let streams = service.method.iter().filter(|method| method.client_streaming());
                paths.extend(streams.map(|m| format!("/{}.{}/{}", file.package(), service.name(), m.name())));
            }
        }
        Ok(Self(paths.into()))
    }

    fn has(&self, path: &str) -> bool {
        self.0.contains(path) || path.starts_with(REFLECTION)
    }
}

/// The same services, whose requests come within bounds.
///
/// # Errors
/// `Internal` where the descriptors that were built in cannot be read.
pub(super) fn bounded(routes: Router, bodies: &Bodies) -> Result<Router> {
    let state = (bodies.clone(), Streaming::new()?);
    Ok(routes.layer(middleware::map_request_with_state(state, bound)))
}

async fn bound(State((bodies, streaming)): State<(Bodies, Streaming)>, request: Request) -> Request {
    let path = request.uri().path();
    let (most, is_only) = (if is_open(path) { OPEN_BYTES } else { MAX_REQUEST_BYTES }, !streaming.has(path));
    request.map(|body| Body::new(Inbound::new(body, bodies.begin(), most, is_only)))
}

/// A request's body.
struct Inbound {
    body: Body,
    room: BodyRoom,
    /// Bytes of a message.
    most: usize,
    /// Whether one message is all that will come.
    is_only: bool,
    message: Begun,
    /// What is left of the client's time.
    patience: Duration,
    /// Since when it is waited for, and until when.
    waiting: Option<(Instant, Pin<Box<Sleep>>)>,
}

/// A message as far as it has come.
#[derive(Default)]
struct Begun {
    head: [u8; HEAD_BYTES],
    /// Bytes of head and message that are here.
    here: usize,
    /// Of how many, once the head is whole.
    length: usize,
}

impl Begun {
    /// Takes bytes in, of this message and of others behind it; whether one became whole, and the length of the longest.
    fn hear(&mut self, mut bytes: &[u8]) -> (bool, usize) {
        let (mut was_whole, mut longest) = (false, 0);
        while let Some((&first, rest)) = bytes.split_first() {
            if let Some(byte) = self.head.get_mut(self.here) {
                *byte = first;
                self.here += 1;
                bytes = rest;
                if self.here == HEAD_BYTES {
                    let [_, a, b, c, d] = self.head;
                    let length = u32::from_be_bytes([a, b, c, d]) as usize;
                    self.length = HEAD_BYTES + length;
                    longest = longest.max(length);
                }
            } else {
                let more = bytes.len().min(self.length - self.here);
                self.here += more;
                bytes = bytes.get(more..).unwrap_or_default();
            }
            if self.here >= HEAD_BYTES && self.here == self.length {
                *self = Self::default();
                was_whole = true;
            }
        }
        (was_whole, longest)
    }
}

impl Inbound {
    fn new(body: Body, room: BodyRoom, most: usize, is_only: bool) -> Self {
        Self { body, room, most, is_only, message: Begun::default(), patience: PATIENCE, waiting: None }
    }

    fn hear(&mut self, bytes: &[u8]) -> Result<(), Status> {
        if let Some((since, _)) = self.waiting.take() {
            self.patience = self.patience.saturating_sub(since.elapsed());
        }
        let (was_whole, longest) = self.message.hear(bytes);
        if was_whole {
            self.patience = PATIENCE;
        }
        if longest > self.most {
            return Err(too_large(self.most));
        }
        self.room.resize(self.message.here).map_err(status)
    }

    /// Whether the client has taken too long.
    fn is_late(&mut self, cx: &mut Context<'_>) -> bool {
        if self.message.here == 0 && !self.is_only {
            return false;
        }
        let (_, timer) = self.waiting.get_or_insert_with(|| (Instant::now(), Box::pin(sleep(self.patience))));
        timer.as_mut().poll(cx).is_ready()
    }
}

impl HttpBody for Inbound {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = &mut *self;
        match Pin::new(&mut this.body).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                let heard = this.hear(frame.data_ref().map(|bytes| &bytes[..]).unwrap_or_default());
                Poll::Ready(Some(heard.map(|()| frame).map_err(axum::Error::new)))
            }
            Poll::Pending if this.is_late(cx) => {
                let late = Error::new(Code::DeadlineExceeded, "the message did not come in time");
                Poll::Ready(Some(Err(axum::Error::new(status(late)))))
            }
            other => other,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use futures::{FutureExt, StreamExt};
    use tokio::{sync::mpsc, time::advance};
    use tokio_stream::wrappers::ReceiverStream;
    use tonic::Code as GrpcCode;
    use tonic_types::StatusExt;

    use super::*;

    type Heard = Option<Result<Bytes, axum::Error>>;

    /// A body, and who sends it.
    fn inbound(bodies: &Bodies, most: usize, is_only: bool) -> (mpsc::Sender<Bytes>, axum::body::BodyDataStream) {
        let (send, sent) = mpsc::channel(64);
        let body = Body::from_stream(ReceiverStream::new(sent).map(Ok::<_, axum::Error>));
        (send, Body::new(Inbound::new(body, bodies.begin(), most, is_only)).into_data_stream())
    }

    fn message(length: u32) -> Vec<u8> {
        [&[0][..], &length.to_be_bytes(), &vec![7; length as usize]].concat()
    }

    fn code(heard: Heard) -> GrpcCode {
        Status::from_error(Box::new(heard.unwrap().unwrap_err())).code()
    }

    /// KiB that are free.
    fn free(bodies: &Bodies) -> usize {
        (0..).take_while(|kib| bodies.begin().resize(kib * 1024).is_ok()).last().unwrap()
    }

    #[test]
    fn messages_are_told_apart_however_they_are_cut() {
        let all = [message(0), message(3), message(300), message(1)].concat();
        for (size, ends) in [(1, 4), (2, 4), (5, 4), (7, 4), (300, 2), (1000, 1)] {
            let mut begun = Begun::default();
            let pieces_with_ends = all.chunks(size).filter(|bytes| begun.hear(bytes).0).count();
            assert_eq!((begun.here, pieces_with_ends), (0, ends), "{size}");
        }
        let mut begun = Begun::default();
        assert_eq!((begun.hear(&all), begun.hear(&message(9)[..8])), ((true, 300), (false, 9)));
        assert_eq!((begun.here, begun.length), (8, 14));
    }

    #[tokio::test]
    async fn what_has_come_of_a_message_takes_room_until_it_is_whole() {
        let bodies = Bodies::of(64);
        let (send, mut body) = inbound(&bodies, usize::MAX, false);
        let bytes = message(20_000);
        for (part, left) in [(&bytes[..10_000], 54), (&bytes[10_000..19_000], 45), (&bytes[19_000..], 64)] {
            send.send(Bytes::copy_from_slice(part)).await.unwrap();
            body.next().await.unwrap().unwrap();
            assert_eq!(free(&bodies), left);
        }
        // Another takes it all, and this one has to go.
        let mut other = bodies.begin();
        other.resize(64 << 10).unwrap();
        send.send(Bytes::copy_from_slice(&bytes[..10])).await.unwrap();
        assert_eq!(code(body.next().await), GrpcCode::ResourceExhausted);
        drop((other, body));
        assert_eq!(free(&bodies), 64);
    }

    #[tokio::test]
    async fn a_message_that_is_too_large_is_refused_by_its_head() {
        // As far as its head, and whole.
        for come in [HEAD_BYTES, HEAD_BYTES + 101] {
            let (send, mut body) = inbound(&Bodies::of(64), 100, true);
            send.send(Bytes::copy_from_slice(&message(101)[..come])).await.unwrap();
            let refused = Status::from_error(Box::new(body.next().await.unwrap().unwrap_err()));
            assert_eq!(refused.code(), GrpcCode::OutOfRange);
            assert_eq!(refused.get_details_error_info().unwrap().reason, "MESSAGE_TOO_LARGE");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_message_that_has_begun_is_waited_for_so_long_and_an_only_one_before_it_has() {
        let bodies = Bodies::of(64);
        for is_only in [true, false] {
            let (_send, mut body) = inbound(&bodies, usize::MAX, is_only);
            assert!(body.next().now_or_never().is_none());
            advance(PATIENCE).await;
            let heard = body.next().now_or_never();
            assert_eq!(heard.map(code), is_only.then_some(GrpcCode::DeadlineExceeded), "{is_only}");
        }
        let (send, mut body) = inbound(&bodies, usize::MAX, false);
        let bytes = message(10);
        for byte in &bytes[..3] {
            send.send(Bytes::copy_from_slice(&[*byte])).await.unwrap();
            body.next().await.unwrap().unwrap();
            // While nobody reads, nobody is late.
            advance(10 * PATIENCE).await;
            assert!(body.next().now_or_never().is_none());
            advance(PATIENCE / 4).await;
        }
        assert!(body.next().now_or_never().is_none());
        advance(PATIENCE / 4).await;
        assert_eq!(
            body.next().now_or_never().map(code),
            Some(GrpcCode::DeadlineExceeded),
            "bytes now and then do not help"
        );
    }
}
