//! The check of a JSON schema before it is compiled: every keyword is one that is enforced, or says nothing about values.
//!
//! JSON Schema asks validators to pass over keywords that they do not know. Here that would be a promise not kept, so
//! whatever is neither enforced nor an annotation is refused by name and place.

mod formats;
mod references;
mod rules;

use std::collections::BTreeSet;

use serde_json::{Deserializer, Map, Value};

use self::references::References;
use crate::error::{Error, Result};

/// Schemas within schemas.
const MAX_DEPTH: usize = 64;
/// Schemas in one, a bound on the work.
const MAX_SUBSCHEMAS: usize = 10_000;
/// Patterns of one object's names. llguidance looks at each pair of them, so that no name falls under two.
const MAX_PATTERNS: usize = 32;
/// Pairs of patterns, times the schemas that may join their objects to others, times bytes of the patterns: what may be
/// spent on looking at pairs again and again.
const MAX_PATTERN_WORK: usize = 128 << 20;

/// What a keyword's value holds.
#[derive(Clone, Copy, PartialEq)]
enum Holds {
    /// Anything: it says nothing about values.
    Note,
    /// A value that is meant as it stands.
    Literal,
    /// A list of such values.
    Literals,
    /// A string.
    Text,
    /// A list of strings.
    Texts,
    /// A string or a list of strings.
    TextOrTexts,
    /// A whole number from 0.
    Count,
    /// A number.
    Number,
    /// A number above 0.
    Positive,
    /// A number; in draft 4 true or false.
    NumberOrFlag,
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
    ("type", Holds::TextOrTexts),
    ("const", Holds::Literal),
    ("enum", Holds::Literals),
    ("$ref", Holds::Text),
    ("anyOf", Holds::List),
    ("oneOf", Holds::List),
    ("allOf", Holds::List),
    ("properties", Holds::Map),
    ("patternProperties", Holds::Map),
    ("additionalProperties", Holds::Schema),
    ("required", Holds::Texts),
    ("minProperties", Holds::Count),
    ("maxProperties", Holds::Count),
    ("items", Holds::SchemaOrList),
    ("prefixItems", Holds::List),
    ("additionalItems", Holds::Schema),
    ("minItems", Holds::Count),
    ("maxItems", Holds::Count),
    ("minLength", Holds::Count),
    ("maxLength", Holds::Count),
    ("pattern", Holds::Text),
    ("format", Holds::Text),
    ("minimum", Holds::Number),
    ("maximum", Holds::Number),
    ("exclusiveMinimum", Holds::NumberOrFlag),
    ("exclusiveMaximum", Holds::NumberOrFlag),
    ("multipleOf", Holds::Positive),
    // Where other schemas stand.
    ("$defs", Holds::Map),
    ("definitions", Holds::Map),
    ("$schema", Holds::Root),
    ("$id", Holds::Root),
    ("id", Holds::Root),
    // Annotations: they say nothing about which values are valid.
    ("title", Holds::Note),
    ("description", Holds::Note),
    ("default", Holds::Note),
    ("example", Holds::Note),
    ("examples", Holds::Note),
    ("deprecated", Holds::Note),
    ("readOnly", Holds::Note),
    ("writeOnly", Holds::Note),
    ("$comment", Holds::Note),
    ("contentMediaType", Holds::Note),
    ("contentEncoding", Holds::Note),
    ("discriminator", Holds::Note),
];

/// Annotations that llguidance takes for unsupported assertions.
const DROPPED: &[&str] = &["deprecated", "example", "discriminator"];

/// The dialects whose keywords the table has, the newest first.
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

/// Checks a schema that was read before, takes out annotations that mean nothing here, and says what llguidance would
/// leave open or not find.
///
/// # Errors
/// As [`parse`].
pub(super) fn check(field: &str, schema: &mut Value) -> Result<()> {
    let mut check = Check::new(field, true);
    check.document(schema)?;
    check.finish()
}

/// Checks the schemas that a Lark grammar has in it (`%json {…}`), those of a tool's arguments among them. Keywords that the
/// table does not have are llguidance's to judge here.
///
/// # Errors
/// As [`parse`].
pub(super) fn check_embedded(field: &str, grammar: &str) -> Result<()> {
    const MARK: &str = "%json";
    let mut check = Check::new(field, false);
    let mut rest = grammar;
    while let Some(at) = rest.find(MARK) {
        rest = &rest[at + MARK.len()..];
        // Nothing is skipped: in a literal the mark stands for itself, and what seems to be its schema may hold a true one.
        if let Some(Ok(Value::Object(mut object))) = Deserializer::from_str(rest).into_iter().next() {
            object.remove("x-guidance");
            check.document(&mut Value::Object(object))?;
        }
    }
    check.finish()
}

struct Check<'a> {
    field: &'a str,
    /// A keyword that the table does not have is refused.
    strict: bool,
    /// Where the walk is, as a JSON pointer.
    place: String,
    depth: usize,
    left: usize,
    /// The row of [`DIALECTS`].
    dialect: usize,
    /// Of the document that is walked through.
    references: References,
    /// All patterns of names.
    patterns: BTreeSet<String>,
    /// Schemas that join others, and so may have their patterns looked at once more.
    joins: usize,
}

impl<'a> Check<'a> {
    fn new(field: &'a str, strict: bool) -> Self {
        Self {
            field,
            strict,
            place: "#".to_owned(),
            depth: 0,
            left: MAX_SUBSCHEMAS,
            dialect: 0,
            references: References::of(&Value::Null),
            patterns: BTreeSet::new(),
            joins: 0,
        }
    }

    /// A whole schema.
    fn document(&mut self, schema: &mut Value) -> Result<()> {
        let dialect = schema.get("$schema").and_then(Value::as_str).map(|uri| uri.trim_end_matches('#'));
        let row = DIALECTS.iter().position(|known| Some(*known) == dialect);
        self.dialect = row.unwrap_or(0);
        self.references = References::of(schema);
        self.schema(schema)?;
        self.references.rename(schema);
        Ok(())
    }

    /// What only all schemas together can say.
    fn finish(self) -> Result<()> {
        let pairs = self.patterns.len() * self.patterns.len().saturating_sub(1) / 2;
        let bytes = self.patterns.iter().map(|pattern| 64 + pattern.len()).sum::<usize>();
        if pairs.saturating_mul(1 + self.joins).saturating_mul(bytes) > MAX_PATTERN_WORK {
            let why = format!("there are too many patternProperties ({}) for so large a schema", self.patterns.len());
            return self.refuse(why);
        }
        Ok(())
    }

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
        if let Err(why) = rules::together(object, self.dialect) {
            return self.refuse(why);
        }
        formats::complete(object);
        for (keyword, value) in object.iter_mut() {
            let Some((_, holds)) = KEYWORDS.iter().find(|(name, _)| name == keyword) else {
                if self.strict {
                    return self.refuse(format_args!("the keyword {keyword:?} is not supported"));
                }
                continue;
            };
            match (holds, value) {
                (Holds::Root, _) if self.depth > 0 && self.strict => {
                    return self.refuse(format_args!("the keyword {keyword:?} is supported at the root only"));
                }
                (Holds::Root, value) => self.root_keyword(keyword, value)?,
                (Holds::Schema | Holds::SchemaOrList, value @ (Value::Object(_) | Value::Bool(_))) => {
                    self.below(keyword, |check| check.schema(value))?;
                }
                (Holds::List | Holds::SchemaOrList, Value::Array(list)) => {
                    self.joins += list.len();
                    self.list(keyword, list)?;
                }
                (Holds::Map, Value::Object(map)) => self.map(keyword, map)?,
                (Holds::Text, Value::String(reference)) if keyword == "$ref" => {
                    self.joins += 1;
                    if let Some(rewritten) = self.references.rewritten(reference) {
                        *reference = rewritten;
                    }
                }
                (holds, value) => {
                    if let Err(why) = rules::value(*holds, value) {
                        return self.refuse(format_args!("the keyword {keyword:?} {why}"));
                    }
                }
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
        if keyword == "patternProperties" {
            if map.len() > MAX_PATTERNS {
                let why =
                    format!("the keyword {keyword:?} has {} patterns, at most {MAX_PATTERNS} are allowed", map.len());
                return self.refuse(why);
            }
            self.patterns.extend(map.keys().cloned());
        }
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

    #[test]
    fn a_value_of_another_kind_is_refused_where_it_stands() {
        for schema in [
            json!({"type": 3}),
            json!({"type": ["string", 3]}),
            json!({"enum": {}}),
            json!({"enum": []}),
            json!({"$ref": 3}),
            json!({"required": "a"}),
            json!({"required": [1]}),
            json!({"minItems": -1}),
            json!({"maxLength": "3"}),
            json!({"maxProperties": 1.5}),
            json!({"pattern": 3}),
            json!({"format": ["date"]}),
            json!({"minimum": "3"}),
            json!({"exclusiveMinimum": "3"}),
            json!({"multipleOf": 0}),
            json!({"multipleOf": -2}),
        ] {
            let keyword = schema.as_object().unwrap().keys().next().unwrap();
            let why = refused(&json!({"items": schema}));
            assert!(why.starts_with(&format!("f: at #/items: the keyword {keyword:?} must be")), "{why}");
        }
    }

    #[test]
    fn numbers_that_would_be_rounded_are_refused_where_they_stand() {
        const BEYOND: u64 = (1 << 53) + 1;
        for schema in [
            json!({"const": BEYOND}),
            json!({"const": {"a": [1, -(BEYOND as i64)]}}),
            json!({"enum": [1, BEYOND]}),
            json!({"minimum": -(BEYOND as i64)}),
            json!({"maximum": u64::MAX}),
            json!({"exclusiveMaximum": i64::MAX}),
            json!({"multipleOf": BEYOND}),
            json!({"maximum": 1e300}),
        ] {
            let why = refused(&json!({"properties": {"n": schema}}));
            assert!(why.starts_with("f: at #/properties/n: the keyword") && why.contains("2^53"), "{why}");
        }
        let most = json!({"const": 1_u64 << 53, "minimum": -(1_i64 << 53), "maximum": 9.5e15 / 2.0});
        assert!(parse("f", &most.to_string()).is_ok());
    }

    #[test]
    fn patterns_of_names_are_bounded_in_an_object_and_in_all() {
        let patterns = |from: usize, to: usize| (from..to).map(|k| (format!("^p{k}_"), json!({}))).collect::<Value>();
        let object = |count: usize| json!({"patternProperties": patterns(0, count)});
        assert!(parse("f", &object(32).to_string()).is_ok());
        assert!(refused(&object(33)).contains("33 patterns, at most 32 are allowed"));
        let all: Vec<_> = (0..20).map(|k| json!({"patternProperties": patterns(10 * k, 10 * k + 10)})).collect();
        assert!(refused(&json!({"allOf": all})).contains("too many patternProperties (200)"));
        // One and the same everywhere, as in descriptions of interfaces, is no pair.
        let same: Vec<_> = (0..500).map(|_| object(1)).collect();
        assert!(parse("f", &json!({"anyOf": same}).to_string()).is_ok());
    }

    #[test]
    fn what_would_be_dropped_in_silence_is_refused() {
        let tuple = json!([{"type": "string"}]);
        for (schema, keyword) in [
            (json!({"prefixItems": tuple, "additionalItems": false}), "prefixItems"),
            (json!({"prefixItems": tuple, "items": tuple}), "prefixItems"),
            (json!({"$schema": "http://json-schema.org/draft-07/schema#", "prefixItems": tuple}), "prefixItems"),
            (
                json!({"$schema": "https://json-schema.org/draft/2019-09/schema", "items": {"prefixItems": tuple}}),
                "prefixItems",
            ),
            (json!({"$schema": "http://json-schema.org/draft-04/schema#", "properties": {"a": {"const": 1}}}), "const"),
            (json!({"additionalItems": false, "anyOf": [{}], "items": tuple}), "additionalItems"),
            (json!({"exclusiveMinimum": true}), "exclusiveMinimum"),
            (json!({"exclusiveMinimum": true, "allOf": [{}], "minimum": 3}), "exclusiveMinimum"),
            (json!({"type": "object", "minProperties": 1}), "minProperties"),
            (json!({"minProperties": 2, "required": ["a", "a"]}), "minProperties"),
            (json!({"maxProperties": 1, "required": ["a", "b"]}), "maxProperties"),
            (json!({"maxProperties": 1, "minProperties": 2, "additionalProperties": false}), "maxProperties"),
            (
                json!({"minProperties": 1, "additionalProperties": false, "patternProperties": {"^a": {}}}),
                "minProperties",
            ),
            (json!({"const": "\u{1b}[0m"}), "const"),
            (json!({"enum": [{"a": "\u{7f}"}]}), "enum"),
        ] {
            assert!(refused(&schema).contains(&format!("the keyword {keyword:?} ")), "{schema}: {}", refused(&schema));
        }
        for schema in [
            json!({"prefixItems": tuple, "items": false}),
            json!({"items": tuple, "additionalItems": false}),
            json!({"$schema": "http://json-schema.org/draft-04/schema#", "minimum": 1, "exclusiveMinimum": true}),
            json!({"minProperties": 1, "required": ["a"]}),
            json!({"minProperties": 1, "properties": {"a": {}, "b": {}}, "additionalProperties": false}),
            json!({"const": "tab\tand\nline"}),
        ] {
            parse("f", &schema.to_string()).unwrap_or_else(|error| panic!("{schema}: {error}"));
        }
    }

    #[test]
    fn schemas_inside_a_grammar_are_checked_as_well() {
        let refused = |lark: &str| check_embedded("f", lark).err().map(|error| error.message).unwrap_or_default();
        let many: Value = (0..40).map(|k| (format!("^p{k}"), json!({}))).collect();
        let lark = format!(
            r#"start: a b
            a: "%json" %json {{"x-guidance": {{}}, "type": "object", "title": "%json"}}
            b: %json {}"#,
            json!({"items": {"patternProperties": many}})
        );
        assert!(refused(&lark).contains("at #/items: the keyword \"patternProperties\" has 40"), "{}", refused(&lark));
        assert_eq!(refused(r#"start: %json {"vendor": 1, "properties": {"a": {"nullable": true}}} "%json""#), "");
    }
}
