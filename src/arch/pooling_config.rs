//! How a model's own files pool hidden states into an embedding: sentence-transformers' `1_Pooling/config.json`, or
//! `pooling_type` of a GGUF file.
//!
//! Where nothing is said it is the last token, as in vLLM: in a model that looks back only, no other has seen it all.

use std::path::Path;

use serde_json::Value;

use crate::{
    arch::fields::Fields,
    error::{Error, Result},
    params::Pooling,
    weights::gguf::Gguf,
};

/// sentence-transformers' flags, and what its newer files call the same in `pooling_mode`.
const MODES: [(&str, &str, Option<Pooling>); 6] = [
    ("pooling_mode_mean_tokens", "mean", Some(Pooling::Mean)),
    ("pooling_mode_lasttoken", "lasttoken", Some(Pooling::Last)),
    ("pooling_mode_cls_token", "cls", None),
    ("pooling_mode_max_tokens", "max", None),
    ("pooling_mode_mean_sqrt_len_tokens", "mean_sqrt_len_tokens", None),
    ("pooling_mode_weightedmean_tokens", "weightedmean", None),
];

/// Reads sentence-transformers' file; `path` is for messages. `None` where it asks for what is not offered: another mode,
/// or several that are joined.
///
/// # Errors
/// `FailedPrecondition` that names the file and the field that is impossible.
pub fn from_json(path: &Path, text: &str) -> Result<Option<Pooling>> {
    let root: Value = serde_json::from_str(text).map_err(|e| Error::bad_file(path, "json", e))?;
    let root = root.as_object().ok_or_else(|| Error::bad_file(path, "json", "must be an object"))?;
    let fields = Fields::new(path, root);
    let by_name = match fields.value("pooling_mode") {
        Some(Value::String(name)) => Some(name.as_str()),
        Some(_) => return Err(fields.error("pooling_mode", "must be a string")),
        None => None,
    };
    let is_on = |flag: &str| fields.value(flag) == Some(&Value::Bool(true));
    let asked: Vec<_> = match by_name {
        Some(name) => vec![MODES.iter().find(|row| row.1 == name).and_then(|row| row.2)],
        None => MODES.iter().filter(|row| is_on(row.0)).map(|row| row.2).collect(),
    };
    Ok(match asked.as_slice() {
        [] => Some(Pooling::Last),
        [one] => *one,
        _ => None,
    })
}

/// Reads a GGUF file's `<architecture>.pooling_type`, whose numbers are llama.cpp's. `None` where it is none that is
/// offered.
///
/// # Errors
/// `FailedPrecondition` that names the file and the key where it is no number.
pub fn from_gguf(gguf: &Gguf) -> Result<Option<Pooling>> {
    let architecture = gguf.string("general.architecture")?.unwrap_or_default();
    Ok(match gguf.u64(&format!("{architecture}.pooling_type"))? {
        // 0 is none at all: each token has its own.
        None | Some(0) => Some(Pooling::Last),
        Some(1) => Some(Pooling::Mean),
        Some(3) => Some(Pooling::Last),
        Some(_) => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Option<Pooling>> {
        from_json(Path::new("1_Pooling/config.json"), text)
    }

    #[test]
    fn sentence_transformers_files_say_it_with_flags_or_by_name() {
        for (text, pooling) in [
            (r#"{"word_embedding_dimension": 64, "pooling_mode_mean_tokens": true}"#, Some(Pooling::Mean)),
            (r#"{"pooling_mode_mean_tokens": false, "pooling_mode_lasttoken": true}"#, Some(Pooling::Last)),
            (r#"{"pooling_mode_cls_token": true}"#, None),
            (r#"{"pooling_mode_mean_tokens": true, "pooling_mode_max_tokens": true}"#, None),
            (r#"{"pooling_mode": "mean", "include_prompt": true}"#, Some(Pooling::Mean)),
            (r#"{"pooling_mode": "lasttoken"}"#, Some(Pooling::Last)),
            (r#"{"pooling_mode": "weightedmean"}"#, None),
            (r#"{"pooling_mode": "something new"}"#, None),
            (r#"{"include_prompt": true}"#, Some(Pooling::Last)),
        ] {
            assert_eq!(read(text).unwrap(), pooling, "{text}");
        }
    }

    #[test]
    fn a_file_that_cannot_be_read_is_named() {
        for text in ["", "[]", r#"{"pooling_mode": 7}"#] {
            assert!(read(text).unwrap_err().message.contains("1_Pooling/config.json"), "{text:?}");
        }
    }
}
