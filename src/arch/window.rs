//! Which layers see only the last so many tokens.

use crate::{
    arch::{config::limits, fields::Fields, linear_attention},
    error::Result,
};

/// In which layers an architecture has windows, where the file does not say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sliding {
    /// In none, whatever the file says.
    Never,
    /// In those that the file names, or in all that it turns them on for.
    WhereAsked,
    /// In all.
    Always,
    /// In all but every so manieth.
    ButEvery(usize),
}

/// Sliding-window attention, as a file has it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SlidingWindow {
    /// Tokens a sliding layer sees.
    pub size: Option<usize>,
    /// `use_sliding_window`, where the file says.
    pub enabled: Option<bool>,
    /// `max_window_layers`: the layers before this one see everything.
    pub first_layer: usize,
    /// `layer_types`, or `sliding_window_pattern`: whether each layer slides, where the file says; decides alone.
    pub layers: Option<Vec<bool>>,
}

impl SlidingWindow {
    /// Reads the fields of a config.json.
    ///
    /// # Errors
    /// `FailedPrecondition` that names the field that is impossible or not supported.
    pub(crate) fn from_fields(fields: &Fields<'_>, num_layers: usize) -> Result<Self> {
        let size = fields.size("sliding_window", limits::POSITIONS)?;
        let layers = match layer_types(fields, num_layers)? {
            Some(layers) => Some(layers),
            None => pattern(fields, num_layers)?,
        };
        if size.is_none() && layers.as_ref().is_some_and(|layers| layers.contains(&true)) {
            return Err(fields.missing("sliding_window"));
        }
        let first_layer = fields.size("max_window_layers", 0..=usize::MAX)?.unwrap_or(0);
        Ok(Self { size, enabled: fields.flag("use_sliding_window")?, first_layer, layers })
    }

    /// The window of a layer of such an architecture.
    #[must_use]
    pub fn of(&self, sliding: Sliding, layer: usize) -> Option<usize> {
        match sliding {
            Sliding::Never => None,
            Sliding::WhereAsked => self.of_layer(layer, false),
            Sliding::Always => self.of_layer(layer, true),
            Sliding::ButEvery(period) => self.of_layer_but_every(period, layer),
        }
    }

    /// The window of a layer; `by_default` says whether this architecture slides where the file does not say.
    #[must_use]
    pub fn of_layer(&self, layer: usize, by_default: bool) -> Option<usize> {
        let slides = match &self.layers {
            Some(layers) => layers.get(layer).copied().unwrap_or(false),
            None => self.enabled.unwrap_or(by_default) && layer >= self.first_layer,
        };
        self.size.filter(|_| slides)
    }

    /// The window of a layer where this architecture slides in all but every `period`-th layer, unless the file says which.
    fn of_layer_but_every(&self, period: usize, layer: usize) -> Option<usize> {
        match &self.layers {
            Some(_) => self.of_layer(layer, true),
            None => self.size.filter(|_| !(layer + 1).is_multiple_of(period)),
        }
    }
}

fn layer_types(fields: &Fields<'_>, num_layers: usize) -> Result<Option<Vec<bool>>> {
    let slides = |name: &&str| match *name {
        "sliding_attention" => Ok(true),
        "full_attention" => Ok(false),
        "linear_attention" if fields.value(linear_attention::FIELD).is_some() => Ok(false),
        other => {
            let why = format!("has {other:?}; supported are full_attention and sliding_attention");
            Err(fields.error("layer_types", why))
        }
    };
    match fields.texts("layer_types")? {
        types if types.is_empty() => Ok(None),
        types if types.len() == num_layers => types.iter().map(slides).collect::<Result<Vec<_>>>().map(Some),
        types => Err(fields.error("layer_types", format!("has {} entries for {num_layers} layers", types.len()))),
    }
}

/// `sliding_window_pattern`: every so manieth layer sees everything, or a letter a layer, `L` for those that slide, over
/// and over.
fn pattern(fields: &Fields<'_>, num_layers: usize) -> Result<Option<Vec<bool>>> {
    let name = "sliding_window_pattern";
    if fields.value(name).is_some_and(serde_json::Value::is_string) {
        let letters = fields.text(name)?.unwrap_or_default();
        if letters.is_empty() || letters.bytes().any(|letter| !matches!(letter, b'L' | b'G')) {
            return Err(fields.error(name, format!("is {letters:?}, must be letters L and G")));
        }
        return Ok(Some(letters.bytes().map(|letter| letter == b'L').cycle().take(num_layers).collect()));
    }
    let period = fields.size(name, limits::LAYERS)?;
    Ok(period.map(|period| (1..=num_layers).map(|layer| !layer.is_multiple_of(period)).collect()))
}
