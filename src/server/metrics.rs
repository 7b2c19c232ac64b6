//! The plain HTTP pages beside gRPC: `/metrics` for Prometheus, `/health` for load balancers, and what is where nothing
//! else is.

use axum::{
    Router,
    extract::State,
    http::{HeaderMap, StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
    routing::get,
};

use super::access::Access;
use crate::{
    engine::{Engine, Health},
    telemetry,
};

/// The pages over one engine.
pub(super) fn routes(engine: Engine, access: Access) -> Router {
    let health = Router::new().route("/health", get(health)).with_state(engine.clone());
    Router::new().route("/metrics", get(metrics)).with_state((engine, access)).merge(health)
}

/// What a path that nobody serves gets: gRPC clients the status that they understand, others 404.
pub(super) async fn unknown(headers: HeaderMap) -> Response {
    // Of gRPC-Web too: that clients of it read the status from the headers where there is no body.
    let grpc = headers.get(CONTENT_TYPE).filter(|value| value.as_bytes().starts_with(b"application/grpc"));
    if let Some(content_type) = grpc {
        let unimplemented = i32::from(tonic::Code::Unimplemented).to_string();
        return ([(CONTENT_TYPE, content_type.clone())], [("grpc-status", unimplemented)], ()).into_response();
    }
    (StatusCode::NOT_FOUND, "not found\n").into_response()
}

/// What programs are told at `/`.
pub(super) fn line(engine: &Engine) -> String {
    format!(
        "candlewick {} serves {:?} over gRPC on this port; reflection lists the services. See also /health and /metrics.\n",
        env!("CARGO_PKG_VERSION"),
        engine.info().name,
    )
}

async fn health(State(engine): State<Engine>) -> (StatusCode, &'static str) {
    match *engine.health().borrow() {
        Health::Serving => (StatusCode::OK, "serving\n"),
        Health::Restarting => (StatusCode::SERVICE_UNAVAILABLE, "restarting\n"),
        Health::Draining => (StatusCode::SERVICE_UNAVAILABLE, "draining\n"),
    }
}

/// Open to everybody; but whose names the tenants have, and how much they do, is for administrators where there are any.
async fn metrics(State((engine, access)): State<(Engine, Access)>, headers: HeaderMap) -> impl IntoResponse {
    let page = match access.may_administer(&headers) {
        true => engine.telemetry().encode(),
        false => engine.telemetry().encode_without_tenants(),
    };
    ([(CONTENT_TYPE, telemetry::CONTENT_TYPE)], page)
}
