//! What the hf-hub crate says went wrong, as an error of ours with what to do about it.

use hf_hub::HFError;

use crate::error::{Code, Error};

/// Whether the hub could not be asked, so that an earlier download is the best answer there is.
pub(super) fn is_unreachable(error: &HFError) -> bool {
    match error {
        HFError::Request { .. } => true,
        HFError::Http { context } => context.status.is_server_error(),
        _ => false,
    }
}

/// The crate's error as ours.
pub(super) fn explain(model: &str, error: &HFError) -> Error {
    let (code, advice) = match error {
        HFError::AuthRequired { .. } => (
            Code::Unauthenticated,
            "check the name; if the model is private or its terms must be accepted, set HF_TOKEN to a token that may read it",
        ),
        HFError::Forbidden { .. } => {
            (Code::PermissionDenied, "accept the model's terms on its page, or use another HF_TOKEN")
        }
        HFError::RepoNotFound { .. } => (Code::NotFound, "no such path is here either: check the name"),
        HFError::RevisionNotFound { .. } => {
            (Code::NotFound, "no such path is here either: check the name and the revision")
        }
        HFError::RateLimited { .. } => (Code::ResourceExhausted, "come back later, or set HF_TOKEN"),
        HFError::Request { .. } | HFError::Http { .. } => {
            (Code::Unavailable, "check the connection and HF_ENDPOINT, or give the path of a folder or .gguf file")
        }
        _ => (Code::FailedPrecondition, "check HF_ENDPOINT"),
    };
    let explained = Error::new(code, format!("model {model}: {error}; {advice}"));
    match error {
        HFError::RateLimited { retry_after: Some(after), .. } => explained.retry_after(*after),
        _ => explained,
    }
}
