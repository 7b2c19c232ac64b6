//! What a config.json says of layers that keep a state of a sequence rather than the keys and values of its tokens.
//! [`gguf_linear_attention`](super::gguf_linear_attention) reads the same from a GGUF file.

use crate::{
    arch::{config::limits, fields::Fields},
    error::Result,
    kernels::{
        causal_conv::TAPS,
        gated_delta::{DeltaHeads, Sharing},
    },
    layers::{gated_delta_net::DeltaNetSizes, state::StateShape},
};

/// `full_attention_interval` where the file has neither it nor `layer_types`: the classes' default.
pub(super) const INTERVAL: usize = 4;
/// The number that the others come with.
pub(super) const FIELD: &str = "linear_num_value_heads";

/// Linear attention of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct LinearAttention {
    /// Of its layers.
    pub sizes: DeltaNetSizes,
    /// Whether each layer is one.
    pub layers: Vec<bool>,
}

impl LinearAttention {
    /// Reads the fields of a config.json; none where there are no such heads.
    ///
    /// # Errors
    /// `FailedPrecondition` that names the field that is missing or impossible.
    pub(crate) fn from_fields(fields: &Fields<'_>, num_layers: usize) -> Result<Option<Self>> {
        let Some(value_heads) = fields.size(FIELD, limits::HEADS)? else { return Ok(None) };
        let heads = DeltaHeads {
            key_heads: fields.required_size("linear_num_key_heads", limits::HEADS)?,
            value_heads,
            key_dim: fields.required_size("linear_key_head_dim", limits::HEAD_PART)?,
            value_dim: fields.required_size("linear_value_head_dim", limits::HEAD_PART)?,
            sharing: Sharing::Neighbours,
        };
        if !value_heads.is_multiple_of(heads.key_heads) {
            let why = format!("is {}, must divide the {value_heads} value heads", heads.key_heads);
            return Err(fields.error("linear_num_key_heads", why));
        }
        let types = fields.texts("layer_types")?;
        let interval = fields.size("full_attention_interval", limits::LAYERS)?.unwrap_or(INTERVAL);
        let layers = match types.as_slice() {
            [] => (1..=num_layers).map(|layer| !layer.is_multiple_of(interval)).collect(),
            types => types.iter().map(|&kind| kind == "linear_attention").collect(),
        };
        let taps = fields.required_size("linear_conv_kernel_dim", TAPS)?;
        Ok(Some(Self { sizes: DeltaNetSizes { heads, taps }, layers }))
    }

    /// Whether a layer keeps a state, and its place among those that do as it does.
    #[must_use]
    pub fn of_layer(&self, layer: usize) -> (bool, usize) {
        let linear = self.layers.get(layer).copied().unwrap_or(false);
        (linear, self.layers.iter().take(layer).filter(|&&other| other == linear).count())
    }

    /// Layers that keep keys and values.
    #[must_use]
    pub fn num_kv_layers(&self) -> usize {
        self.layers.iter().filter(|&&linear| !linear).count()
    }

    /// What the others keep.
    #[must_use]
    pub fn state_shape(&self) -> StateShape {
        StateShape { num_layers: self.layers.len() - self.num_kv_layers(), sizes: self.sizes }
    }
}
