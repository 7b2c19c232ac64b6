//! A connection that counts what its client sends for its own sake: PING and SETTINGS of HTTP/2 (RFC 9113, 4.1), each of
//! which the server answers. Clients ping while they are idle, and may; one that floods is closed, for the time that
//! answering takes is others'.
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
const SETTINGS: u8 = 4;
const PING: u8 = 6;
/// Flag of an answer to one of ours.
const ACK: u8 = 1;

/// See the [module](self).
pub(super) struct Counted<S> {
    stream: S,
    frames: Frames,
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

impl Frames {
    /// How many frames that ask for an answer begin in these bytes.
    fn pass(&mut self, mut bytes: &[u8]) -> u64 {
        let mut asking = 0;
        while let Some((first, rest)) = bytes.split_first() {
            *self = match *self {
                Self::None => return asking,
                Self::Preface(at) => {
                    bytes = rest;
                    match PREFACE.get(at) == Some(first) {
                        true if at + 1 == PREFACE.len() => Self::Header([0; HEADER_BYTES], 0),
                        true => Self::Preface(at + 1),
                        false => Self::None,
                    }
                }
                Self::Header(mut header, have) => {
                    bytes = rest;
                    if let Some(place) = header.get_mut(have) {
                        *place = *first;
                    }
                    if have + 1 < HEADER_BYTES {
                        Self::Header(header, have + 1)
                    } else {
                        let [a, b, c, kind, flags, ..] = header;
                        asking += u64::from((kind == PING || kind == SETTINGS) && flags & ACK == 0);
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
        asking
    }

    fn payload(left: usize) -> Self {
        if left == 0 { Self::Header([0; HEADER_BYTES], 0) } else { Self::Payload(left) }
    }
}

impl<S> Counted<S> {
    pub(super) fn new(stream: S) -> Self {
        Self { stream, frames: Frames::Preface(0), bucket: Bucket::full(RATE, Instant::now()) }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Counted<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
        let asking = self.frames.pass(buffer.filled().get(before..).unwrap_or_default());
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
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, pieces)
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
            let counted: u64 = all.chunks(size).map(|bytes| frames.pass(bytes)).sum();
            assert_eq!((counted, frames), (3, Frames::Header([0; HEADER_BYTES], 0)), "{size}");
        }
    }

    #[test]
    fn what_is_not_http_2_is_let_be() {
        let mut frames = Frames::Preface(0);
        assert_eq!(frames.pass(b"PRI * HTTP/1.1\r\nhost: x\r\n\r\n"), 0);
        assert_eq!(frames.pass(&frame(PING, 0, &[0; 8]).repeat(5000)), 0);
        assert_eq!(frames, Frames::None);
    }
}
