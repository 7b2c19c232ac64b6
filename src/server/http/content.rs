//! What a message says: a string, or parts.

use serde::Deserialize;

use crate::{
    error::{Error, Result},
    server::backend::cut,
};

/// The kinds of parts that are text.
const TEXTS: [&str; 5] = ["text", "input_text", "output_text", "reasoning_text", "summary_text"];

/// What a message says.
#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "must be a string or an array of parts with a type each")]
pub(crate) enum Content {
    /// As it is.
    Text(String),
    /// In parts, which are put together.
    Parts(Vec<Part>),
}

/// A part of a content.
#[derive(Debug, Deserialize)]
pub(crate) struct Part {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    text: Option<String>,
    /// What an assistant said instead of an answer.
    #[serde(default)]
    refusal: Option<String>,
}

impl Content {
    /// The text of all parts; `path` says where they stand.
    ///
    /// # Errors
    /// `InvalidArgument` for a part that is no text.
    pub(crate) fn text(self, path: &str) -> Result<String> {
        let parts = match self {
            Self::Text(text) => return Ok(text),
            Self::Parts(parts) => parts,
        };
        let mut whole = String::new();
        for (k, part) in parts.into_iter().enumerate() {
            match (part.kind.as_str(), part.text) {
                (kind, Some(text)) if TEXTS.contains(&kind) => whole.push_str(&text),
                ("refusal", _) => match part.refusal {
                    Some(text) => whole.push_str(&text),
                    None => return Err(Error::invalid(format!("{path}[{k}].refusal"), "must be set")),
                },
                (kind, None) if TEXTS.contains(&kind) => {
                    return Err(Error::invalid(format!("{path}[{k}].text"), "must be set"));
                }
                (other, _) => {
                    let why = format!("is {:?}: the model reads text only", cut(other, 64));
                    return Err(Error::invalid(format!("{path}[{k}].type"), why));
                }
            }
        }
        Ok(whole)
    }
}
