//! References as llguidance reads them: names between slashes, with nothing escaped.
//!
//! A `$ref` is a JSON pointer in a URI (RFC 6901, section 6): `%25` is `%`, `~0` is `~`, `~1` is `/`. The first two are
//! written out. A definition whose name has a slash in it cannot be reached at all, so it gets another name.

use std::{collections::HashSet, iter};

use serde_json::{Map, Value};

/// Where definitions stand.
const DEFINITIONS: [&str; 2] = ["$defs", "definitions"];
/// Stands for a slash in the names of definitions where the document has it nowhere.
const DIVISION_SLASH: char = '\u{2215}';
/// Stand for it where it has: they are for private use, and more of them than any document that is read has room for.
const OTHERS: std::ops::RangeInclusive<char> = '\u{f0000}'..='\u{10fffd}';

/// How the references of one document are written.
pub(super) struct References {
    /// In place of a slash in a definition's name; none where no definition has one.
    slash: Option<char>,
}

impl References {
    /// Looks at the names of the document's definitions.
    pub(super) fn of(document: &Value) -> Self {
        let has_slash = definitions(document).any(|map| map.keys().any(|name| name.contains('/')));
        let unused = || {
            let used: HashSet<char> = document.to_string().chars().collect();
            iter::once(DIVISION_SLASH).chain(OTHERS).find(|slash| !used.contains(slash))
        };
        Self { slash: has_slash.then(unused).flatten() }
    }

    /// The same place, as llguidance names it. What is no pointer into the document stays as it is.
    pub(super) fn rewritten(&self, reference: &str) -> Option<String> {
        if !reference.contains(['%', '~']) {
            return None;
        }
        let segments = reference.strip_prefix("#/")?.split('/');
        let mut segments = segments.map(|segment| unescaped(&percent_decoded(segment)?)).collect::<Option<Vec<_>>>()?;
        let in_definitions = segments.first().is_some_and(|first| DEFINITIONS.contains(&first.as_str()));
        if let (true, Some(name), Some(slash)) = (in_definitions, segments.get_mut(1), self.slash) {
            *name = renamed(name, slash);
        }
        let reachable = !segments.iter().any(|segment| segment.contains('/'));
        reachable.then(|| format!("#/{}", segments.join("/")))
    }

    /// Gives definitions with slashes in their names the names that [`rewritten`](Self::rewritten) calls them by.
    pub(super) fn rename(&self, document: &mut Value) {
        let (Some(slash), Some(document)) = (self.slash, document.as_object_mut()) else { return };
        for key in DEFINITIONS {
            if let Some(Value::Object(map)) = document.get_mut(key) {
                *map = std::mem::take(map).into_iter().map(|(name, schema)| (renamed(&name, slash), schema)).collect();
            }
        }
    }
}

/// A definition's name with something else for its slashes.
fn renamed(name: &str, slash: char) -> String {
    name.chars().map(|c| if c == '/' { slash } else { c }).collect()
}

fn definitions(document: &Value) -> impl Iterator<Item = &Map<String, Value>> {
    DEFINITIONS.iter().filter_map(|key| document.get(key)?.as_object())
}

/// `%` and two hexadecimal digits are a byte.
fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = text.bytes();
    let mut decoded = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'%' => {
                let mut digit = || char::from(bytes.next()?).to_digit(16);
                u8::try_from(digit()? * 16 + digit()?).ok()?
            }
            other => other,
        });
    }
    String::from_utf8(decoded).ok()
}

/// `~0` is `~`, `~1` is `/`, and nothing else may follow a `~`.
fn unescaped(text: &str) -> Option<String> {
    let mut chars = text.chars();
    let mut name = String::with_capacity(text.len());
    while let Some(c) = chars.next() {
        name.push(match c {
            '~' => match chars.next()? {
                '0' => '~',
                '1' => '/',
                _ => return None,
            },
            other => other,
        });
    }
    Some(name)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_pointer_is_written_without_escapes() {
        let plain = References::of(&json!({"$defs": {"a": {}}}));
        for (reference, expected) in [
            ("#/$defs/t~0x", Some("#/$defs/t~x")),
            ("#/$defs/per%25cent/items", Some("#/$defs/per%cent/items")),
            ("#/%24defs/%C3%A9", Some("#/$defs/é")),
            ("#/$defs/a", None),
            ("#", None),
            // Not to be reached, or no pointer: left for the refusal to name.
            ("#/properties/a~1b", None),
            ("#/$defs/a~2", None),
            ("#/$defs/a%2", None),
            ("#/$defs/%FF", None),
            ("http://x/%41", None),
        ] {
            assert_eq!(plain.rewritten(reference).as_deref(), expected, "{reference}");
        }
    }

    #[test]
    fn a_definition_with_a_slash_gets_a_name_that_no_other_has() {
        let mut document = json!({"definitions": {"a/b": {"type": "null"}, "a\u{2215}b": {"type": "string"}}});
        let references = References::of(&document);
        assert_eq!(references.rewritten("#/definitions/a~1b").unwrap(), "#/definitions/a\u{f0000}b");
        references.rename(&mut document);
        let renamed = json!({"a\u{f0000}b": {"type": "null"}, "a\u{2215}b": {"type": "string"}});
        assert_eq!(document["definitions"], renamed);
    }

    #[test]
    fn a_schema_full_of_what_stands_for_slashes_grows_no_longer_by_its_names() {
        let (slashes, taken) = ("/".repeat(1000), "\u{2215}".repeat(80_000));
        let mut document = json!({"$defs": {&slashes: {"type": "null"}}, "description": taken});
        let before = document.to_string().len();
        References::of(&document).rename(&mut document);
        assert!(!document["$defs"].to_string().contains('/'));
        let grown = document.to_string().len() - before;
        assert_eq!(grown, 3 * 1000, "one character of four bytes for each of one");
    }
}
