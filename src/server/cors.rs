//! Answers to browsers that ask whether a page of another site may call (CORS, by the fetch standard).
//!
//! Nobody may unless `--allowed-origins` says so: what listens on a person's own machine would otherwise answer every
//! page that the person opens. The chat page comes from the server itself and needs no permission.

use std::time::Duration;

use axum::{
    Router,
    http::{HeaderName, HeaderValue, Method},
};
use tower_http::cors::{AllowHeaders, AllowOrigin, Any, CorsLayer};

use crate::config::AllowedOrigins;

/// How long a browser may remember an answer; most of them cap it at two hours themselves.
const REMEMBER: Duration = Duration::from_secs(2 * 60 * 60);
/// What pages may read of an answer, beside what they always may.
const EXPOSED: [&str; 5] = ["grpc-status", "grpc-message", "grpc-status-details-bin", "x-request-id", "retry-after"];

/// The same routes, open to these sites.
pub(super) fn open(router: Router, origins: &AllowedOrigins) -> Router {
    let origin = match origins {
        AllowedOrigins::Any => AllowOrigin::from(Any),
        AllowedOrigins::List(list) if list.is_empty() => return router,
        AllowedOrigins::List(list) => {
            AllowOrigin::list(list.iter().filter_map(|origin| HeaderValue::from_str(origin).ok()))
        }
    };
    router.layer(
        CorsLayer::new()
            .allow_origin(origin)
            .allow_methods([Method::GET, Method::POST, Method::DELETE])
            // Whatever a client library of the day sends; headers are no secret of ours.
            .allow_headers(AllowHeaders::mirror_request())
            .expose_headers(EXPOSED.map(HeaderName::from_static))
            .max_age(REMEMBER),
    )
}
