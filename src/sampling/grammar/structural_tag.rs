//! Structural tags as a Lark grammar: free text, in which a trigger begins a tag that holds JSON of a schema.

use serde::Deserialize;
use serde_json::Value;

use super::{compiler::quoted, schema};
use crate::error::{Error, Result};

/// Tags a request.
const MAX_TAGS: usize = 128;

/// The form that vLLM calls `structural_tag`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StructuralTag {
    #[serde(rename = "type", default)]
    kind: Option<String>,
    structures: Vec<Structure>,
    triggers: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Structure {
    begin: String,
    schema: Value,
    end: String,
}

/// The grammar. `wrap` adds what the schema needs to know of white space.
///
/// # Errors
/// `InvalidArgument` for `field`.
pub(super) fn to_lark(field: &str, text: &str, wrap: &dyn Fn(Value) -> Value) -> Result<String> {
    let refuse = |why: String| Err(Error::invalid(field, why));
    let StructuralTag { kind, structures, triggers } =
        serde_json::from_str(text).map_err(|error| Error::invalid(field, format!("is no structural tag: {error}")))?;
    if kind.as_deref().is_some_and(|kind| kind != "structural_tag") {
        return refuse("has a type other than \"structural_tag\"".into());
    }
    if structures.is_empty() || structures.len() > MAX_TAGS || triggers.is_empty() || triggers.len() > MAX_TAGS {
        return refuse(format!("must have 1 to {MAX_TAGS} structures and as many triggers"));
    }
    if triggers.iter().any(String::is_empty) {
        return refuse("has an empty trigger".into());
    }
    let any_trigger = triggers.iter().map(|trigger| escaped(trigger)).collect::<Vec<_>>().join("|");
    let mut lark = String::from("start: tag* rest\n");
    lark += &format!("rest: TEXT |\nTEXT: /(.|\\n)+/ & ~/(.|\\n)*({any_trigger})(.|\\n)*/\n");
    let mut tags = Vec::new();
    for (k, mut structure) in structures.into_iter().enumerate() {
        // The longest trigger that begins it.
        let trigger = triggers.iter().enumerate().filter(|(_, trigger)| structure.begin.starts_with(trigger.as_str()));
        let Some((t, trigger)) = trigger.max_by_key(|(_, trigger)| trigger.len()) else {
            return refuse(format!("structures[{k}].begin starts with none of the triggers"));
        };
        schema::check(&format!("{field}.structures[{k}].schema"), &mut structure.schema)?;
        let literal = |text: &str| if text.is_empty() { String::new() } else { format!("{} ", quoted(text)) };
        let (after, end) = (literal(&structure.begin[trigger.len()..]), literal(&structure.end));
        lark += &format!("tag_{k}: trigger_{t} {after}%json {} {end}\n", wrap(structure.schema));
        tags.push(format!("tag_{k}"));
    }
    for (t, trigger) in triggers.iter().enumerate() {
        // Lazy: the trigger is over as soon as it is complete, whatever text might have gone on.
        lark += &format!("trigger_{t}[lazy]: /(.|\\n)*{}/\n", escaped(trigger));
    }
    lark += &format!("tag: {}\n", tags.join(" | "));
    Ok(lark)
}

/// A text as a regular expression between slashes that matches it alone.
fn escaped(text: &str) -> String {
    text.chars()
        .map(|c| match c {
            '\n' => "\\n".into(),
            // A bracket with a backslash would be the edge of a word.
            c if c.is_ascii_alphanumeric() || !c.is_ascii() || matches!(c, '<' | '>') => c.to_string(),
            c if c.is_ascii_graphic() => format!("\\{c}"),
            c => format!("\\x{:02x}", c as u32),
        })
        .collect()
}
