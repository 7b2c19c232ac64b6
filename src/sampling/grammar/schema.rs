//! The check of a JSON schema before it is compiled: every keyword is one that is enforced, or says nothing about values.
//!
//! JSON Schema asks validators to pass over keywords that they do not know. Here that would be a promise not kept, so
//! whatever is neither enforced nor an annotation is refused by name and place.

use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// Schemas within schemas.
const MAX_DEPTH: usize = 64;
/// Schemas in one, a bound on the work.
const MAX_SUBSCHEMAS: usize = 10_000;

/// What a keyword's value holds.
#[derive(Clone, Copy, PartialEq)]
enum Holds {
    /// No schema.
    Value,
    /// A schema.
    Schema,
    /// A list of schemas.
    List,
    /// Schemas by name.
    Map,
    /// A schema, or a list of them.
    SchemaOrList,
    /// Allowed at the root only.
    Root,
}

/// Every keyword that may appear.
const KEYWORDS: &[(&str, Holds)] = &[
    // Enforced.
    ("type", Holds::Value),
    ("const", Holds::Value),
    ("enum", Holds::Value),
    ("$ref", Holds::Value),
    ("anyOf", Holds::List),
    ("oneOf", Holds::List),
    ("allOf", Holds::List),
    ("properties", Holds::Map),
    ("patternProperties", Holds::Map),
    ("additionalProperties", Holds::Schema),
    ("required", Holds::Value),
    ("minProperties", Holds::Value),
    ("maxProperties", Holds::Value),
    ("items", Holds::SchemaOrList),
    ("prefixItems", Holds::List),
    ("additionalItems", Holds::Schema),
    ("minItems", Holds::Value),
    ("maxItems", Holds::Value),
    ("minLength", Holds::Value),
    ("maxLength", Holds::Value),
    ("pattern", Holds::Value),
    ("format", Holds::Value),
    ("minimum", Holds::Value),
    ("maximum", Holds::Value),
    ("exclusiveMinimum", Holds::Value),
    ("exclusiveMaximum", Holds::Value),
    ("multipleOf", Holds::Value),
    // Where other schemas stand.
    ("$defs", Holds::Map),
    ("definitions", Holds::Map),
    ("$schema", Holds::Root),
    ("$id", Holds::Root),
    ("id", Holds::Root),
    // Annotations: they say nothing about which values are valid.
    ("title", Holds::Value),
    ("description", Holds::Value),
    ("default", Holds::Value),
    ("example", Holds::Value),
    ("examples", Holds::Value),
    ("deprecated", Holds::Value),
    ("readOnly", Holds::Value),
    ("writeOnly", Holds::Value),
    ("$comment", Holds::Value),
    ("contentMediaType", Holds::Value),
    ("contentEncoding", Holds::Value),
    ("discriminator", Holds::Value),
];

/// Annotations that llguidance takes for unsupported assertions.
const DROPPED: &[&str] = &["deprecated", "example", "discriminator"];

/// The dialects whose keywords the table has.
const DIALECTS: &[&str] = &[
    "https://json-schema.org/draft/2020-12/schema",
    "https://json-schema.org/draft/2019-09/schema",
    "http://json-schema.org/draft-07/schema",
    "http://json-schema.org/draft-06/schema",
    "http://json-schema.org/draft-04/schema",
];

/// Reads and checks a schema.
///
/// # Errors
/// `InvalidArgument` for `field`, naming the keyword and where it stands.
pub(super) fn parse(field: &str, text: &str) -> Result<Value> {
    let mut schema: Value =
        serde_json::from_str(text).map_err(|error| Error::invalid(field, format!("is not JSON: {error}")))?;
    check(field, &mut schema)?;
    Ok(schema)
}

/// Checks a schema that was read before, and takes out annotations that mean nothing here.
///
/// # Errors
/// As [`parse`].
pub(super) fn check(field: &str, schema: &mut Value) -> Result<()> {
    Check { field, place: "#".to_owned(), depth: 0, left: MAX_SUBSCHEMAS }.schema(schema)
}

struct Check<'a> {
    field: &'a str,
    /// Where the walk is, as a JSON pointer.
    place: String,
    depth: usize,
    left: usize,
}

impl Check<'_> {
    fn refuse<T>(&self, why: impl std::fmt::Display) -> Result<T> {
        Err(Error::invalid(self.field, format!("at {}: {why}", self.place)))
    }

    fn schema(&mut self, schema: &mut Value) -> Result<()> {
        if self.depth > MAX_DEPTH {
            return self.refuse(format_args!("schemas are nested more than {MAX_DEPTH} deep"));
        }
        self.left = match self.left.checked_sub(1) {
            Some(left) => left,
            None => return self.refuse(format_args!("there are more than {MAX_SUBSCHEMAS} schemas")),
        };
        let object = match schema {
            Value::Bool(_) => return Ok(()),
            Value::Object(object) => object,
            _ => return self.refuse("a schema must be an object, true or false"),
        };
        object.retain(|keyword, _| {
            !DROPPED.contains(&keyword.as_str()) && (!keyword.starts_with("x-") || keyword == "x-guidance")
        });
        for (keyword, value) in object.iter_mut() {
            let Some((_, holds)) = KEYWORDS.iter().find(|(name, _)| name == keyword) else {
                return self.refuse(format_args!("the keyword {keyword:?} is not supported"));
            };
            match (holds, value) {
                (Holds::Value, _) => {}
                (Holds::Root, _) if self.depth > 0 => {
                    return self.refuse(format_args!("the keyword {keyword:?} is supported at the root only"));
                }
                (Holds::Root, value) => self.root_keyword(keyword, value)?,
                (Holds::Schema | Holds::SchemaOrList, value @ (Value::Object(_) | Value::Bool(_))) => {
                    self.below(keyword, |check| check.schema(value))?;
                }
                (Holds::List | Holds::SchemaOrList, Value::Array(list)) => self.list(keyword, list)?,
                (Holds::Map, Value::Object(map)) => self.map(keyword, map)?,
                (_, _) => return self.refuse(format_args!("the keyword {keyword:?} has a value of the wrong kind")),
            }
        }
        Ok(())
    }

    fn root_keyword(&self, keyword: &str, value: &Value) -> Result<()> {
        let known = |uri: &str| DIALECTS.contains(&uri.trim_end_matches('#'));
        match keyword {
            "$schema" if !value.as_str().is_some_and(known) => {
                self.refuse(format_args!("the keyword \"$schema\" names a dialect that is not supported: {value}"))
            }
            _ => Ok(()),
        }
    }

    fn list(&mut self, keyword: &str, list: &mut [Value]) -> Result<()> {
        self.below(keyword, |check| {
            list.iter_mut().enumerate().try_for_each(|(k, schema)| check.below(&k.to_string(), |c| c.schema(schema)))
        })
    }

    fn map(&mut self, keyword: &str, map: &mut Map<String, Value>) -> Result<()> {
        self.below(keyword, |check| {
            map.iter_mut().try_for_each(|(name, schema)| {
                check.below(&name.replace('~', "~0").replace('/', "~1"), |check| check.schema(schema))
            })
        })
    }

    /// One step down the tree.
    fn below(&mut self, name: &str, walk: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        let len = self.place.len();
        self.place.push('/');
        self.place.extend(name.chars().take(64));
        self.depth += 1;
        walk(self)?;
        self.depth -= 1;
        self.place.truncate(len);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn refused(schema: &Value) -> String {
        parse("f", &schema.to_string()).unwrap_err().message
    }

    #[test]
    fn a_keyword_that_is_not_enforced_is_named_with_its_place() {
        let schema =
            json!({"type": "object", "properties": {"a/b": {"type": "array", "items": {"uniqueItems": true}}}});
        assert_eq!(refused(&schema), r##"f: at #/properties/a~1b/items: the keyword "uniqueItems" is not supported"##);
        for keyword in
            ["not", "if", "then", "else", "contains", "dependentRequired", "dependentSchemas", "dependencies"]
                .into_iter()
                .chain([
                    "propertyNames",
                    "unevaluatedProperties",
                    "unevaluatedItems",
                    "$dynamicRef",
                    "$anchor",
                    "nullable",
                ])
                .chain(["minContains", "maxContains", "typo", "x-guidance"])
        {
            for schema in
                [json!({keyword: {}}), json!({"anyOf": [{keyword: {}}]}), json!({"$defs": {"d": {keyword: 1}}})]
            {
                assert!(refused(&schema).contains(&format!("{keyword:?} is not supported")), "{schema}");
            }
        }
    }

    #[test]
    fn values_are_not_taken_for_schemas() {
        let schema = json!({
            "enum": [{"not": 1}], "const": {"if": 2}, "default": {"typo": 3}, "examples": [{"not": 1}],
            "properties": {"not": {"type": "null"}}, "x-vendor": {"not": 1}, "deprecated": true
        });
        let checked = parse("f", &schema.to_string()).unwrap();
        assert!(checked.get("deprecated").is_none() && checked.get("x-vendor").is_none());
    }

    #[test]
    fn depth_and_number_of_schemas_are_bounded() {
        let mut deep = json!({});
        for _ in 0..60 {
            deep = json!({"items": deep});
        }
        assert!(parse("f", &deep.to_string()).is_ok());
        for _ in 0..10 {
            deep = json!({"items": deep});
        }
        assert!(refused(&deep).contains("nested more than 64 deep"));
        let wide = json!({"anyOf": vec![json!({}); MAX_SUBSCHEMAS]});
        assert!(refused(&wide).contains("more than 10000 schemas"));
        assert!(parse("f", &"[".repeat(100_000)).unwrap_err().message.contains("not JSON"));
    }

    #[test]
    fn what_is_no_schema_is_refused_where_it_stands() {
        assert!(refused(&json!({"properties": {"a": 1}})).contains("#/properties/a: a schema must be"));
        assert!(refused(&json!({"properties": []})).contains("\"properties\" has a value of the wrong kind"));
        assert!(refused(&json!({"$schema": "urn:mine"})).contains("dialect"));
        assert!(refused(&json!({"items": {"$id": "x"}})).contains("at the root only"));
        assert!(parse("f", "true").is_ok());
    }
}
