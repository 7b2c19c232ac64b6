//! What keywords' values must be, and which keywords cannot stand beside each other, because llguidance would follow less
//! than they say.

use serde_json::{Map, Value};

use super::Holds;

/// Up to here every whole number is a double of its own.
const EXACT: u64 = 1 << 53;
/// Rows of [`super::DIALECTS`]: the only one with `prefixItems`, and the only one without `const`.
const DRAFT_2020_12: usize = 0;
const DRAFT_4: usize = 4;
/// Keywords that llguidance applies one after another. What stands before one and what stands behind it do not know each
/// other.
const APPLIED: [&str; 6] = ["const", "enum", "allOf", "anyOf", "oneOf", "$ref"];

/// Checks the value of a keyword; what is wrong, to follow the keyword's name.
pub(super) fn value(holds: Holds, value: &Value) -> Result<(), String> {
    let texts = |value: &Value| value.as_array().is_some_and(|list| list.iter().all(Value::is_string));
    let (fits, what) = match holds {
        Holds::Note | Holds::Literal => (true, "anything"),
        Holds::Literals => (value.as_array().is_some_and(|list| !list.is_empty()), "a list of values, one at least"),
        Holds::Text => (value.is_string(), "a string"),
        Holds::Texts => (texts(value), "a list of strings"),
        Holds::TextOrTexts => (value.is_string() || texts(value), "a string or a list of strings"),
        Holds::Count => (value.is_u64(), "a whole number from 0"),
        Holds::Number => (value.is_number(), "a number"),
        Holds::Positive => (value.as_f64().is_some_and(|number| number > 0.0), "a number above 0"),
        Holds::NumberOrFlag => (value.is_number() || value.is_boolean(), "a number"),
        // Of schemas, whoever walks through them has seen the kind.
        Holds::Schema | Holds::List | Holds::Map | Holds::SchemaOrList | Holds::Root => {
            return Err("has a value of the wrong kind".to_owned());
        }
    };
    if !fits {
        return Err(format!("must be {what}"));
    }
    match holds {
        Holds::Note | Holds::Text | Holds::Texts | Holds::TextOrTexts => Ok(()),
        _ => literal(value),
    }
}

/// Checks that a value can be written as it is meant.
fn literal(value: &Value) -> Result<(), String> {
    match value {
        Value::Number(number) => {
            let whole = number.as_i64().map(i64::unsigned_abs).or(number.as_u64());
            let exact = whole.map_or_else(
                || number.as_f64().is_some_and(|number| number.abs() < EXACT as f64),
                |whole| whole <= EXACT,
            );
            if exact { Ok(()) } else { Err(format!("has the number {number}, beyond 2^53, which would be rounded")) }
        }
        Value::String(text) if text.chars().any(unwritten) => {
            Err("has a control character, which would need an escape with \\u: those are not written".to_owned())
        }
        Value::Array(list) => list.iter().try_for_each(literal),
        Value::Object(object) => object.values().try_for_each(literal),
        _ => Ok(()),
    }
}

/// Whether JSON writes a character with `\u` alone.
fn unwritten(c: char) -> bool {
    c.is_ascii_control() && !matches!(c, '\u{8}' | '\t' | '\n' | '\u{c}' | '\r')
}

/// Checks what the keywords of one schema say together; `dialect` is the row of the document's.
pub(super) fn together(object: &Map<String, Value>, dialect: usize) -> Result<(), String> {
    let has = |keyword: &str| object.contains_key(keyword);
    let tuple = object.get("items").is_some_and(Value::is_array);
    if has("const") && dialect == DRAFT_4 {
        return Err("the keyword \"const\" is none of draft 4".to_owned());
    }
    if has("prefixItems") && dialect != DRAFT_2020_12 {
        return Err("the keyword \"prefixItems\" is none of the dialect that \"$schema\" names".to_owned());
    }
    if has("prefixItems") && (has("additionalItems") || tuple) {
        return Err(
            "the keyword \"prefixItems\" is not followed beside \"additionalItems\" or a list of \"items\"".to_owned()
        );
    }
    let applied = APPLIED.into_iter().find(|keyword| has(keyword));
    if let Some(applied) = applied.filter(|_| tuple && has("additionalItems")) {
        return Err(format!("the keyword \"additionalItems\" is not followed beside {applied:?}"));
    }
    for (flag, bound) in [("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")] {
        if object.get(flag).is_some_and(Value::is_boolean) && (!has(bound) || applied.is_some()) {
            return Err(format!("the keyword {flag:?} is followed as true or false beside {bound:?} alone"));
        }
    }
    number_of_properties(object)
}

/// A name may come twice where it is not one of `properties`, so what comes more than once counts as one. What must be
/// there comes, whatever `maxProperties` says.
fn number_of_properties(object: &Map<String, Value>) -> Result<(), String> {
    let count = |keyword: &str| object.get(keyword).and_then(Value::as_u64);
    let (least, most) = (count("minProperties").unwrap_or(0), count("maxProperties"));
    let mut required: Vec<_> =
        object.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect();
    required.sort_unstable();
    required.dedup();
    if most.is_some_and(|most| most < least.max(required.len() as u64)) {
        return Err("the keyword \"maxProperties\" is less than what must be there".to_owned());
    }
    let patterns = object.get("patternProperties").and_then(Value::as_object).is_some_and(|map| !map.is_empty());
    let closed = object.get("additionalProperties") == Some(&Value::Bool(false)) && !patterns;
    if closed || least <= required.len() as u64 {
        return Ok(());
    }
    let why = "is followed up to the number of required names, or where no other names than those of \"properties\" are allowed";
    Err(format!("the keyword \"minProperties\" {why}"))
}
