//! Tensors by name, from safetensors, a GGUF file or a seed, as they lie in the file.

use std::path::PathBuf;

use crate::{
    error::{Error, Result},
    kernels::linear::format::RawTensor,
};

/// A place that tensors come from. Names are Hugging Face's (`model.layers.0.self_attn.q_proj.weight`), whatever the
/// file calls them.
pub trait TensorSource: Send + Sync {
    /// The file, for messages.
    fn path(&self) -> PathBuf;
    /// The tensor of that name, borrowed from the file's map.
    fn get(&self, name: &str) -> Option<RawTensor<'_>>;
    /// All names, in no particular order.
    fn names(&self) -> Vec<String>;
}

/// The tensors of one model.
pub struct Weights {
    source: Box<dyn TensorSource>,
}

impl Weights {
    /// Takes the tensors of a source.
    #[must_use]
    pub fn new(source: Box<dyn TensorSource>) -> Self {
        Self { source }
    }

    /// Whether there is a tensor of that name.
    #[must_use]
    pub fn contains(&self, name: &str) -> bool {
        self.source.get(name).is_some()
    }

    /// The tensor of that name, which must have that shape.
    ///
    /// # Errors
    /// `FailedPrecondition` that names the file and the tensor where it is missing or its shape differs.
    pub fn get(&self, name: &str, shape: &[usize]) -> Result<RawTensor<'_>> {
        let field = || format!("tensor {name}");
        let tensor = self
            .source
            .get(name)
            .ok_or_else(|| Error::bad_file(self.source.path(), field(), "is missing, but config.json calls for it"))?;
        if tensor.shape != shape {
            let why = format!("has shape {:?}, but config.json calls for {shape:?}", tensor.shape);
            return Err(Error::bad_file(self.source.path(), field(), why));
        }
        Ok(tensor)
    }
}
