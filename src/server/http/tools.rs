//! Tools as requests of OpenAI's and Ollama's APIs offer them.

use std::sync::Arc;

use serde::Deserialize;

use crate::{
    error::{Error, Result},
    server::backend::cut,
    text::Tool,
};

/// An entry of `tools`.
#[derive(Debug, Deserialize)]
pub(crate) struct OfferedTool {
    #[serde(default, rename = "type")]
    kind: Option<String>,
    function: Tool,
}

/// The functions of a list of tools.
///
/// # Errors
/// `InvalidArgument` by the path of one that is no function.
pub(crate) fn offered(tools: Vec<OfferedTool>) -> Result<Arc<[Tool]>> {
    let function = |(k, tool): (usize, OfferedTool)| {
        check_kind(k, tool.kind.as_deref())?;
        Ok(tool.function)
    };
    tools.into_iter().enumerate().map(function).collect()
}

/// Refuses a tool of a kind that is not offered.
///
/// # Errors
/// `InvalidArgument` by its path.
pub(crate) fn check_kind(k: usize, kind: Option<&str>) -> Result<()> {
    match kind.filter(|&kind| kind != "function") {
        Some(kind) => {
            Err(Error::invalid(format!("tools[{k}].type"), format!("is {:?}, must be function", cut(kind, 64))))
        }
        None => Ok(()),
    }
}
