//! The plain HTTP pages beside gRPC: `/metrics` for Prometheus, `/health` for load balancers, and what is where nothing
//! else is.

use axum::{
    Router,
    extract::State,
    http::{HeaderMap, StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
    routing::get,
};

use super::{access::Access, models::Models};
use crate::{engine::Health, telemetry};

/// The pages over all models.
pub(super) fn routes(models: Models, access: Access) -> Router {
    let health = Router::new().route("/health", get(health)).with_state(models.clone());
    Router::new().route("/metrics", get(metrics)).with_state((models, access)).merge(health)
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
pub(super) const LINE: &str = concat!(
    "candlewick ",
    env!("CARGO_PKG_VERSION"),
    " speaks gRPC on this port; reflection lists the services, /v1/models the models. See also /health and /metrics.\n"
);

async fn health(State(models): State<Models>) -> (StatusCode, &'static str) {
    match models.health() {
        Health::Serving => (StatusCode::OK, "serving\n"),
        Health::Restarting => (StatusCode::SERVICE_UNAVAILABLE, "restarting\n"),
        Health::Draining => (StatusCode::SERVICE_UNAVAILABLE, "draining\n"),
    }
}

/// Open to everybody; but whose names the tenants have, and how much they do, is for administrators where there are any.
async fn metrics(State((models, access)): State<(Models, Access)>, headers: HeaderMap) -> impl IntoResponse {
    let with_tenants = access.may_administer(&headers);
    models.ready().iter().for_each(|backend| backend.engine.tell_adapters());
    ([(CONTENT_TYPE, telemetry::CONTENT_TYPE)], telemetry::encode_all(&models.telemetries(), with_tenants))
}
