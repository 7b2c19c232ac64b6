//! Reads fields of a JSON object (or of GGUF metadata, put into one) within stated ranges; every error names the file
//! and the field.

use std::{fmt::Display, ops::RangeInclusive, path::Path};

use serde_json::{Map, Value};

use crate::{
    error::{Error, Result},
    ids::TokenId,
};

/// Other spellings of a field, where architectures have their own.
const ALIASES: &[(&str, &str)] = &[
    ("hidden_size", "n_embd"),
    ("num_hidden_layers", "n_layer"),
    ("num_attention_heads", "n_head"),
    ("max_position_embeddings", "n_positions"),
    ("intermediate_size", "n_inner"),
    ("rms_norm_eps", "layer_norm_eps"),
    ("rms_norm_eps", "layer_norm_epsilon"),
    ("rms_norm_eps", "norm_epsilon"),
    ("hidden_act", "hidden_activation"),
    ("hidden_act", "activation_function"),
    ("num_local_experts", "num_experts"),
    ("num_local_experts", "n_routed_experts"),
    ("attention_bias", "use_qkv_bias"),
    ("attention_bias", "use_bias"),
    ("rope_theta", "rotary_emb_base"),
    ("partial_rotary_factor", "rotary_pct"),
];

/// An object of a file, at a path of field names.
#[derive(Clone)]
pub(crate) struct Fields<'a> {
    file: &'a Path,
    prefix: String,
    map: &'a Map<String, Value>,
    /// What fields mean that are not there at all.
    defaults: Option<&'a Map<String, Value>>,
}

impl<'a> Fields<'a> {
    /// The fields of an object which stands at the root of `file`.
    pub(crate) fn new(file: &'a Path, map: &'a Map<String, Value>) -> Self {
        Self { file, prefix: String::new(), map, defaults: None }
    }

    /// The same, where fields that are not there mean what these say.
    pub(crate) fn with_defaults(self, defaults: &'a Map<String, Value>) -> Self {
        Self { defaults: Some(defaults), ..self }
    }

    /// An error about `field`.
    pub(crate) fn error(&self, field: &str, why: impl Display) -> Error {
        Error::bad_file(self.file, format!("{}{field}", self.prefix), why)
    }

    /// The value of `field`; null is absence.
    pub(crate) fn value(&self, field: &str) -> Option<&'a Value> {
        let spellings = ALIASES.iter().filter(|row| row.0 == field).map(|row| row.1);
        let mut found = std::iter::once(field).chain(spellings).filter_map(|name| self.map.get(name)).peekable();
        if found.peek().is_none() {
            return self.defaults?.get(field);
        }
        found.find(|value| !value.is_null())
    }

    /// The object `field`.
    pub(crate) fn object(&self, field: &str) -> Result<Option<Self>> {
        match self.value(field) {
            None => Ok(None),
            Some(Value::Object(map)) => {
                Ok(Some(Self { file: self.file, prefix: format!("{}{field}.", self.prefix), map, defaults: None }))
            }
            Some(other) => Err(self.error(field, format!("is {}, must be an object", shorten(other)))),
        }
    }

    /// The whole number `field`.
    pub(crate) fn size(&self, field: &str, range: RangeInclusive<usize>) -> Result<Option<usize>> {
        let Some(value) = self.value(field) else { return Ok(None) };
        whole(value).and_then(|n| usize::try_from(n).ok()).filter(|n| range.contains(n)).map(Some).ok_or_else(|| {
            let why =
                format!("is {}, must be a whole number from {} to {}", shorten(value), range.start(), range.end());
            self.error(field, why)
        })
    }

    /// The whole number `field`, which must be there.
    pub(crate) fn required_size(&self, field: &str, range: RangeInclusive<usize>) -> Result<usize> {
        self.size(field, range)?.ok_or_else(|| self.missing(field))
    }

    /// The finite number `field`, for which `holds` must hold; `range` says so in words.
    pub(crate) fn number(&self, field: &str, holds: impl Fn(f64) -> bool, range: &str) -> Result<Option<f64>> {
        let Some(value) = self.value(field) else { return Ok(None) };
        let number = value.as_f64().filter(|&x| x.is_finite() && holds(x));
        number.map(Some).ok_or_else(|| self.error(field, format!("is {}, must be {range}", shorten(value))))
    }

    /// A number above 0.
    pub(crate) fn positive(&self, field: &str) -> Result<Option<f64>> {
        self.number(field, |x| x > 0.0, "a number above 0")
    }

    /// The truth value `field`.
    pub(crate) fn flag(&self, field: &str) -> Result<Option<bool>> {
        match self.value(field) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(other) => Err(self.error(field, format!("is {}, must be true or false", shorten(other)))),
        }
    }

    /// The string `field`.
    pub(crate) fn text(&self, field: &str) -> Result<Option<&'a str>> {
        match self.value(field) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.error(field, format!("is {}, must be a string", shorten(other)))),
        }
    }

    /// The strings of the list `field`; empty where there is none.
    pub(crate) fn texts(&self, field: &str) -> Result<Vec<&'a str>> {
        let Some(value) = self.value(field) else { return Ok(Vec::new()) };
        let texts = value.as_array().and_then(|list| list.iter().map(Value::as_str).collect::<Option<Vec<_>>>());
        texts.ok_or_else(|| self.error(field, format!("is {}, must be a list of strings", shorten(value))))
    }

    /// The finite numbers of the list `field`, at most `limit`.
    pub(crate) fn numbers(&self, field: &str, limit: usize) -> Result<Option<Vec<f64>>> {
        let Some(value) = self.value(field) else { return Ok(None) };
        let numbers = value.as_array().filter(|list| list.len() <= limit);
        let number = |value: &Value| value.as_f64().filter(|x| x.is_finite());
        let numbers = numbers.and_then(|list| list.iter().map(number).collect::<Option<Vec<_>>>());
        let why = || self.error(field, format!("is {}, must be a list of at most {limit} numbers", shorten(value)));
        numbers.map(Some).ok_or_else(why)
    }

    /// The token ids of `field`, one or a list of them, each below `vocab_size`.
    pub(crate) fn token_ids(&self, field: &str, vocab_size: usize) -> Result<Vec<TokenId>> {
        let Some(value) = self.value(field) else { return Ok(Vec::new()) };
        let values = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
        let id = |value: &Value| {
            let id = whole(value).and_then(|n| u32::try_from(n).ok()).filter(|&n| (n as usize) < vocab_size);
            id.map(TokenId).ok_or_else(|| {
                self.error(
                    field,
                    format!("holds {}, must hold token ids below vocab_size {vocab_size}", shorten(value)),
                )
            })
        };
        values.iter().map(id).collect()
    }

    /// The error for a field that is not there.
    pub(crate) fn missing(&self, field: &str) -> Error {
        self.error(field, "is missing")
    }
}

/// A whole number, also where a writer made `8.0` of it.
fn whole(value: &Value) -> Option<u64> {
    let float = || value.as_f64().filter(|x| x.fract() == 0.0 && (0.0..9e15).contains(x)).map(|x| x as u64);
    value.as_u64().or_else(float)
}

/// A value as it stands in the file, cut short for a message.
fn shorten(value: &Value) -> String {
    match value {
        Value::Array(list) => format!("a list of {}", list.len()),
        Value::Object(_) => "an object".to_owned(),
        Value::String(text) => format!("{:?}", text.chars().take(40).collect::<String>()),
        scalar => scalar.to_string(),
    }
}
