//! What JSON takes in memory, where it is kept for longer than a call. Written out it can be a sixteenth of that: a zero of
//! a list is two bytes of text and a whole [`Value`] here.

use serde_json::{Map, Value};

/// Of an entry of a map beside its key's text and its value: the key's own place, its hash, and its place in the index.
const ENTRY_BYTES: usize = 48;

/// Bytes that a tree of values holds, its root included.
#[must_use]
pub fn json_bytes(value: &Value) -> usize {
    let below = match value {
        Value::String(text) => text.len(),
        Value::Array(list) => list.iter().map(json_bytes).sum(),
        Value::Object(map) => json_map_bytes(map),
        Value::Null | Value::Bool(_) | Value::Number(_) => 0,
    };
    size_of::<Value>() + below
}

/// The same of the entries of a map.
#[must_use]
pub fn json_map_bytes(map: &Map<String, Value>) -> usize {
    map.iter().map(|(key, value)| ENTRY_BYTES + key.len() + json_bytes(value)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_small_values_count_as_what_they_take_and_not_as_what_they_look_like() {
        let zeros: Value = vec![0; 1000].into();
        assert!(json_bytes(&zeros) >= 1000 * size_of::<Value>());
        let nested = serde_json::json!({"a": [{"b": "x".repeat(500)}]});
        assert!(json_bytes(&nested) > 500 + 4 * size_of::<Value>());
    }
}
