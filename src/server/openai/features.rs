//! Fields that ask for more than text: tools, constraints on the output, other media. All are read here, in one place,
//! and those that this server does not offer are refused by their names, because an answer that quietly ignores them
//! would be wrong.

use serde::Deserialize;
use serde_json::Value;

use crate::error::{Error, Result};

/// The fields. Values that ask for nothing (`null`, `[]`, `{"type": "text"}`) are fine.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Features {
    functions: Option<Vec<Value>>,
    response_format: Option<ResponseFormat>,
    structured_outputs: Option<serde_json::Map<String, Value>>,
    guided_json: Option<Value>,
    guided_regex: Option<Value>,
    guided_choice: Option<Value>,
    guided_grammar: Option<Value>,
    modalities: Option<Vec<String>>,
    audio: Option<Value>,
    web_search_options: Option<Value>,
    chat_template: Option<String>,
    prompt_logprobs: Option<u32>,
}

#[derive(Debug, Deserialize)]
struct ResponseFormat {
    #[serde(rename = "type")]
    kind: String,
}

impl Features {
    /// Refuses what is not offered.
    ///
    /// # Errors
    /// `InvalidArgument` by the field's name.
    pub(super) fn check(&self) -> Result<()> {
        let format = self.response_format.as_ref().map(|format| format.kind.as_str());
        if let Some(other) = format.filter(|kind| !["text", "json_object", "json_schema"].contains(kind)) {
            let why =
                format!("is {:?}, must be text, json_object or json_schema", crate::server::backend::cut(other, 64));
            return Err(Error::invalid("response_format.type", why));
        }
        let modalities =
            self.modalities.as_ref().is_some_and(|modalities| modalities.iter().any(|kind| kind != "text"));
        let asked = [
            ("functions", some(self.functions.as_ref())),
            ("response_format", format.is_some_and(|kind| kind != "text")),
            ("structured_outputs", self.structured_outputs.is_some()),
            ("guided_json", self.guided_json.is_some()),
            ("guided_regex", self.guided_regex.is_some()),
            ("guided_choice", self.guided_choice.is_some()),
            ("guided_grammar", self.guided_grammar.is_some()),
            ("modalities", modalities),
            ("audio", self.audio.is_some()),
            ("web_search_options", self.web_search_options.is_some()),
            ("chat_template", self.chat_template.is_some()),
            ("prompt_logprobs", self.prompt_logprobs.is_some()),
        ];
        match asked.into_iter().find(|(_, asked)| *asked) {
            Some((field, _)) => Err(Error::invalid(field, "is not offered by this server: leave it out")),
            None => Ok(()),
        }
    }
}

fn some(list: Option<&Vec<Value>>) -> bool {
    list.is_some_and(|list| !list.is_empty())
}
