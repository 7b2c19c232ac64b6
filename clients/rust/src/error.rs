//! What goes wrong, with all that the server said about it.

use std::{error, fmt, time::Duration};

pub use tonic::Code;
use tonic::{Status, TimeoutExpired};
use tonic_types::StatusExt;

use crate::v1;

/// A result of this crate's.
pub type Result<T> = std::result::Result<T, Error>;

/// A field of the request that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldViolation {
    /// Its path, as `options.sampling.temperature`.
    pub field: String,
    /// Why.
    pub description: String,
}

/// What an error carries beside its code and its message; empty where the server said nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Details {
    /// `reason` of the status' `ErrorInfo`.
    pub reason: String,
    /// The fields at fault.
    pub fields: Vec<FieldViolation>,
    /// The quotas that are used up.
    pub quotas: Vec<String>,
    /// When the server thinks that a retry is worth while.
    pub retry_after: Option<Duration>,
}

/// A call, or what one event of a session's asked for, failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// What kind of failure it is; the contract's table of errors says what each means.
    pub code: Code,
    /// In words.
    pub message: String,
    /// What else the server said.
    pub details: Box<Details>,
    /// Of a session: the client's event that it answers, by its name in `SessionRequest`.
    pub event: Option<String>,
    /// Of a session's turn that failed: its index.
    pub turn_index: Option<u32>,
}

impl Error {
    pub(crate) fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), details: Box::default(), event: None, turn_index: None }
    }

    /// The fields at fault.
    #[must_use]
    pub fn fields(&self) -> &[FieldViolation] {
        &self.details.fields
    }

    /// When the server thinks that a retry is worth while.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        self.details.retry_after
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.code, self.message)?;
        // Most messages name the field themselves.
        for FieldViolation { field, description } in
            self.fields().iter().filter(|one| !self.message.contains(&one.field))
        {
            write!(f, "; {field} {description}")?;
        }
        Ok(())
    }
}

impl error::Error for Error {}

impl From<Status> for Error {
    /// Details that cannot be read are left out.
    fn from(status: Status) -> Self {
        let details = status.get_error_details();
        let fields = details.bad_request().into_iter().flat_map(|bad| &bad.field_violations);
        let quotas = details.quota_failure().into_iter().flat_map(|quota| &quota.violations);
        let told = Details {
            reason: details.error_info().map(|info| info.reason.clone()).unwrap_or_default(),
            fields: fields
                .map(|one| FieldViolation { field: one.field.clone(), description: one.description.clone() })
                .collect(),
            quotas: quotas.map(|one| one.description.clone()).collect(),
            retry_after: details.retry_info().and_then(|retry| retry.retry_delay),
        };
        Self { details: Box::new(told), ..Self::new(code(&status), status.message()) }
    }
}

/// The code of a status. One that has a source was made on this side, of what failed under the call: of the connection,
/// whose every end means the same to a caller, whatever HTTP/2 calls it.
fn code(status: &Status) -> Code {
    let Some(source) = error::Error::source(status) else { return status.code() };
    let mut causes = std::iter::successors(Some(source), |cause| cause.source());
    if causes.any(|cause| cause.is::<TimeoutExpired>()) {
        return Code::DeadlineExceeded;
    }
    match status.code() {
        Code::Unknown | Code::Internal | Code::Cancelled => Code::Unavailable,
        code => code,
    }
}

impl From<tonic::transport::Error> for Error {
    fn from(error: tonic::transport::Error) -> Self {
        let causes = std::iter::successors(error::Error::source(&error), |cause| cause.source());
        let message = causes.fold(error.to_string(), |told, cause| format!("{told}: {cause}"));
        Self::new(Code::Unavailable, message)
    }
}

impl From<v1::SessionError> for Error {
    fn from(error: v1::SessionError) -> Self {
        let field = |one: v1::FieldError| FieldViolation { field: one.field, description: one.description };
        let details = Details {
            fields: error.fields.into_iter().map(field).collect(),
            retry_after: error.retry_after_ms.map(Duration::from_millis),
            ..Details::default()
        };
        Self {
            details: Box::new(details),
            event: Some(error.event).filter(|event| !event.is_empty()),
            turn_index: error.turn_index,
            ..Self::new(Code::from(error.code), error.message)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_told_once() {
        let fields = vec![FieldViolation { field: "top_p".into(), description: "is 7".into() }];
        let details = Box::new(Details { fields, ..Details::default() });
        let error = Error { details: details.clone(), ..Error::new(Code::InvalidArgument, "wrong") };
        assert_eq!(error.to_string(), "InvalidArgument: wrong; top_p is 7");
        let error = Error { details, ..Error::new(Code::InvalidArgument, "top_p: is 7") };
        assert_eq!(error.to_string(), "InvalidArgument: top_p: is 7");
    }

    #[test]
    fn a_connection_that_broke_is_told_from_a_server_that_failed() {
        let broken = Status::from_error(Box::new(std::io::Error::other("reset")));
        assert_eq!(Error::from(broken).code, Code::Unavailable);
        assert_eq!(Error::from(Status::internal("the server failed")).code, Code::Internal);
    }
}
