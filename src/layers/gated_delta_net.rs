//! Gated DeltaNet (Yang et al. 2024, arXiv 2412.06464) as Qwen's models have it: attention whose keys and values are one
//! matrix a head, behind a short convolution and under an output gate.

use candle_core::Tensor;

use crate::{
    error::{Error, Result},
    kernels::{
        activation::{Activation, Gate},
        causal_conv::causal_conv,
        gated_delta::{DeltaGates, DeltaHeads, Sharing, gated_delta},
        linear::Inputs,
        paged_attention::AttentionMetadata,
        recurrent::StateRows,
        spare::give_back,
    },
    layers::{
        context::StepContext,
        linear::Linear,
        loader::TensorLoader,
        norm::{Norm, NormOptions},
        sublayer::Sublayer,
    },
};

/// Sizes of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeltaNetSizes {
    /// Of queries, keys and values.
    pub heads: DeltaHeads,
    /// Tokens that the convolution sees, the newest included.
    pub taps: usize,
}

/// What a layer is loaded with.
pub struct DeltaNetOptions {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Of the layer.
    pub sizes: DeltaNetSizes,
    /// Behind the convolution.
    pub activation: Activation,
    /// Of each head's result.
    pub norm: NormOptions,
    /// Whether `A_log` holds logarithms of rates; llama.cpp's converter writes the rates.
    pub rates_are_logs: bool,
}

/// One layer.
pub struct GatedDeltaNet {
    layer: usize,
    sizes: DeltaNetSizes,
    activation: Activation,
    /// To queries, keys and values, and the output's gate.
    mix: Linear,
    /// To what each token says of how far it replaces and of its decay.
    gating: Linear,
    gates: DeltaGates,
    /// `[taps, channels]`.
    conv: Tensor,
    norm: Norm,
    output: Linear,
}

impl GatedDeltaNet {
    /// Loads it under the loader's prefix; `layer` says which of the states are its own.
    ///
    /// # Errors
    /// `FailedPrecondition` that names a tensor which is missing or misshapen.
    pub fn load(loader: &TensorLoader<'_>, layer: usize, options: DeltaNetOptions) -> Result<Self> {
        let DeltaNetOptions { hidden_size, sizes, activation, norm, rates_are_logs } = options;
        let DeltaNetSizes { heads, taps } = sizes;
        let (channels, values, count) = (heads.qkv(), heads.values(), heads.value_heads);
        // Adapters have heads as Hugging Face does.
        let is_reordered = heads.sharing == Sharing::Strided && heads.key_heads > 1 && heads.key_heads < count;
        let loader = &if is_reordered { loader.without_adapters() } else { loader.clone() };
        // The gating's are few numbers, whose errors add up over all tokens that follow.
        let exact = loader.exact();
        let mix = if loader.contains("in_proj_qkvz.weight") {
            let from = |row| by_key_head(row, heads.key_heads, &[heads.keys(), heads.keys(), values, values]);
            loader.reordered_linear("in_proj_qkvz", channels + values, hidden_size, false, from)?
        } else {
            let parts = [("in_proj_qkv", channels), ("in_proj_z", values)];
            loader.stacked_linear("in_proj_qkvz", &parts, hidden_size, false)?
        };
        let gating = if loader.contains("in_proj_ba.weight") {
            let from = |row| by_key_head(row, heads.key_heads, &[count, count]);
            exact.reordered_linear("in_proj_ba", 2 * count, hidden_size, false, from)?
        } else {
            let parts = [("in_proj_b", count), ("in_proj_a", count)];
            exact.stacked_linear("in_proj_ba", &parts, hidden_size, false)?
        };
        let conv = loader.array("conv1d.weight", &[channels, 1, taps])?;
        let mut rates = loader.numbers("A_log", count)?;
        if rates_are_logs {
            rates.iter_mut().for_each(|rate| *rate = -f64::from(*rate).exp() as f32);
        }
        Ok(Self {
            layer,
            sizes,
            activation,
            mix: mix.in_two_terms(),
            gating,
            gates: DeltaGates { rates, biases: loader.numbers("dt_bias", count)? },
            conv: conv.squeeze(1)?.t()?.contiguous()?,
            norm: loader.norm("norm", heads.value_dim, &norm)?,
            output: loader.linear("out_proj", hidden_size, values, false)?,
        })
    }
}

/// Where row `row` of parts of these sizes, one after another, stands in a file that has them key head by key head
/// (Qwen3-Next's).
pub(crate) fn by_key_head(row: usize, key_heads: usize, parts: &[usize]) -> usize {
    let of_head: usize = parts.iter().sum::<usize>() / key_heads;
    let (mut row, mut before) = (row, 0);
    for part in parts {
        let size = part / key_heads;
        if row < *part {
            return row / size * of_head + before + row % size;
        }
        (row, before) = (row - part, before + size);
    }
    row
}

impl Sublayer for GatedDeltaNet {
    fn forward(&self, x: Inputs<'_>, onto: Option<&Tensor>, step: &StepContext<'_>) -> Result<Tensor> {
        let DeltaNetSizes { heads, .. } = self.sizes;
        let states = step.states.ok_or_else(|| Error::internal("a step without states for a recurrent layer"))?;
        let state = states.cache.layer(self.layer)?;
        let AttentionMetadata { cu_seqlens, context_lens, .. } = step.rows()?;
        let rows = StateRows { cu_seqlens, context_lens, slots: states.slots };
        let mixed = self.mix.forward(x, None, step)?;
        let gating = self.gating.forward(x, None, step)?;
        let tokens = mixed.dim(0)?;
        let qkv = causal_conv(&mixed.narrow(1, 0, heads.qkv())?, &self.conv, &state.conv, rows, self.activation)?;
        let answers = gated_delta(&qkv, &gating, &self.gates, &state.delta, rows)?;
        let by_head = answers.reshape((tokens, heads.value_heads, heads.value_dim))?;
        let normed = self.norm.forward(&by_head)?.reshape((tokens, heads.values()))?;
        let gated = Tensor::cat(&[mixed.narrow(1, heads.qkv(), heads.values())?, normed], 1)?;
        let y = self.output.forward(Inputs::Gated(&gated, Gate::Of(Activation::Silu)), onto, step);
        drop(by_head);
        [qkv, gating, answers, mixed, gated].into_iter().for_each(give_back);
        y
    }
}

#[cfg(test)]
mod tests {
    use super::by_key_head;

    #[test]
    fn rows_of_key_heads_are_found_part_by_part() {
        // Of each of two heads two rows of the first part and one of the second.
        let rows: Vec<usize> = (0..6).map(|row| by_key_head(row, 2, &[4, 2])).collect();
        assert_eq!(rows, [0, 1, 3, 4, 2, 5]);
    }
}
