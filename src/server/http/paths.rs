//! The engine's complaints, by the names that a face's clients know.

use crate::error::{Code, Error};

/// What the engine calls a field, and what the face does; the first that fits counts.
pub(crate) type Renames = &'static [(&'static str, &'static str)];

/// The same error, with the face's names.
pub(crate) fn rename(mut error: Error, renames: Renames) -> Error {
    for violation in &mut error.violations {
        let renamed = renames.iter().find_map(|(from, to)| {
            let rest = violation.field.strip_prefix(from)?;
            (rest.is_empty() || rest.starts_with(['.', '['])).then(|| format!("{to}{rest}"))
        });
        violation.field = renamed.unwrap_or_else(|| std::mem::take(&mut violation.field));
    }
    if let ([violation], Code::InvalidArgument) = (error.violations.as_slice(), error.code) {
        error.message = format!("{}: {}", violation.field, violation.description);
    }
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_names_are_renamed_and_indices_kept() {
        let field = |field: &str| {
            let error = rename(Error::invalid(field, "is wrong"), &[("prompt.token_ids", "prompt"), ("stop", "halt")]);
            assert_eq!(error.message, format!("{}: is wrong", error.violations[0].field));
            error.violations[0].field.clone()
        };
        assert_eq!(field("prompt.token_ids[7]"), "prompt[7]");
        assert_eq!(field("stop"), "halt");
        assert_eq!(field("stop_token_ids[1]"), "stop_token_ids[1]");
    }
}
