//! A connection that counts what its client sends for its own sake: PING and SETTINGS of HTTP/2 (RFC 9113, 4.1), each of
//! which the server answers. Clients ping while they are idle, and may; one that floods is closed, for the time that
//! answering takes is others'.
//!
//! Some clients measure the way with a ping for what they are sent (grpc-go, once a round trip while data come), so each
//! frame of an answer allows for one more.
//!
//! Only the headers of frames are looked at, as they pass by.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Instant,
};

use super::bucket::{Bucket, Rate};

/// What a client may send.
const RATE: Rate = Rate { burst: 1000.0, per_second: 100.0 };
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const HEADER_BYTES: usize = 9;
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
/// Flag of an answer to one of ours.
const ACK: u8 = 1;

/// See the [module](self).
pub(super) struct Counted<S> {
    stream: S,
    heard: Frames,
    said: Frames,
    bucket: Bucket,
}

/// Where in the stream of frames the next byte is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Frames {
    Preface(usize),
    Header([u8; HEADER_BYTES], usize),
    Payload(usize),
    /// Not HTTP/2.
    None,
}

/// Whether the other side has to answer a frame of this kind with these flags.
fn asks(kind: u8, flags: u8) -> bool {
    (kind == PING || kind == SETTINGS) && flags & ACK == 0
}

/// Whether it is a part of an answer.
fn answers(kind: u8, _flags: u8) -> bool {
    kind == DATA || kind == HEADERS
}

impl Frames {
    /// How many frames that `counts`, asked with their kinds and flags, begin in these bytes.
    fn pass(&mut self, mut bytes: &[u8], counts: fn(u8, u8) -> bool) -> u64 {
        let mut counted = 0;
        while let Some((first, rest)) = bytes.split_first() {
            *self = match *self {
                Self::None => return counted,
                Self::Preface(at) => {
                    bytes = rest;
                    match PREFACE.get(at) == Some(first) {
                        true if at + 1 == PREFACE.len() => Self::Header([0; HEADER_BYTES], 0),
                        true => Self::Preface(at + 1),
                        false => Self::None,
                    }
                }
                Self::Header(mut header, have) => {
                    let here = (HEADER_BYTES - have).min(bytes.len());
                    let (part, rest) = bytes.split_at(here);
                    bytes = rest;
                    if let Some(place) = header.get_mut(have..have + here) {
                        place.copy_from_slice(part);
                    }
                    if have + here < HEADER_BYTES {
                        Self::Header(header, have + here)
                    } else {
                        let [a, b, c, kind, flags, ..] = header;
                        counted += u64::from(counts(kind, flags));
                        Self::payload(u32::from_be_bytes([0, a, b, c]) as usize)
                    }
                }
                Self::Payload(left) => {
                    let here = left.min(bytes.len());
                    bytes = bytes.get(here..).unwrap_or_default();
                    Self::payload(left - here)
                }
            };
        }
        counted
    }

    fn payload(left: usize) -> Self {
        if left == 0 { Self::Header([0; HEADER_BYTES], 0) } else { Self::Payload(left) }
    }

    /// Whether the preface of HTTP/2 has passed.
    fn has_begun(&self) -> bool {
        matches!(self, Self::Header(..) | Self::Payload(_))
    }
}

impl<S> Counted<S> {
    pub(super) fn new(stream: S) -> Self {
        // A server says frames from its first byte on.
        let (heard, said) = (Frames::Preface(0), Frames::Header([0; HEADER_BYTES], 0));
        Self { stream, heard, said, bucket: Bucket::full(RATE, Instant::now()) }
    }

    /// So many bytes of `pieces` have gone out.
    fn say<'a>(&mut self, pieces: impl Iterator<Item = &'a [u8]>, mut sent: usize) {
        if !self.heard.has_begun() {
            return;
        }
        for piece in pieces {
            let here = sent.min(piece.len());
            sent -= here;
            let answers = self.said.pass(piece.get(..here).unwrap_or_default(), answers);
            self.bucket.give(answers, RATE);
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Counted<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
        let asking = self.heard.pass(buffer.filled().get(before..).unwrap_or_default(), asks);
        if asking > 0 {
            self.bucket.take(asking);
            if self.bucket.wait(1, RATE, Instant::now()).is_some() {
                return Poll::Ready(Err(io::Error::other("the client floods the connection with pings or settings")));
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Counted<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let sent = ready!(Pin::new(&mut self.stream).poll_write(cx, bytes))?;
        self.say(std::iter::once(bytes), sent);
        Poll::Ready(Ok(sent))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let sent = ready!(Pin::new(&mut self.stream).poll_write_vectored(cx, pieces))?;
        self.say(pieces.iter().map(|piece| &**piece), sent);
        Poll::Ready(Ok(sent))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[1..], &[kind, flags, 0, 0, 0, 1], payload].concat()
    }

    #[test]
    fn frames_that_ask_are_counted_however_they_are_cut() {
        // A payload that looks like pings is none.
        let data = frame(0, 0, &frame(PING, 0, &[0; 8]).repeat(40));
        let all = [
            PREFACE.to_vec(),
            frame(SETTINGS, 0, &[]),
            frame(SETTINGS, ACK, &[]),
            data,
            frame(PING, 0, &[7; 8]),
            frame(PING, ACK, &[7; 8]),
            frame(1, 4, &[1; 300]),
            frame(PING, 0, &[7; 8]),
        ]
        .concat();
        for size in [1, 2, 7, 9, 24, 25, 100, all.len()] {
            let mut frames = Frames::Preface(0);
            let counted: u64 = all.chunks(size).map(|bytes| frames.pass(bytes, asks)).sum();
            assert_eq!((counted, frames), (3, Frames::Header([0; HEADER_BYTES], 0)), "{size}");
            let mut frames = Frames::Preface(0);
            let counted: u64 = all.chunks(size).map(|bytes| frames.pass(bytes, answers)).sum();
            assert_eq!(counted, 2, "{size}");
        }
    }

    /// Sends pings one by one, with `between` said to the client before each, until the connection is closed; how many
    /// were heard.
    async fn pings(between: &[u8], most: usize) -> usize {
        let (mut client, server) = duplex(1 << 10);
        let mut server = Counted::new(server);
        client.write_all(PREFACE).await.unwrap();
        server.read_exact(&mut [0; PREFACE.len()]).await.unwrap();
        let mut read = [0; HEADER_BYTES + 8];
        for sent in 0..most {
            let written = [server.write_all(between).await, client.write_all(&frame(PING, 0, &[0; 8])).await];
            assert!(written.iter().all(Result::is_ok));
            client.read_exact(&mut vec![0; between.len()]).await.unwrap();
            if server.read_exact(&mut read).await.is_err() {
                return sent;
            }
        }
        most
    }

    #[tokio::test(start_paused = true)]
    async fn who_pings_for_what_it_is_sent_does_not_flood() {
        assert_eq!(pings(&frame(DATA, 0, b"a token"), 5000).await, 5000);
        // Answers to its pings are not what it asked for.
        let flood = pings(&frame(PING, ACK, &[0; 8]), 5000).await;
        assert!((999..=1001).contains(&flood), "{flood}");
        // It cannot be saved up.
        let mut bucket = Bucket::full(RATE, Instant::now());
        bucket.give(5000, RATE);
        bucket.take(1001);
        assert!(bucket.wait(1, RATE, Instant::now()).is_some());
    }

    #[test]
    fn what_is_not_http_2_is_let_be() {
        let mut frames = Frames::Preface(0);
        assert_eq!(frames.pass(b"PRI * HTTP/1.1\r\nhost: x\r\n\r\n", asks), 0);
        assert_eq!(frames.pass(&frame(PING, 0, &[0; 8]).repeat(5000), asks), 0);
        assert_eq!(frames, Frames::None);
    }
}
