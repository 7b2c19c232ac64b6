//! Formats that llguidance follows less closely than they are defined: what has to be said beside them.
//!
//! Its expressions for dates know no leap years, those for times take any leap second, and its host names have labels of
//! the right length but no bound on the whole.

use serde_json::{Map, Value, json};

/// A day that there is, without the year 0000, which validators disagree on.
const DAY: &str = concat!(
    "(?:(?:[0-9]{3}[1-9]|[0-9]{2}[1-9]0|[0-9][1-9]00|[1-9]000)",
    "-(?:(?:0[13-9]|1[0-2])-[0-9]{2}|02-(?:[01][0-9]|2[0-8]))",
    // The years of 29 February.
    "|(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)-02-29)",
);
/// A time without a leap second: which ones there were is not for a grammar to know.
const TIME: &str = "[0-9]{2}:[0-9]{2}:[0-5]";
/// RFC 1034, section 3.1: 255 octets on the wire, of which two are not in the text.
const MAX_HOSTNAME: u64 = 253;

/// What a string must be besides what llguidance takes for this format.
fn besides(format: &str) -> Option<Value> {
    Some(match format {
        "date" => json!({ "pattern": format!("^{DAY}") }),
        "time" => json!({ "pattern": format!("^{TIME}") }),
        "date-time" => json!({ "pattern": format!("^{DAY}[tT]{TIME}") }),
        "hostname" => json!({ "maxLength": MAX_HOSTNAME }),
        _ => return None,
    })
}

/// Says the rest of a schema's format, if it has one that needs it.
pub(super) fn complete(schema: &mut Map<String, Value>) {
    let Some(rest) = schema.get("format").and_then(Value::as_str).and_then(besides) else { return };
    // What is no list here, the walk through the keywords refuses.
    if let Value::Array(list) = schema.entry("allOf").or_insert_with(|| json!([])) {
        list.push(rest);
    }
}

#[cfg(test)]
mod tests {
    use regex_automata::meta::Regex;

    use super::*;

    #[test]
    fn the_days_are_those_of_the_calendar() {
        let day = Regex::new(&format!("^{DAY}$")).unwrap();
        for (text, exists) in [
            ("2024-02-29", true),
            ("2000-02-29", true),
            ("0004-02-29", true),
            ("1900-02-29", false),
            ("2023-02-29", false),
            ("0000-02-29", false),
            ("0000-01-01", false),
            ("0010-12-31", true),
            ("1000-03-01", true),
            ("0100-02-28", true),
        ] {
            assert_eq!(day.is_match(text), exists, "{text}");
        }
    }

    #[test]
    fn what_a_format_leaves_open_is_said_beside_what_a_schema_says() {
        let mut schema = json!({"format": "hostname", "allOf": [{"minLength": 3}]});
        complete(schema.as_object_mut().unwrap());
        assert_eq!(schema["allOf"], json!([{"minLength": 3}, {"maxLength": 253}]));
        let mut other = json!({"format": "uuid"});
        complete(other.as_object_mut().unwrap());
        assert!(other.get("allOf").is_none());
    }
}
