//! What the variables of Hugging Face's tools say, as far as the hf-hub crate does not say it.

use std::{fs, path::PathBuf};

use crate::config::shared_variable;

/// Whether `HF_HUB_OFFLINE` forbids the network.
pub(super) fn is_offline() -> bool {
    shared_variable("HF_HUB_OFFLINE").is_some_and(|value| is_true(&value))
}

/// As Python's huggingface_hub reads it.
fn is_true(value: &str) -> bool {
    ["1", "on", "yes", "true"].iter().any(|yes| value.eq_ignore_ascii_case(yes))
}

/// The token to ask with: `HF_TOKEN`, else the file that `HF_TOKEN_PATH` names, else what logging in left.
pub(super) fn token() -> Option<String> {
    if shared_variable("HF_HUB_DISABLE_IMPLICIT_TOKEN").is_some() {
        return None;
    }
    let read = |path: PathBuf| fs::read_to_string(path).ok();
    shared_variable("HF_TOKEN")
        .or_else(|| read(shared_variable("HF_TOKEN_PATH")?.into()))
        .or_else(|| read(hf_hub::hf_home().join("token")))
        .map(|token| token.trim().to_owned())
        .filter(|token| !token.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn yes_has_four_spellings() {
        assert!(["1", "ON", "Yes", "true", "TRUE"].into_iter().all(is_true));
        assert!(!["0", "", "off", "no", "false", "2"].into_iter().any(is_true));
    }
}
