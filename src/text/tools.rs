//! Tools as a request brings them, and the calls of them as messages hold them.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// Most tools a request.
pub const MAX_TOOLS: usize = 128;
/// Most bytes of a tool's name.
const MAX_NAME_BYTES: usize = 256;

/// A function that the model may call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tool {
    /// What calls name it by.
    pub name: String,
    /// What it does, for the model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// JSON schema of its arguments, an object; none where it takes none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parameters: Option<Map<String, Value>>,
}

impl Tool {
    /// Whether the schema allows nothing but a string for this argument.
    pub(super) fn takes_string(&self, argument: &str) -> bool {
        self.argument_type(argument).and_then(Value::as_str) == Some("string")
    }

    /// The `type` of an argument in the schema.
    pub(super) fn argument_type(&self, argument: &str) -> Option<&Value> {
        self.parameters.as_ref()?.get("properties")?.get(argument)?.get("type")
    }

    /// As chat templates know tools: OpenAI's shape, `{"type": "function", "function": {…}}`.
    pub(super) fn for_template(&self) -> Value {
        serde_json::json!({ "type": "function", "function": self })
    }
}

/// Checks the tools of a request; `field` is where they stand in it.
///
/// # Errors
/// `InvalidArgument` that names the tool: too many, a name that is empty, too long or there twice.
pub fn validate_tools(field: &str, tools: &[Tool]) -> Result<()> {
    if tools.len() > MAX_TOOLS {
        return Err(Error::invalid(field, format!("has {} entries, at most {MAX_TOOLS} are allowed", tools.len())));
    }
    for (k, tool) in tools.iter().enumerate() {
        let wrong = |why: String| Err(Error::invalid(format!("{field}[{k}].name"), why));
        let plain = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
        if tool.name.is_empty() || tool.name.len() > MAX_NAME_BYTES || !tool.name.chars().all(plain) {
            let shown: String = tool.name.chars().take(MAX_NAME_BYTES).collect();
            return wrong(format!("is {shown:?}, must be 1 to {MAX_NAME_BYTES} letters, digits, '_', '-' and '.'"));
        }
        if tools[..k].iter().any(|other| other.name == tool.name) {
            return wrong(format!("is {:?}, which another tool has", tool.name));
        }
    }
    Ok(())
}

/// Whether the model calls tools.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ToolChoice {
    /// As it sees fit.
    #[default]
    Auto,
    /// No: what looks like a call is text.
    None,
    /// At least one.
    Required,
    /// This one.
    Named(String),
}

/// A call that the model made, as a message of the conversation holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ToolCall {
    /// Ties the tool's answer to the call.
    pub id: String,
    /// The tool.
    pub name: String,
    /// The arguments, as JSON text.
    pub arguments: String,
}

impl ToolCall {
    /// The arguments as an object; none where they are not whole, or none.
    #[must_use]
    pub fn arguments_object(&self) -> Option<Map<String, Value>> {
        match self.arguments.trim() {
            "" => Some(Map::new()),
            text => serde_json::from_str(text).ok(),
        }
    }

    /// As chat templates know calls: OpenAI's shape, with the arguments as a value where they are JSON, because that is
    /// what templates write most.
    pub(super) fn for_template(&self) -> Value {
        let text = if self.arguments.trim().is_empty() { "{}" } else { &self.arguments };
        let arguments = serde_json::from_str(text).unwrap_or_else(|_| Value::String(self.arguments.clone()));
        serde_json::json!({
            "id": self.id,
            "type": "function",
            "function": { "name": self.name, "arguments": arguments },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tool(name: &str) -> Tool {
        Tool { name: name.to_owned(), description: None, parameters: None }
    }

    #[test]
    fn a_tool_that_cannot_be_called_is_refused_by_its_place() {
        for (tools, field) in [
            (vec![tool("a"), tool("")], "tools[1].name"),
            (vec![tool("a"), tool("b"), tool("a")], "tools[2].name"),
            (vec![tool("a b")], "tools[0].name"),
            (vec![tool(&"a".repeat(300))], "tools[0].name"),
            (vec![tool("a"); MAX_TOOLS + 1], "tools"),
        ] {
            assert_eq!(validate_tools("tools", &tools).unwrap_err().violations[0].field, field);
        }
        validate_tools("tools", &[tool("get_weather"), tool("math.add-2")]).unwrap();
    }

    #[test]
    fn a_call_gives_templates_its_arguments_as_a_value_where_they_are_one() {
        let call = |arguments: &str| ToolCall { id: "i".into(), name: "f".into(), arguments: arguments.into() };
        assert_eq!(call(r#"{"a": 1}"#).for_template()["function"]["arguments"]["a"], 1);
        assert_eq!(call("").for_template()["function"]["arguments"], serde_json::json!({}));
        assert_eq!(call("{oh").for_template()["function"]["arguments"], "{oh");
        assert_eq!(call(r#"{"a": 1}"#).arguments_object().unwrap()["a"], 1);
        assert!(call(" ").arguments_object().unwrap().is_empty());
        assert!(call("{oh").arguments_object().is_none() && call("[1]").arguments_object().is_none());
    }
}
