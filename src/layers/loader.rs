//! From named tensors to packed layers, counting as it goes.

use std::{
    cell::{Cell, RefCell},
    sync::Arc,
};

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
        lora::{AdaptableLinear, AdaptablePart, Place},
        norm::{Norm, NormOptions},
        raw,
    },
    weights::Weights,
};

/// What has been loaded so far.
#[derive(Default)]
pub struct LoadTally {
    tensors: Cell<usize>,
    parameters: Cell<usize>,
    bytes: Cell<usize>,
    /// Of the first weight inside a block.
    block_format: Cell<Option<WeightFormat>>,
    /// Those that see every row of a step.
    adaptable: RefCell<Vec<AdaptableLinear>>,
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

    /// Format of the first weight inside a block.
    #[must_use]
    pub fn block_format(&self) -> Option<WeightFormat> {
        self.block_format.get()
    }

    /// The Linears that adapters may stand beside, in the order in which they were loaded.
    #[must_use]
    pub fn adaptable(&self) -> Vec<AdaptableLinear> {
        self.adaptable.borrow().clone()
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
    /// Whether matrices lie `[in, out]` in the file.
    transposed: bool,
    /// Where one expert of several is loaded: the prefix of all, which of them, and of how many.
    expert: Option<(String, usize, usize)>,
    /// Whether adapters may stand beside its Linears.
    takes_adapters: bool,
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
        let prefix = String::new();
        Self { weights, keep, device, tally, progress, prefix, transposed: false, expert: None, takes_adapters: true }
    }

    /// The loader of what lies under `name`.
    #[must_use]
    pub fn under(&self, name: impl std::fmt::Display) -> Self {
        Self { prefix: self.name(name), ..self.clone() }
    }

    /// The loader of one of `count` experts under this prefix: tensors of their own, `0.name`, or their part of tensors of all,
    /// `name`, along the outermost dimension.
    #[must_use]
    pub fn expert(&self, expert: usize, count: usize) -> Self {
        Self { expert: Some((self.prefix.clone(), expert, count)), ..self.under(expert) }
    }

    /// The same where Linears lie `[in, out]` in the file.
    #[must_use]
    pub fn transposed(&self) -> Self {
        Self { transposed: true, ..self.clone() }
    }

    /// The same for Linears whose inputs or outputs the file has in another order than adapters: none stand beside them.
    #[must_use]
    pub fn without_adapters(&self) -> Self {
        Self { takes_adapters: false, ..self.clone() }
    }

    /// The same with weights kept as float32, whatever is asked for: for those that decide something.
    #[must_use]
    pub fn exact(&self) -> Self {
        Self { keep: Keep::Widened(WeightFormat::F32), ..self.clone() }
    }

    /// Whether the file has the tensor `name`.
    #[must_use]
    pub fn contains(&self, name: &str) -> bool {
        self.weights.contains(&self.name(name))
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
        let tensor = |(part, out): &(&str, usize)| self.matrix(&format!("{part}.weight"), *out, input);
        let raw = parts.iter().map(tensor).collect::<Result<Vec<_>>>()?;
        let biases = if bias { parts } else { &[] };
        let biases = biases.iter().map(|(part, out)| self.vector(&format!("{part}.bias"), *out));
        let biases = biases.collect::<Result<Vec<_>>>()?;
        let bias = match biases.as_slice() {
            [] => None,
            [one] => Some(one.clone()),
            several => Some(Tensor::cat(several, 0)?),
        };
        let mut start = 0;
        let part = |&(part, out): &(&str, usize)| {
            start += out;
            AdaptablePart::whole(self.name(part), start - out..start)
        };
        self.adaptable(name, input, parts.iter().map(part).collect());
        self.linear_of(name, &raw, bias)
    }

    /// The Linear `name` whose output `row` is output `from(row)` in the file.
    ///
    /// # Errors
    /// `FailedPrecondition` that names a tensor which is missing or misshapen.
    pub fn reordered_linear(
        &self,
        name: &str,
        out: usize,
        input: usize,
        bias: bool,
        from: impl Fn(usize) -> usize,
    ) -> Result<Linear> {
        let weight = raw::rows(&self.matrix(&format!("{name}.weight"), out, input)?, (0..out).map(&from))?;
        let bias = if bias {
            let numbers = self.numbers(&format!("{name}.bias"), out)?;
            let numbers = (0..out).map(|row| numbers.get(from(row)).copied().unwrap_or_default()).collect::<Vec<_>>();
            Some(Tensor::from_vec(numbers, out, self.device)?)
        } else {
            None
        };
        let places = vec![Place { columns: 0..out, rows: Some((0..out).map(&from).collect()) }];
        self.adaptable(name, input, vec![AdaptablePart { name: self.name(name), outputs: out, places }]);
        self.linear_of(name, &[weight], bias)
    }

    /// Query, key and value as one Linear called `name`, where the query's part of the file has a gate behind each head's
    /// query: all queries, all keys, all values, then all gates. Heads are of `head_dim` numbers.
    ///
    /// # Errors
    /// `FailedPrecondition` that names a tensor which is missing or misshapen.
    pub fn gated_qkv_linear(
        &self,
        name: &str,
        [(q, q_size), (k, k_size), (v, v_size)]: [(&str, usize); 3],
        head_dim: usize,
        input: usize,
        bias: bool,
    ) -> Result<Linear> {
        let of_query = |row: usize| row / head_dim * 2 * head_dim + row % head_dim;
        let of_gate = |row: usize| of_query(row) + head_dim;
        let both = self.matrix(&format!("{q}.weight"), 2 * q_size, input)?;
        let weights = [
            raw::rows(&both, (0..q_size).map(of_query))?,
            self.matrix(&format!("{k}.weight"), k_size, input)?,
            self.matrix(&format!("{v}.weight"), v_size, input)?,
            raw::rows(&both, (0..q_size).map(of_gate))?,
        ];
        let bias = if bias {
            let both = self.numbers(&format!("{q}.bias"), 2 * q_size)?;
            let queries = (0..q_size).map(|row| both[of_query(row)]);
            let mut numbers: Vec<f32> = queries.collect();
            numbers.extend(self.numbers(&format!("{k}.bias"), k_size)?);
            numbers.extend(self.numbers(&format!("{v}.bias"), v_size)?);
            numbers.extend((0..q_size).map(|row| both[of_gate(row)]));
            Some(Tensor::new(numbers, self.device)?)
        } else {
            None
        };
        let (keys, values) = (q_size + k_size, q_size + k_size + v_size);
        let places = vec![
            Place { columns: 0..q_size, rows: Some((0..q_size).map(of_query).collect()) },
            Place { columns: values..values + q_size, rows: Some((0..q_size).map(of_gate).collect()) },
        ];
        let parts = vec![
            AdaptablePart { name: self.name(q), outputs: 2 * q_size, places },
            AdaptablePart::whole(self.name(k), q_size..keys),
            AdaptablePart::whole(self.name(v), keys..values),
        ];
        self.adaptable(name, input, parts);
        self.linear_of(name, &weights, bias)
    }

    /// Says that adapters may stand beside the Linear `name`. Beside experts they may not: these see but the rows that chose
    /// them.
    fn adaptable(&self, name: &str, inputs: usize, parts: Vec<AdaptablePart>) {
        if self.expert.is_none() && self.takes_adapters {
            self.tally.adaptable.borrow_mut().push(AdaptableLinear { name: self.name(name), inputs, parts });
        }
    }

    /// A Linear called `name` of weights `[out, in]` stacked along the output, with the bias of all.
    ///
    /// # Errors
    /// `FailedPrecondition` where a weight cannot be packed.
    pub(crate) fn linear_of(&self, name: &str, raw: &[RawTensor<'_>], bias: Option<Tensor>) -> Result<Linear> {
        // A quantizer may give the value projection more bits than query and key: each run of one format is a product.
        let packed = raw
            .chunk_by(|a, b| self.format_of(a, Role::Block) == self.format_of(b, Role::Block))
            .map(|run| self.pack(run, Role::Block).map(Arc::new))
            .collect::<Result<Vec<_>>>()?;
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

    /// The norm `name.weight` `[size]`, and `name.bias` if it has a bias.
    ///
    /// # Errors
    /// `FailedPrecondition` that names a tensor which is missing or misshapen.
    pub fn norm(&self, name: &str, size: usize, options: &NormOptions) -> Result<Norm> {
        let mut weight = self.vector(&format!("{name}.weight"), size)?;
        if options.offset != 0.0 {
            weight = (weight + options.offset)?;
        }
        let bias = if options.bias { Some(self.vector(&format!("{name}.bias"), size)?) } else { None };
        Ok(Norm::new(weight, bias, *options))
    }

    /// The numbers of the tensor `name` `[size]`.
    ///
    /// # Errors
    /// `FailedPrecondition` where it is missing or misshapen.
    pub fn numbers(&self, name: &str, size: usize) -> Result<Vec<f32>> {
        Ok(self.vector(name, size)?.to_vec1()?)
    }

    /// The numbers of the tensor `name` of any shape, float32 whatever the model's format.
    ///
    /// # Errors
    /// `FailedPrecondition` where it is missing or misshapen.
    pub fn array(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let raw = self.get(name, shape)?;
        let elements = shape.iter().product::<usize>();
        self.count(elements, elements * size_of::<f32>());
        Ok(Tensor::from_vec(raw.to_f32(), shape, self.device)?)
    }

    fn name(&self, name: impl std::fmt::Display) -> String {
        if self.prefix.is_empty() { name.to_string() } else { format!("{}.{name}", self.prefix) }
    }

    /// The tensor `name` as it lies in the file.
    ///
    /// # Errors
    /// `FailedPrecondition` where it is missing or misshapen.
    pub(crate) fn get(&self, name: &str, shape: &[usize]) -> Result<RawTensor<'a>> {
        let own = self.name(name);
        let Some((prefix, expert, count)) = self.expert.as_ref().filter(|_| !self.weights.contains(&own)) else {
            return self.weights.get(&own, shape);
        };
        let all = format!("{prefix}.{name}");
        if !self.weights.contains(&all) {
            return self.weights.get(&own, shape);
        }
        self.weights.part(&all, &[&[*count], shape].concat(), *expert)
    }

    /// Whether the file has the tensor `name`, by itself or as a part of one of all experts.
    #[must_use]
    pub fn contains_part(&self, name: &str) -> bool {
        let of_all = |(prefix, ..): &(String, usize, usize)| self.weights.contains(&format!("{prefix}.{name}"));
        self.contains(name) || self.expert.as_ref().is_some_and(of_all)
    }

    /// An expert's matrix `[out, in]` in the tensor `name` of all. Plain numbers lie `[experts, in, out]`, and blocks along their
    /// inputs, `[experts, out, in]`.
    ///
    /// # Errors
    /// `FailedPrecondition` where it is missing or misshapen.
    pub(crate) fn expert_matrix(&self, name: &str, out: usize, input: usize) -> Result<RawTensor<'a>> {
        match self.get(name, &[out, input]) {
            Ok(blocks) if !blocks.format.is_float() => Ok(blocks),
            _ => raw::transposed(&self.get(name, &[input, out])?),
        }
    }

    /// Where layers are loaded to.
    #[must_use]
    pub fn device(&self) -> &Device {
        self.device
    }

    /// The matrix `name` `[out, in]`.
    fn matrix(&self, name: &str, out: usize, input: usize) -> Result<RawTensor<'a>> {
        if self.transposed { raw::transposed(&self.get(name, &[input, out])?) } else { self.get(name, &[out, input]) }
    }

    fn format_of(&self, raw: &RawTensor<'_>, role: Role) -> WeightFormat {
        self.keep.format(raw.format, raw.shape.last().copied().unwrap_or(0), role)
    }

    /// Packs tensors of one format as one weight.
    fn pack(&self, run: &[RawTensor<'_>], role: Role) -> Result<PackedWeight> {
        let Some(first) = run.first() else { return Err(Error::internal("no tensors to pack")) };
        let format = self.format_of(first, role);
        if role == Role::Block && self.tally.block_format().is_none() {
            self.tally.block_format.set(Some(format));
        }
        let packed = PackedWeight::pack_rows(&run.iter().collect::<Vec<_>>(), format, self.device)?;
        for raw in run {
            let inputs = raw.shape.last().copied().unwrap_or(0);
            let elements: usize = raw.shape.iter().product();
            let bytes = format.matrix_bytes(elements.checked_div(inputs).unwrap_or(0), inputs);
            self.count(elements, bytes.unwrap_or(raw.bytes.len()));
        }
        Ok(packed)
    }

    /// A one-dimensional tensor, float32 whatever the model's format: norms and biases are small and matter.
    fn vector(&self, name: &str, size: usize) -> Result<Tensor> {
        self.array(name, &[size])
    }

    fn count(&self, parameters: usize, bytes: usize) {
        let LoadTally { tensors, parameters: p, bytes: b, .. } = self.tally;
        tensors.set(tensors.get() + 1);
        p.set(p.get() + parameters);
        b.set(b.get() + bytes);
        (self.progress)(tensors.get());
    }
}
