//! Tools as the Messages API offers them, and which of them the model is to call.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::{
    error::{Error, Result},
    server::backend::cut,
    text::{ChatPrompt, Tool, ToolChoice},
};

/// An entry of `tools`.
#[derive(Debug, Deserialize)]
pub(super) struct OfferedTool {
    /// `custom`, or a tool of Anthropic's own.
    #[serde(default, rename = "type")]
    kind: Option<String>,
    name: String,
    #[serde(default)]
    description: Option<String>,
    #[serde(default)]
    input_schema: Option<Map<String, Value>>,
}

/// `tool_choice`.
#[derive(Debug, Deserialize)]
pub(super) struct Choice {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    disable_parallel_tool_use: Option<bool>,
}

/// The functions of a list of tools.
///
/// # Errors
/// `InvalidArgument` by the path of one that runs at Anthropic.
pub(super) fn offered(tools: Vec<OfferedTool>) -> Result<Arc<[Tool]>> {
    let function = |(k, tool): (usize, OfferedTool)| {
        if let Some(kind) = tool.kind.filter(|kind| kind != "custom") {
            let why = format!("is {:?}, must be custom: there are no tools on this side", cut(&kind, 64));
            return Err(Error::invalid(format!("tools[{k}].type"), why));
        }
        Ok(Tool { name: tool.name, description: tool.description, parameters: tool.input_schema })
    };
    tools.into_iter().enumerate().map(function).collect()
}

impl Choice {
    /// Tells the chat.
    ///
    /// # Errors
    /// `InvalidArgument` for a choice that is none.
    pub(super) fn tell(self, chat: &mut ChatPrompt) -> Result<()> {
        chat.parallel_tool_calls = self.disable_parallel_tool_use != Some(true);
        chat.tool_choice = match (self.kind.as_str(), self.name) {
            ("auto", _) => ToolChoice::Auto,
            ("any", _) => ToolChoice::Required,
            ("none", _) => ToolChoice::None,
            ("tool", Some(name)) => ToolChoice::Named(name),
            ("tool", None) => return Err(Error::invalid("tool_choice.name", "must be set")),
            (other, _) => {
                let why = format!("is {:?}, must be auto, any, tool or none", cut(other, 64));
                return Err(Error::invalid("tool_choice.type", why));
            }
        };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_choice_is_one_of_four() {
        let told = |choice: Value| {
            let mut chat = ChatPrompt::from(Vec::new());
            serde_json::from_value::<Choice>(choice).unwrap().tell(&mut chat)?;
            Ok::<_, Error>((chat.tool_choice, chat.parallel_tool_calls))
        };
        assert_eq!(told(json!({"type": "any"})).unwrap(), (ToolChoice::Required, true));
        assert_eq!(told(json!({"type": "none"})).unwrap(), (ToolChoice::None, true));
        let one = json!({"type": "auto", "disable_parallel_tool_use": true});
        assert_eq!(told(one).unwrap(), (ToolChoice::Auto, false));
        assert_eq!(told(json!({"type": "tool", "name": "f"})).unwrap(), (ToolChoice::Named("f".into()), true));
        let field = |choice: Value| told(choice).unwrap_err().violations[0].field.clone();
        assert_eq!(field(json!({"type": "tool"})), "tool_choice.name");
        assert_eq!(field(json!({"type": "sometimes"})), "tool_choice.type");
    }
}
