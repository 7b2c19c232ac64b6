//! Anthropic's shape of errors: `{"type": "error", "error": {"type", "message"}}`.

use axum::http::StatusCode;
use serde_json::{Value, json};

use crate::server::http::failure::{Failure, Shape};

/// What Anthropic's clients know as "overloaded"; HTTP has no name for it.
const OVERLOADED: u16 = 529;

/// The shape, and the name of this face.
pub(crate) struct Anthropic;

impl Shape for Anthropic {
    fn body(failure: &Failure) -> Value {
        json!({"type": "error", "error": {"type": kind(failure.status), "message": failure.message}})
    }

    fn status(failure: &Failure) -> StatusCode {
        match failure.status {
            StatusCode::SERVICE_UNAVAILABLE => StatusCode::from_u16(OVERLOADED).unwrap_or(failure.status),
            status => status,
        }
    }
}

fn kind(status: StatusCode) -> &'static str {
    match status {
        StatusCode::UNAUTHORIZED => "authentication_error",
        StatusCode::FORBIDDEN => "permission_error",
        StatusCode::NOT_FOUND => "not_found_error",
        StatusCode::PAYLOAD_TOO_LARGE => "request_too_large",
        StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
        StatusCode::SERVICE_UNAVAILABLE => "overloaded_error",
        StatusCode::GATEWAY_TIMEOUT => "timeout_error",
        status if status.is_client_error() => "invalid_request_error",
        _ => "api_error",
    }
}
