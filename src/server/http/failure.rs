//! Errors as HTTP statuses. The body is each face's own: it implements [`Shape`].

use std::{marker::PhantomData, time::Duration};

use axum::{
    Json,
    http::{HeaderValue, StatusCode, header::RETRY_AFTER},
    response::{IntoResponse, Response},
};
use serde_json::Value;

use crate::{
    error::{Code, Error},
    server::backend::cut,
};

/// Bytes of a message: what a client sent must not come back whole.
const MESSAGE_BYTES: usize = 1024;
/// The status of a request whose client went away (nginx's); nobody reads it but a log.
const CLIENT_CLOSED_REQUEST: u16 = 499;
/// When to come back where the error does not say.
const COME_BACK: Duration = Duration::from_secs(1);

/// An error on its way to a client, in no face's shape yet.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    pub(crate) status: StatusCode,
    /// What a client may be told.
    pub(crate) message: String,
    /// The field at fault, by its path in the request.
    pub(crate) param: Option<String>,
    pub(crate) retry_after: Option<Duration>,
}

impl Failure {
    /// A failure of HTTP itself, before the engine heard of it.
    pub(crate) fn of_http(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), param: None, retry_after: None }
    }
}

/// The table: what each code is over HTTP.
fn status(code: Code) -> StatusCode {
    match code {
        Code::InvalidArgument | Code::FailedPrecondition => StatusCode::BAD_REQUEST,
        Code::NotFound => StatusCode::NOT_FOUND,
        Code::Unauthenticated => StatusCode::UNAUTHORIZED,
        Code::PermissionDenied => StatusCode::FORBIDDEN,
        Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
        Code::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
        Code::Unavailable | Code::Aborted => StatusCode::SERVICE_UNAVAILABLE,
        Code::DataLoss => StatusCode::GONE,
        Code::Cancelled => StatusCode::from_u16(CLIENT_CLOSED_REQUEST).unwrap_or(StatusCode::BAD_REQUEST),
        Code::Unimplemented => StatusCode::NOT_IMPLEMENTED,
        Code::Internal => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

impl From<Error> for Failure {
    /// What went wrong inside stays inside: of an internal error the log has the message.
    fn from(error: Error) -> Self {
        let message = if error.code == Code::Internal {
            tracing::error!(%error, "a call failed");
            "the server failed while it worked on this request; others go on, and this one can be made again"
        } else {
            cut(&error.message, MESSAGE_BYTES)
        };
        let waits = matches!(error.code, Code::ResourceExhausted | Code::Unavailable);
        Self {
            status: status(error.code),
            message: message.to_owned(),
            param: error.violations.first().map(|violation| cut(&violation.field, MESSAGE_BYTES).to_owned()),
            retry_after: waits.then(|| error.retry_after.unwrap_or(COME_BACK)),
        }
    }
}

/// How a face tells of a failure.
pub(crate) trait Shape: Send + 'static {
    /// The body, also of a failure in the middle of a stream.
    fn body(failure: &Failure) -> Value;

    /// The status, where the face has one of its own.
    fn status(failure: &Failure) -> StatusCode {
        failure.status
    }
}

/// The answer to a call that failed, in the shape of face `S`.
pub(crate) struct Failed<S>(Failure, PhantomData<S>);

impl<S> From<Failure> for Failed<S> {
    fn from(failure: Failure) -> Self {
        Self(failure, PhantomData)
    }
}

impl<S> From<Error> for Failed<S> {
    fn from(error: Error) -> Self {
        Failure::from(error).into()
    }
}

impl<S: Shape> IntoResponse for Failed<S> {
    fn into_response(self) -> Response {
        let mut response = (S::status(&self.0), Json(S::body(&self.0))).into_response();
        if let Some(after) = self.0.retry_after {
            // The header counts whole seconds; none would mean at once.
            let seconds = after.as_millis().div_ceil(1000).max(1);
            if let Ok(value) = HeaderValue::from_str(&seconds.to_string()) {
                response.headers_mut().insert(RETRY_AFTER, value);
            }
        }
        response
    }
}

/// What a method gets that a path does not take.
pub(crate) async fn method_not_allowed<S: Shape>() -> Failed<S> {
    Failure::of_http(StatusCode::METHOD_NOT_ALLOWED, "this path does not take this method").into()
}

/// What a path gets that the face does not have.
pub(crate) async fn no_such_path<S: Shape>() -> Failed<S> {
    Failure::of_http(StatusCode::NOT_FOUND, "this server has no such path").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_internal_error_says_nothing_of_what_went_wrong_inside() {
        let failure = Failure::from(Error::internal("index 7 of block_table"));
        assert_eq!(failure.status, StatusCode::INTERNAL_SERVER_ERROR);
        assert!(!failure.message.contains("block_table"));
    }

    #[test]
    fn what_a_client_sent_does_not_come_back_whole() {
        let failure = Failure::from(Error::invalid("é".repeat(10_000), "ü".repeat(10_000)));
        assert!(failure.message.len() <= MESSAGE_BYTES && failure.param.unwrap().len() <= MESSAGE_BYTES);
    }

    #[test]
    fn only_what_can_get_better_says_when_to_come_back() {
        let wait = |code| Failure::from(Error::new(code, "x")).retry_after;
        assert_eq!(wait(Code::ResourceExhausted), Some(COME_BACK));
        assert_eq!(wait(Code::Unavailable), Some(COME_BACK));
        assert_eq!(wait(Code::InvalidArgument), None);
    }
}
