//! The only place that turns the crate's error into a gRPC status, with the details of `google.rpc`.

use std::{collections::HashMap, time::Duration};

use axum::{
    body::Body,
    http::{HeaderValue, header::CONTENT_TYPE},
    response::Response,
};
use tonic::Status;
use tonic_types::{ErrorDetails, FieldViolation, QuotaViolation, StatusExt};

use crate::{
    error::{self, Code, Error},
    proto::candlewick::v1::FieldError,
    server::backend::cut,
};

/// `domain` of every `ErrorInfo`.
pub const DOMAIN: &str = "candlewick";

/// `reason` of a quota of the caller's own.
const QUOTA_EXCEEDED: &str = "QUOTA_EXCEEDED";
/// `reason` of a message that no call takes.
const MESSAGE_TOO_LARGE: &str = "MESSAGE_TOO_LARGE";
/// When to come back where the error does not say.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// Details travel in response headers, of which many clients accept 8 KiB: what a client sent must not come back whole.
const MESSAGE_BYTES: usize = 512;
const FIELD_BYTES: usize = 128;
const VIOLATIONS: usize = 4;

/// The table: what each code is on the wire, and its `reason` in `ErrorInfo`.
fn row(code: Code) -> (tonic::Code, &'static str) {
    match code {
        Code::InvalidArgument => (tonic::Code::InvalidArgument, "INVALID_REQUEST"),
        Code::NotFound => (tonic::Code::NotFound, "NOT_FOUND"),
        Code::FailedPrecondition => (tonic::Code::FailedPrecondition, "NOT_POSSIBLE_HERE"),
        Code::Unauthenticated => (tonic::Code::Unauthenticated, "CREDENTIALS_MISSING"),
        Code::PermissionDenied => (tonic::Code::PermissionDenied, "CREDENTIALS_INSUFFICIENT"),
        Code::ResourceExhausted => (tonic::Code::ResourceExhausted, "QUEUE_FULL"),
        Code::DeadlineExceeded => (tonic::Code::DeadlineExceeded, "DEADLINE_PASSED"),
        Code::Unavailable => (tonic::Code::Unavailable, "NOT_SERVING"),
        Code::Aborted => (tonic::Code::Aborted, "ENDED_BY_POLICY"),
        Code::DataLoss => (tonic::Code::DataLoss, "REPLAY_GONE"),
        Code::Cancelled => (tonic::Code::Cancelled, "CANCELLED"),
        Code::Unimplemented => (tonic::Code::Unimplemented, "NOT_OFFERED"),
        Code::Internal => (tonic::Code::Internal, "ENGINE_FAILED"),
    }
}

/// The status of an error: `BadRequest` with field paths, `RetryInfo` and `QuotaFailure` where they help, `ErrorInfo`
/// always. What went wrong inside stays inside: of an internal error the log has the message.
pub(crate) fn status(error: Error) -> Status {
    let (code, reason) = row(error.code);
    let mut details = ErrorDetails::new();
    details.set_error_info(reason, DOMAIN, HashMap::new());
    match error.code {
        Code::InvalidArgument if !error.violations.is_empty() => {
            let violations = error.violations.iter().take(VIOLATIONS);
            let violations = violations
                .map(|v| FieldViolation::new(cut(&v.field, FIELD_BYTES), cut(&v.description, MESSAGE_BYTES / 2)));
            details.set_bad_request(violations.collect::<Vec<_>>());
        }
        Code::ResourceExhausted => {
            details.set_retry_info(Some(error.retry_after.unwrap_or(RETRY_AFTER)));
            // Of a tenant's own quota the field is its name.
            let quota = error.violations.first().map(|quota| cut(&quota.field, FIELD_BYTES));
            if quota.is_some() {
                details.set_error_info(QUOTA_EXCEEDED, DOMAIN, HashMap::new());
            }
            let subject = quota.unwrap_or("requests");
            details.set_quota_failure([QuotaViolation::new(subject, cut(&error.message, MESSAGE_BYTES / 2))]);
        }
        Code::Unavailable => {
            details.set_retry_info(Some(error.retry_after.unwrap_or(RETRY_AFTER)));
        }
        _ => {}
    }
    let message = if error.code == Code::Internal {
        tracing::error!(%error, "a call failed");
        "the server failed while it worked on this call; other calls go on, and this one can be made again"
    } else {
        cut(&error.message, MESSAGE_BYTES)
    };
    Status::with_error_details(code, message, details)
}

/// The status of a message that is larger than may be here.
pub(super) fn too_large(most: usize) -> Status {
    let mut details = ErrorDetails::new();
    details.set_error_info(MESSAGE_TOO_LARGE, DOMAIN, HashMap::new());
    let why = format!("the message is too large: at most {most} bytes are allowed");
    Status::with_error_details(tonic::Code::OutOfRange, why, details)
}

/// The answer to a call that no service sees. Clients of gRPC-Web read the status from the headers where there is no body,
/// and know the answer by the content type of their own.
pub(crate) fn refusal(error: Error, content_type: HeaderValue) -> Response {
    let mut response = status(error).into_http::<Body>();
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    response
}

/// The fields at fault, where an error is told inside a stream that goes on.
pub(super) fn fields(error: &Error) -> Vec<FieldError> {
    let violations = error.violations.iter().take(VIOLATIONS);
    let field = |violation: &error::FieldViolation| FieldError {
        field: cut(&violation.field, FIELD_BYTES).to_owned(),
        description: cut(&violation.description, MESSAGE_BYTES / 2).to_owned(),
    };
    violations.map(field).collect()
}

/// When to come back, likewise.
pub(super) fn retry_after_ms(error: &Error) -> Option<u64> {
    error.retry_after.map(|after| u64::try_from(after.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_internal_error_says_nothing_of_what_went_wrong_inside() {
        let status = status(Error::internal("index 7 of block_table"));
        assert_eq!(status.code(), tonic::Code::Internal);
        assert!(!status.message().contains("block_table"));
        assert_eq!(status.get_details_error_info().unwrap().reason, "ENGINE_FAILED");
    }

    #[test]
    fn a_full_queue_says_when_to_come_back() {
        let error = Error::new(Code::ResourceExhausted, "1,024 requests wait").retry_after(Duration::from_millis(250));
        let details = status(error).get_error_details();
        assert_eq!(details.retry_info().unwrap().retry_delay, Some(Duration::from_millis(250)));
        assert_eq!(details.quota_failure().unwrap().violations[0].description, "1,024 requests wait");
    }

    #[test]
    fn a_status_fits_the_headers_that_small_clients_accept_whatever_was_sent() {
        let mut error = Error::invalid("é".repeat(10_000), "ü".repeat(10_000));
        error.violations = vec![error.violations[0].clone(); 1000];
        let status = status(error);
        // grpc-message is percent-encoded (3 bytes each), grpc-status-details-bin holds the details in base64.
        assert!(status.message().len() * 3 + status.details().len() * 4 / 3 < 8 * 1024 - 512);
        assert_eq!(status.get_details_bad_request().unwrap().field_violations.len(), VIOLATIONS);
    }
}
