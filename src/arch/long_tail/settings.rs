//! A config.json as the modules of candle-transformers read it: in the older spelling, with what they leave out refused by name.

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::{
    arch::fields::Fields,
    error::{Error, Result},
};

/// A config.json.
pub(crate) struct Settings {
    path: PathBuf,
    map: Map<String, Value>,
}

/// Sizes of a model, in numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sizes {
    /// Width of the residual stream.
    pub(super) hidden: usize,
    /// Rows of the embedding.
    pub(super) vocab: usize,
    /// Tokens of the longest context.
    pub(super) positions: usize,
    /// What a token leaves in its sequence's copy.
    pub(super) per_token: usize,
    /// What a copy holds however long its sequence is.
    pub(super) per_sequence: usize,
    /// What a token takes on its way through a layer, at most.
    pub(super) on_the_way: usize,
}

impl Settings {
    pub(super) fn parse(path: &Path, text: &str) -> Result<Self> {
        let root: Value = serde_json::from_str(text).map_err(|e| Error::bad_file(path, "json", e))?;
        let Value::Object(mut map) = root else { return Err(Error::bad_file(path, "json", "must be an object")) };
        // The newer spelling keeps all of RoPE in an object; the modules know the older one.
        if let Some(Value::Object(rope)) = map.get("rope_parameters").cloned() {
            for field in ["rope_theta", "partial_rotary_factor"] {
                if let (Some(value), false) = (rope.get(field), map.contains_key(field)) {
                    map.insert(field.to_owned(), value.clone());
                }
            }
            let is_scaled = rope.get("rope_type").and_then(Value::as_str).is_some_and(|kind| kind != "default");
            if is_scaled && !map.contains_key("rope_scaling") {
                let kind = rope.get("rope_type").cloned();
                let mut rope = rope;
                rope.extend(kind.map(|kind| ("type".to_owned(), kind)));
                map.insert("rope_scaling".to_owned(), Value::Object(rope));
            }
        }
        Ok(Self { path: path.to_owned(), map })
    }

    pub(super) fn fields(&self) -> Fields<'_> {
        Fields::new(&self.path, &self.map)
    }

    /// The module's own configuration, with some fields put in place of what the file says.
    pub(super) fn config<T: DeserializeOwned>(&self, instead: &[(&str, Value)]) -> Result<T> {
        let mut map = self.map.clone();
        map.extend(instead.iter().map(|(field, value)| ((*field).to_owned(), value.clone())));
        serde_json::from_value(Value::Object(map)).map_err(|e| Error::bad_file(&self.path, "config", e))
    }

    /// What the file says of `field`, or `otherwise`.
    pub(super) fn or(&self, field: &'static str, otherwise: impl Into<Value>) -> (&'static str, Value) {
        let given = self.map.get(field).filter(|value| !value.is_null()).cloned();
        (field, given.unwrap_or_else(|| otherwise.into()))
    }

    /// Refuses a `field` that asks for something else than `only`, which is all that the module does.
    pub(super) fn only(&self, field: &str, only: impl Into<Value>) -> Result<()> {
        let only = only.into();
        let same = |given: &Value| match (given.as_f64(), only.as_f64()) {
            (Some(given), Some(only)) => given == only,
            _ => *given == only,
        };
        match self.map.get(field).filter(|given| !given.is_null() && !same(given)) {
            None => Ok(()),
            Some(given) => {
                let why = format!("is {given}, and candle-transformers computes this model with {only} alone");
                Err(self.fields().error(field, why))
            }
        }
    }

    /// Refuses scaled rotary positions.
    pub(super) fn unscaled(&self) -> Result<()> {
        self.only("rope_scaling", Value::Null)
    }
}
