//! From named tensors to packed layers, counting as it goes.

use std::{cell::Cell, sync::Arc};

use candle_core::{Device, Tensor};

use crate::{
    error::{Error, Result},
    kernels::linear::{
        PackedWeight,
        format::{RawTensor, WeightFormat},
    },
    layers::{
        embedding::Embedding,
        keep::{Keep, Role},
        linear::Linear,
        norm::RmsNorm,
    },
    weights::Weights,
};

/// What has been loaded so far.
#[derive(Default)]
pub struct LoadTally {
    tensors: Cell<usize>,
    parameters: Cell<usize>,
    bytes: Cell<usize>,
}

impl LoadTally {
    /// Tensors packed.
    #[must_use]
    pub fn tensors(&self) -> usize {
        self.tensors.get()
    }

    /// Numbers in them.
    #[must_use]
    pub fn parameters(&self) -> usize {
        self.parameters.get()
    }

    /// Bytes they take as they are kept.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes.get()
    }
}

/// Loads the layers under one prefix of a model's tensor names.
#[derive(Clone)]
pub struct TensorLoader<'a> {
    weights: &'a Weights,
    keep: Keep,
    device: &'a Device,
    tally: &'a LoadTally,
    /// Called after each tensor with how many there are so far.
    progress: &'a dyn Fn(usize),
    prefix: String,
}

impl<'a> TensorLoader<'a> {
    /// A loader at the root of the names.
    pub fn new(
        weights: &'a Weights,
        keep: Keep,
        device: &'a Device,
        tally: &'a LoadTally,
        progress: &'a dyn Fn(usize),
    ) -> Self {
        Self { weights, keep, device, tally, progress, prefix: String::new() }
    }

    /// The loader of what lies under `name`.
    #[must_use]
    pub fn under(&self, name: impl std::fmt::Display) -> Self {
        Self { prefix: self.name(name), ..self.clone() }
    }

    /// The format in which the weight `name` `[out, in]` of a block is kept.
    ///
    /// # Errors
    /// `FailedPrecondition` that names a tensor which is missing or misshapen.
    pub fn kept_format(&self, name: &str, shape: [usize; 2]) -> Result<WeightFormat> {
        Ok(self.keep.format(self.get(name, &shape)?.format, shape[1], Role::Block))
    }

    /// The head `name`: `name.weight` `[vocab, hidden]`.
    ///
    /// # Errors
    /// `FailedPrecondition` that names a tensor which is missing or misshapen.
    pub fn head(&self, name: &str, vocab: usize, hidden: usize) -> Result<Linear> {
        let raw = self.get(&format!("{name}.weight"), &[vocab, hidden])?;
        Ok(Linear::new(self.name(name), vec![Arc::new(self.pack(&[raw], Role::Vocabulary)?)], None))
    }

    /// The Linear `name`: `name.weight` `[out, in]`, and `name.bias` `[out]` if it has a bias.
    ///
    /// # Errors
    /// `FailedPrecondition` that names a tensor which is missing or misshapen.
    pub fn linear(&self, name: &str, out: usize, input: usize, bias: bool) -> Result<Linear> {
        self.stacked_linear(name, &[(name, out)], input, bias)
    }

    /// Several Linears of the same input as one called `name`: their weights (and biases) stacked along the output.
    ///
    /// # Errors
    /// `FailedPrecondition` that names a tensor which is missing or misshapen.
    pub fn stacked_linear(&self, name: &str, parts: &[(&str, usize)], input: usize, bias: bool) -> Result<Linear> {
        let tensor = |(part, out): &(&str, usize)| self.get(&format!("{part}.weight"), &[*out, input]);
        let raw = parts.iter().map(tensor).collect::<Result<Vec<_>>>()?;
        // A quantizer may give the value projection more bits than query and key: each run of one format is a product.
        let packed = raw
            .chunk_by(|a, b| self.format_of(a, Role::Block) == self.format_of(b, Role::Block))
            .map(|run| self.pack(run, Role::Block).map(Arc::new))
            .collect::<Result<Vec<_>>>()?;
        let biases = if bias { parts } else { &[] };
        let biases = biases.iter().map(|(part, out)| self.vector(&format!("{part}.bias"), *out));
        let biases = biases.collect::<Result<Vec<_>>>()?;
        let bias = match biases.as_slice() {
            [] => None,
            [one] => Some(one.clone()),
            several => Some(Tensor::cat(several, 0)?),
        };
        Ok(Linear::new(self.name(name), packed, bias))
    }

    /// A head that uses the weight of the embedding.
    #[must_use]
    pub fn tied_linear(&self, name: &str, embedding: &Embedding) -> Linear {
        Linear::new(self.name(name), vec![embedding.weight()], None)
    }

    /// The embedding `name.weight` `[vocab, hidden]`.
    ///
    /// # Errors
    /// `FailedPrecondition` that names a tensor which is missing or misshapen.
    pub fn embedding(&self, name: &str, vocab: usize, hidden: usize) -> Result<Embedding> {
        let raw = self.get(&format!("{name}.weight"), &[vocab, hidden])?;
        Ok(Embedding::new(Arc::new(self.pack(&[raw], Role::Vocabulary)?)))
    }

    /// The norm `name.weight` `[size]`.
    ///
    /// # Errors
    /// `FailedPrecondition` that names a tensor which is missing or misshapen.
    pub fn rms_norm(&self, name: &str, size: usize, eps: f64) -> Result<RmsNorm> {
        Ok(RmsNorm::new(self.vector(&format!("{name}.weight"), size)?, eps))
    }

    fn name(&self, name: impl std::fmt::Display) -> String {
        if self.prefix.is_empty() { name.to_string() } else { format!("{}.{name}", self.prefix) }
    }

    fn get(&self, name: &str, shape: &[usize]) -> Result<RawTensor<'a>> {
        self.weights.get(&self.name(name), shape)
    }

    fn format_of(&self, raw: &RawTensor<'_>, role: Role) -> WeightFormat {
        self.keep.format(raw.format, raw.shape.last().copied().unwrap_or(0), role)
    }

    /// Packs tensors of one format as one weight.
    fn pack(&self, run: &[RawTensor<'_>], role: Role) -> Result<PackedWeight> {
        let Some(first) = run.first() else { return Err(Error::internal("no tensors to pack")) };
        let format = self.format_of(first, role);
        let packed = PackedWeight::pack_rows(&run.iter().collect::<Vec<_>>(), format, self.device)?;
        for raw in run {
            let elements = raw.shape.iter().product();
            self.count(elements, format.bytes_for(elements).unwrap_or(raw.bytes.len()));
        }
        Ok(packed)
    }

    /// A one-dimensional tensor, float32 whatever the model's format: norms and biases are small and matter.
    fn vector(&self, name: &str, size: usize) -> Result<Tensor> {
        let raw = self.get(name, &[size])?;
        self.count(size, size * size_of::<f32>());
        Ok(Tensor::from_vec(raw.to_f32(), size, self.device)?)
    }

    fn count(&self, parameters: usize, bytes: usize) {
        let LoadTally { tensors, parameters: p, bytes: b } = self.tally;
        tensors.set(tensors.get() + 1);
        p.set(p.get() + parameters);
        b.set(b.get() + bytes);
        (self.progress)(tensors.get());
    }
}
