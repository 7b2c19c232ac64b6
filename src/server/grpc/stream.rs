//! From a request to its events, and from events to a gRPC response stream.

use futures::{StreamExt, future::ready};
use tonic::codegen::BoxStream;

use super::{Backend, FieldPaths, status::status};
use crate::{
    engine::{Event, Request},
    error::Result,
    server::events::Events,
};

/// Has the engine admit a request; what it complains of is named by the wire's paths.
///
/// # Errors
/// As [`Events::open`].
pub(crate) async fn open(backend: &Backend, request: Request, paths: &FieldPaths) -> Result<Events> {
    Events::open(backend, request).await.map_err(|error| paths.locate(error))
}

/// The response stream: `message` makes an event, with its number from 1, into what goes out for it.
pub(crate) fn respond<M: Send + 'static>(
    events: Events,
    mut message: impl FnMut(u64, Event) -> Option<M> + Send + 'static,
) -> BoxStream<M> {
    let mut seq = 0;
    Box::pin(events.filter_map(move |event| {
        seq += 1;
        ready(event.map(|event| message(seq, event)).map_err(status).transpose())
    }))
}
