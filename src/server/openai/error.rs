//! OpenAI's shape of errors: `{"error": {"message", "type", "param", "code"}}`.

use axum::http::StatusCode;
use serde_json::{Value, json};

use crate::server::http::failure::{Failure, Shape};

/// The shape, and the name of this face.
pub(crate) struct OpenAi;

impl Shape for OpenAi {
    fn body(failure: &Failure) -> Value {
        let (kind, code) = match failure {
            // Gateways tell a model that is not there from other wrong requests by this word.
            Failure { status: StatusCode::NOT_FOUND, param: Some(param), .. } if param == "model" => {
                ("invalid_request_error", Some("model_not_found"))
            }
            _ => kind(failure.status),
        };
        json!({"error": {"message": failure.message, "type": kind, "param": failure.param, "code": code}})
    }
}

/// `type` and `code` of a status; OpenAI's clients go by the status, people by these.
fn kind(status: StatusCode) -> (&'static str, Option<&'static str>) {
    match status {
        StatusCode::NOT_FOUND => ("invalid_request_error", Some("not_found")),
        StatusCode::UNAUTHORIZED => ("authentication_error", Some("invalid_api_key")),
        StatusCode::FORBIDDEN => ("permission_error", None),
        StatusCode::TOO_MANY_REQUESTS => ("rate_limit_error", Some("rate_limit_exceeded")),
        StatusCode::SERVICE_UNAVAILABLE => ("server_error", Some("not_serving")),
        StatusCode::GATEWAY_TIMEOUT => ("server_error", Some("timeout")),
        StatusCode::NOT_IMPLEMENTED => ("invalid_request_error", Some("not_offered")),
        status if status.is_client_error() => ("invalid_request_error", None),
        _ => ("server_error", None),
    }
}
