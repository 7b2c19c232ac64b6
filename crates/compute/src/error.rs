//! The one error of the crate: a code that says who can act, a message that says what to do.
//!
//! Only the faces under `server/` translate a [`Code`] into a gRPC or HTTP status.

use std::{fmt, path::Path, time::Duration};

/// What went wrong, seen from the person who can act on it. The names are those of
/// `google.rpc.Code`, so that every face has an obvious translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Code {
    /// The request can never work as it stands: change the named field.
    InvalidArgument,
    /// No such model, session or request.
    NotFound,
    /// The state of the server or of a file does not allow this.
    FailedPrecondition,
    /// No credentials, or wrong ones.
    Unauthenticated,
    /// The credentials do not reach this far.
    PermissionDenied,
    /// A queue or quota is full: come back after [`Error::retry_after`].
    ResourceExhausted,
    /// The deadline cannot be met, or was not.
    DeadlineExceeded,
    /// Loading or draining: come back later, or elsewhere.
    Unavailable,
    /// Ended by policy (a reader that stalled too long, too many preemptions).
    Aborted,
    /// The replay no longer reaches back that far.
    DataLoss,
    /// The client went away.
    Cancelled,
    /// Not offered by this server.
    Unimplemented,
    /// Our fault.
    Internal,
}

/// One field that was wrong, by its path in the request (`sampling.top_p`) or in the file
/// (`tensor blk.0.attn_q.weight: offset`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldViolation {
    /// Path of the field.
    pub field: String,
    /// What is wrong with it, and what would be right.
    pub description: String,
}

/// The crate's error.
#[derive(Clone, Debug, thiserror::Error)]
pub struct Error {
    /// Who can act.
    pub code: Code,
    /// A sentence for a person.
    pub message: String,
    /// The fields at fault, where the request or a file was.
    pub violations: Vec<FieldViolation>,
    /// When to try again, where that can help.
    pub retry_after: Option<Duration>,
}

/// The crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Error {
    /// An error of `code` with a message.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), violations: Vec::new(), retry_after: None }
    }

    /// [`Code::InvalidArgument`] for one field of a request: the message reads `field: description`.
    pub fn invalid(field: impl Into<String>, description: impl Into<String>) -> Self {
        let (field, description) = (field.into(), description.into());
        let message = format!("{field}: {description}");
        Self { violations: vec![FieldViolation { field, description }], ..Self::new(Code::InvalidArgument, message) }
    }

    /// A file that cannot be used: [`Code::FailedPrecondition`], naming the file and the field in it.
    pub fn bad_file(path: impl AsRef<Path>, field: impl Into<String>, description: impl fmt::Display) -> Self {
        let (path, field) = (path.as_ref().display(), field.into());
        Self {
            violations: vec![FieldViolation { field: field.clone(), description: description.to_string() }],
            ..Self::new(Code::FailedPrecondition, format!("{path}: {field}: {description}"))
        }
    }

    /// [`Code::Internal`].
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(Code::Internal, message)
    }

    /// The same error with a hint when to try again.
    #[must_use]
    pub fn retry_after(mut self, after: Duration) -> Self {
        self.retry_after = Some(after);
        self
    }

    /// The same error with `context: ` before its message.
    #[must_use]
    pub fn context(mut self, context: impl fmt::Display) -> Self {
        self.message = format!("{context}: {}", self.message);
        self
    }
}

impl From<candle_core::Error> for Error {
    /// A tensor operation that failed is our fault: shapes were checked when the model was loaded.
    fn from(error: candle_core::Error) -> Self {
        Self::internal(error.to_string())
    }
}
