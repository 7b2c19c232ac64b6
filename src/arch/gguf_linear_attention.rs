//! Layers that keep a state, out of the metadata of a GGUF file of Qwen3.5 or Qwen3-Next. Keys of state-space models stand for
//! the sizes: a state's rows, its groups and so on.

use crate::{
    arch::{
        config::limits,
        gguf_config::Keys,
        linear_attention::{INTERVAL, LinearAttention},
    },
    error::Result,
    kernels::{
        causal_conv::TAPS,
        gated_delta::{DeltaHeads, Sharing},
    },
    layers::gated_delta_net::DeltaNetSizes,
};

/// The architecture whose files have value heads in the order of Hugging Face's. In the others heads that share a key stand
/// apart, as ggml repeats keys.
const NEIGHBOURS: &str = "qwen3next";

impl Keys<'_> {
    /// Of a model of so many layers.
    pub(super) fn linear_attention(&self, num_layers: usize) -> Result<LinearAttention> {
        let value_heads = self.required_size("ssm.time_step_rank", limits::HEADS)?;
        let key_heads = self.required_size("ssm.group_count", limits::HEADS)?;
        if !value_heads.is_multiple_of(key_heads) {
            return Err(
                self.wrong("ssm.group_count", format!("is {key_heads}, must divide the {value_heads} value heads"))
            );
        }
        let values = self.required_size("ssm.inner_size", limits::INTERMEDIATE)?;
        let value_dim = values / value_heads;
        if !values.is_multiple_of(value_heads) || !limits::HEAD_PART.contains(&value_dim) {
            let why =
                format!("is {values}, must be 1 to {} for each of the {value_heads} heads", limits::HEAD_PART.end());
            return Err(self.wrong("ssm.inner_size", why));
        }
        let heads = DeltaHeads {
            key_heads,
            value_heads,
            key_dim: self.required_size("ssm.state_size", limits::HEAD_PART)?,
            value_dim,
            sharing: if self.prefix() == NEIGHBOURS { Sharing::Neighbours } else { Sharing::Strided },
        };
        let taps = self.required_size("ssm.conv_kernel", TAPS)?;
        Ok(LinearAttention { sizes: DeltaNetSizes { heads, taps }, layers: self.recurrent_layers(num_layers)? })
    }

    /// Whether each layer keeps a state. What comes behind the last one may be counted too.
    fn recurrent_layers(&self, num_layers: usize) -> Result<Vec<bool>> {
        let name = "attention.recurrent_layers";
        let Some(mut layers) = self.gguf.array_bools(&self.key(name))?.map(Iterator::collect::<Vec<_>>) else {
            let interval = self.size("full_attention_interval", limits::LAYERS)?.unwrap_or(INTERVAL);
            return Ok((1..=num_layers).map(|layer| !layer.is_multiple_of(interval)).collect());
        };
        if layers.len() < num_layers {
            return Err(self.wrong(name, format!("has {} entries for {num_layers} layers", layers.len())));
        }
        layers.truncate(num_layers);
        Ok(layers)
    }
}
