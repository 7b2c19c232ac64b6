//! What a generation_config.json or a GGUF file recommends: where sequences end, and how to sample where a request does
//! not say.

use std::path::Path;

use serde_json::Value;

use crate::{
    arch::fields::Fields,
    error::{Error, Result},
    ids::TokenId,
    params::SamplingParams,
    weights::gguf::Gguf,
};

/// A model's own defaults; `None` is the server's default.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GenerationDefaults {
    /// Tokens that end a sequence; empty where the file does not say.
    pub eos_token_ids: Vec<TokenId>,
    /// See [`SamplingParams::temperature`].
    pub temperature: Option<f32>,
    /// See [`SamplingParams::top_k`].
    pub top_k: Option<u32>,
    /// See [`SamplingParams::top_p`].
    pub top_p: Option<f32>,
    /// See [`SamplingParams::min_p`].
    pub min_p: Option<f32>,
    /// See [`SamplingParams::repetition_penalty`].
    pub repetition_penalty: Option<f32>,
}

impl GenerationDefaults {
    /// Reads a generation_config.json; `path` is for messages.
    ///
    /// # Errors
    /// `FailedPrecondition` that names the file and the field that is impossible.
    pub fn from_json(path: &Path, text: &str, vocab_size: usize) -> Result<Self> {
        let root: Value = serde_json::from_str(text).map_err(|e| Error::bad_file(path, "json", e))?;
        let root = root.as_object().ok_or_else(|| Error::bad_file(path, "json", "must be an object"))?;
        let fields = Fields::new(path, root);
        let share = |field: &str| fields.number(field, |x| (0.0..=1.0).contains(&x), "from 0 to 1");
        let top_p = fields.number("top_p", |x| x > 0.0 && x <= 1.0, "above 0, at most 1")?;
        Ok(Self {
            eos_token_ids: fields.token_ids("eos_token_id", vocab_size)?,
            temperature: fields
                .number("temperature", |x| (0.0..=100.0).contains(&x), "from 0 to 100")?
                .map(|x| x as f32),
            top_k: fields.size("top_k", 0..=u32::MAX as usize)?.map(|k| k as u32),
            top_p: top_p.map(|x| x as f32),
            min_p: share("min_p")?.map(|x| x as f32),
            repetition_penalty: fields.positive("repetition_penalty")?.map(|x| x as f32),
        })
    }

    /// Reads the keys under `general.sampling.` of a GGUF file, as llama.cpp's converter writes them. A number below what
    /// a knob can be is how llama.cpp turns it off; end tokens are the vocabulary's.
    ///
    /// # Errors
    /// `FailedPrecondition` that names the file and the key that is no number or impossible.
    pub fn from_gguf(gguf: &Gguf) -> Result<Self> {
        let number = |name: &str, holds: fn(f32) -> bool, range: &str| {
            let key = format!("general.sampling.{name}");
            let number = gguf.f32(&key)?;
            match number {
                Some(x) if !holds(x) => {
                    let why = format!("is {x}, must be {range}");
                    Err(Error::bad_file(gguf.path(), format!("metadata {key}"), why))
                }
                number => Ok(number),
            }
        };
        Ok(Self {
            eos_token_ids: Vec::new(),
            temperature: number("temp", |x| x <= 100.0, "at most 100")?.map(|x| x.max(0.0)),
            top_k: number("top_k", |x| x <= 1e9, "at most 1e9")?.map(|k| k.max(0.0) as u32),
            top_p: number("top_p", |x| x > 0.0, "above 0")?.map(|p| p.min(1.0)),
            min_p: number("min_p", |x| x <= 1.0, "at most 1")?.map(|p| p.max(0.0)),
            repetition_penalty: number("penalty_repeat", |x| x > 0.0 && x.is_finite(), "above 0")?,
        })
    }

    /// The parameters of a request that says nothing.
    #[must_use]
    pub fn sampling_params(&self) -> SamplingParams {
        let default = SamplingParams::default();
        SamplingParams {
            temperature: self.temperature.unwrap_or(default.temperature),
            top_k: self.top_k.unwrap_or(default.top_k),
            top_p: self.top_p.unwrap_or(default.top_p),
            min_p: self.min_p.unwrap_or(default.min_p),
            repetition_penalty: self.repetition_penalty.unwrap_or(default.repetition_penalty),
            ..default
        }
    }
}
