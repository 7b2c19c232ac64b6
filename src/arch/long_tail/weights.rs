//! A file's tensors as candle's modules ask for them. They are counted references: whoever asks gets the same numbers.

use std::{collections::HashMap, sync::Arc};

use candle_core::{DType, Device, Error, Result, Shape, Tensor};
use candle_nn::{Init, var_builder::SimpleBackend};

/// Tensors by name, read and on their device.
#[derive(Clone)]
pub(super) struct SharedTensors {
    tensors: Arc<HashMap<String, Tensor>>,
    /// One that stands in another's place.
    instead: Option<(String, Tensor)>,
}

impl SharedTensors {
    pub(super) fn new(tensors: Arc<HashMap<String, Tensor>>) -> Self {
        Self { tensors, instead: None }
    }

    /// The same with `tensor` in the place of `name`.
    pub(super) fn with(&self, name: &str, tensor: Tensor) -> Self {
        Self { tensors: Arc::clone(&self.tensors), instead: Some((name.to_owned(), tensor)) }
    }
}

impl SimpleBackend for SharedTensors {
    fn get(&self, shape: Shape, name: &str, _: Init, dtype: DType, device: &Device) -> Result<Tensor> {
        let tensor = self.get_unchecked(name, dtype, device)?;
        if *tensor.shape() != shape {
            let why = format!("tensor {name} has shape {:?}, the module wants {shape:?}", tensor.shape());
            return Err(Error::msg(why));
        }
        Ok(tensor)
    }

    fn get_unchecked(&self, name: &str, dtype: DType, device: &Device) -> Result<Tensor> {
        let instead = self.instead.as_ref().filter(|(stands_for, _)| stands_for == name).map(|(_, tensor)| tensor);
        let tensor = instead.or_else(|| self.tensors.get(name));
        let tensor = tensor.ok_or_else(|| Error::msg(format!("tensor {name} is missing")))?;
        tensor.to_device(device)?.to_dtype(dtype)
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }
}
