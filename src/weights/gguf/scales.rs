//! The scales that may stand beside a weight in NVFP4: one of the whole, or one of each of its outermost parts
//! (`blk.0.ffn_up_exps.scale` of `blk.0.ffn_up_exps.weight`), as llama.cpp's converter writes them.

use super::Gguf;
use crate::{
    error::{Error, Result},
    kernels::linear::{
        format::WeightFormat,
        stored::{NVFP4, StoredFormat},
    },
    weights::shown,
};

/// The scales of one weight.
#[derive(Clone, Debug, PartialEq)]
pub struct Scales {
    /// The tensor that they are.
    pub name: String,
    numbers: Vec<f32>,
    /// Weights under each; at least 1.
    run: usize,
}

impl Gguf {
    /// The scales of the tensor that GGUF calls `name`; none where it has none beside it, or is not NVFP4.
    ///
    /// # Errors
    /// `FailedPrecondition` that names the tensor of scales where it does not fit its weight.
    pub fn scales_of(&self, name: &str) -> Result<Option<Scales>> {
        let Some(weight) = self.tensor(name).filter(|tensor| tensor.format == Some(StoredFormat::ReadOnly(&NVFP4)))
        else {
            return Ok(None);
        };
        let Some(beside) = name.strip_suffix("weight").map(|stem| format!("{stem}scale")) else { return Ok(None) };
        let Some(scales) = self.tensor(&beside) else { return Ok(None) };
        let wrong = |why: String| Error::bad_file(self.path(), format!("tensor {}", shown(&beside)), why);
        let bytes = self.tensor_bytes(scales).filter(|_| scales.format == Some(WeightFormat::F32.into()));
        let bytes = bytes.ok_or_else(|| wrong(format!("is stored as {}, must be F32", scales.kind_name())))?;
        let numbers: Vec<_> = bytes.as_chunks().0.iter().map(|number| f32::from_le_bytes(*number)).collect();
        let weights: usize = weight.shape.iter().product();
        match weights.checked_div(numbers.len()) {
            Some(run) if run > 0 && run * numbers.len() == weights => Ok(Some(Scales { name: beside, numbers, run })),
            _ => Err(wrong(format!("has {} scales for a weight of shape {:?}", numbers.len(), weight.shape))),
        }
    }
}

impl Scales {
    /// Multiplies weights, the first of which is number `first` of their tensor, in the file's order.
    pub fn multiply(&self, mut first: usize, mut weights: &mut [f32]) {
        while !weights.is_empty() {
            let scale = self.numbers.get(first / self.run).copied().unwrap_or(1.0);
            let run = (self.run - first % self.run).min(weights.len());
            let (now, later) = weights.split_at_mut(run);
            now.iter_mut().for_each(|weight| *weight *= scale);
            (weights, first) = (later, first + run);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_run_of_weights_has_its_scale_wherever_a_part_begins() {
        let scales = Scales { name: "s".into(), numbers: vec![2.0, 3.0, 5.0], run: 2 };
        let mut all = [1.0; 6];
        scales.multiply(0, &mut all);
        assert_eq!(all, [2.0, 2.0, 3.0, 3.0, 5.0, 5.0]);
        let mut part = [1.0; 3];
        scales.multiply(3, &mut part);
        assert_eq!(part, [3.0, 5.0, 5.0]);
    }
}
