//! What must be held on to until an answer has gone out: a share of some room that its bytes still take. Or that nothing is which
//! others wait for.
//!
//! A handler is done once its answer is made; the bytes then wait for the client's window. Whoever made it puts what is held
//! among the answer's extensions, and one layer over all faces hands it to the bytes themselves.

use std::{
    any::Any,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use axum::{
    Router,
    body::{Body, Bytes, HttpBody},
    middleware,
    response::Response,
};
use http_body::{Frame, SizeHint};

/// What is held, among an answer's extensions. Cheap to clone; let go of with the last clone.
#[derive(Clone)]
pub(crate) struct Held {
    _what: Arc<dyn Any + Send + Sync>,
}

/// Among an answer's extensions: no place in line is held for as long as its reader takes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HoldsNoPlace;

impl Held {
    pub(crate) fn new(what: Arc<dyn Any + Send + Sync>) -> Self {
        Self { _what: what }
    }
}

/// The same routes, whose answers hold on to what they should.
pub(super) fn until_sent(router: Router) -> Router {
    router.layer(middleware::map_response(hold))
}

async fn hold(mut response: Response) -> Response {
    match response.extensions_mut().remove::<Held>() {
        Some(held) => response.map(|body| Body::new(Holding { body, held })),
        None => response,
    }
}

/// A body whose bytes hold on to something.
struct Holding {
    body: Body,
    held: Held,
}

/// Bytes of such a body.
struct HeldBytes {
    bytes: Bytes,
    _held: Held,
}

impl AsRef<[u8]> for HeldBytes {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl HttpBody for Holding {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        let hold = |bytes| Bytes::from_owner(HeldBytes { bytes, _held: self.held.clone() });
        Poll::Ready(frame.map(|frame| frame.map(|frame| frame.map_data(hold))))
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
    use futures::StreamExt;

    use super::*;

    #[tokio::test]
    async fn what_is_held_is_let_go_of_with_the_last_byte_and_not_before() {
        let room = Arc::new(());
        let mut response = Response::new(Body::from("some bytes"));
        response.extensions_mut().insert(Held::new(room.clone()));
        let answer = hold(response).await;
        assert!(answer.extensions().get::<Held>().is_none());
        assert_eq!(answer.body().size_hint().exact(), Some(10));
        let mut frames = answer.into_body().into_data_stream();
        let mut bytes = frames.next().await.unwrap().unwrap();
        assert!(frames.next().await.is_none());
        drop(frames);
        // As they wait to be sent: the body is gone.
        let rest = bytes.split_off(4);
        drop(bytes);
        assert_eq!((&rest[..], Arc::strong_count(&room)), (&b" bytes"[..], 2));
        drop(rest);
        assert_eq!(Arc::strong_count(&room), 1);
    }
}
