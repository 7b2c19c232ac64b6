//! The trace that a call belongs to, by the headers `traceparent` and `tracestate` (gRPC metadata are headers too): what
//! the call asks of the engine becomes part of it. What a call leaves to other tasks, such as the turns of a session,
//! begins traces of its own.

use axum::{
    Router,
    extract::Request,
    middleware::{Next, from_fn},
    response::Response,
};

use super::models::Models;
use crate::telemetry::spans::Incoming;

/// The routes, with each call in its trace, where spans go anywhere.
pub(super) fn carry(router: Router, models: &Models) -> Router {
    if models.are_traced() { router.layer(from_fn(within)) } else { router }
}

async fn within(request: Request, next: Next) -> Response {
    let headers = request.headers();
    let incoming = Incoming::read(|name| headers.get(name)?.to_str().ok());
    incoming.scope(next.run(request)).await
}
