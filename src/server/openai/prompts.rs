//! `prompt` of a completion: a text, texts, token ids, or lists of token ids.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{self, SeqAccess, Visitor},
};

use crate::{engine::Prompt, ids::TokenId};

/// The prompts of one call. Read without a detour through generic values: a body may hold a million ids.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Prompts(pub(super) Vec<Prompt>);

/// An element of the list, which decides what the list is.
enum Element {
    Text(String),
    Id(u32),
    Ids(Vec<u32>),
}

const EXPECTED: &str = "a string, an array of strings, an array of token ids, or an array of arrays of token ids";

struct PromptsVisitor;

impl<'de> Visitor<'de> for PromptsVisitor {
    type Value = Prompts;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(EXPECTED)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Prompts, E> {
        Ok(Prompts(vec![Prompt::Text(text.to_owned())]))
    }

    fn visit_unit<E: de::Error>(self) -> Result<Prompts, E> {
        Ok(Prompts::default())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Prompts, A::Error> {
        let (mut prompts, mut ids) = (Vec::new(), Vec::new());
        while let Some(element) = list.next_element()? {
            match element {
                Element::Text(text) => prompts.push(Prompt::Text(text)),
                Element::Ids(ids) => prompts.push(tokens(ids)),
                Element::Id(id) => ids.push(id),
            }
            if !prompts.is_empty() && !ids.is_empty() {
                return Err(de::Error::custom(format!("invalid type: a mixed array, expected {EXPECTED}")));
            }
        }
        if !ids.is_empty() {
            prompts.push(tokens(ids));
        }
        Ok(Prompts(prompts))
    }
}

struct ElementVisitor;

impl<'de> Visitor<'de> for ElementVisitor {
    type Value = Element;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string, a token id, or an array of token ids")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Element, E> {
        Ok(Element::Text(text.to_owned()))
    }

    fn visit_u64<E: de::Error>(self, id: u64) -> Result<Element, E> {
        u32::try_from(id).map(Element::Id).map_err(|_| E::custom(format!("{id} is beyond any vocabulary")))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Element, A::Error> {
        let mut ids = Vec::new();
        while let Some(id) = list.next_element()? {
            ids.push(id);
        }
        Ok(Element::Ids(ids))
    }
}

impl<'de> Deserialize<'de> for Element {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ElementVisitor)
    }
}

impl<'de> Deserialize<'de> for Prompts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(PromptsVisitor)
    }
}

fn tokens(ids: Vec<u32>) -> Prompt {
    Prompt::Tokens(ids.into_iter().map(TokenId).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_is_read() {
        let read = |json: &str| serde_json::from_str::<Prompts>(json).unwrap().0;
        let text = |text: &str| Prompt::Text(text.to_owned());
        assert_eq!(read(r#""a""#), [text("a")]);
        assert_eq!(read(r#"["a", "b"]"#), [text("a"), text("b")]);
        assert_eq!(read("[1, 2]"), [tokens(vec![1, 2])]);
        assert_eq!(read("[[1, 2], [3]]"), [tokens(vec![1, 2]), tokens(vec![3])]);
        assert_eq!(read("[]"), []);
    }

    #[test]
    fn anything_else_is_refused() {
        for json in ["1", "{}", "[-1]", "[1.5]", "[4294967296]", r#"["a", 1]"#, "[1, [2]]", "[[[1]]]", r#"[["a"]]"#] {
            assert!(serde_json::from_str::<Prompts>(json).is_err(), "{json}");
        }
    }
}
