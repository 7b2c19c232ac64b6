//! Weights drawn from a seed: a model of any shape without a download, the same on every machine.

use std::{borrow::Cow, collections::BTreeMap, path::PathBuf};

use half::bf16;
use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng, SeedableRng},
};

use super::{TensorHeader, TensorSource};
use crate::kernels::linear::format::{RawTensor, WeightFormat};

/// The standard deviation that Hugging Face's configurations initialize with (`initializer_range`).
const STANDARD_DEVIATION: f32 = 0.02;

/// Tensors of given shapes with bfloat16 weights drawn from a seed: norms are ones, all else near-normal around 0 with
/// standard deviation 0.02. Each is drawn anew when it is asked for, and depends on the seed and its name alone.
pub struct SeededSource {
    seed: u64,
    shapes: BTreeMap<String, Vec<usize>>,
}

impl SeededSource {
    /// A source of the tensors named in `shapes` (Hugging Face's names, outermost dimension first).
    #[must_use]
    pub fn new(seed: u64, shapes: Vec<(String, Vec<usize>)>) -> Self {
        Self { seed, shapes: shapes.into_iter().collect() }
    }

    fn stream(&self, name: &str) -> ChaCha8Rng {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.seed.to_le_bytes()).update(name.as_bytes());
        ChaCha8Rng::from_seed(*hasher.finalize().as_bytes())
    }
}

impl TensorSource for SeededSource {
    fn path(&self) -> PathBuf {
        PathBuf::from(format!("weights drawn from seed {}", self.seed))
    }

    fn get(&self, name: &str) -> Option<RawTensor<'_>> {
        let shape = self.shapes.get(name)?.clone();
        let elements = shape.iter().try_fold(1usize, |product, &dim| product.checked_mul(dim))?;
        let mut bytes = Vec::with_capacity(WeightFormat::BF16.bytes_for(elements)?);
        if name.ends_with("norm.weight") {
            bytes.extend(std::iter::repeat_n(bf16::ONE.to_le_bytes(), elements).flatten());
        } else {
            let mut stream = self.stream(name);
            bytes.extend((0..elements).flat_map(|_| bf16::from_f32(near_normal(stream.next_u64())).to_le_bytes()));
        }
        Some(RawTensor { format: WeightFormat::BF16.into(), shape, bytes: Cow::Owned(bytes) })
    }

    fn names(&self) -> Vec<String> {
        self.shapes.keys().cloned().collect()
    }

    fn headers(&self) -> Vec<TensorHeader> {
        let header = |(name, shape): (&String, &Vec<usize>)| TensorHeader {
            name: name.clone(),
            shape: shape.clone(),
            format: WeightFormat::BF16.into(),
            decoded: true,
        };
        self.shapes.iter().map(header).collect()
    }

    fn contains(&self, name: &str) -> bool {
        self.shapes.contains_key(name)
    }
}

/// The sum of four uniform 16-bit numbers, centred and scaled. Integers and one multiplication only: logarithms and
/// cosines differ between C libraries, and the weights must not.
fn near_normal(bits: u64) -> f32 {
    const MEAN: i32 = 2 * 65535;
    // Each of the four has variance (2^16)²/12.
    const SCALE: f32 = STANDARD_DEVIATION / 37_837.227;
    let sum: i32 = (0..4).map(|k| i32::from((bits >> (16 * k)) as u16)).sum();
    (sum - MEAN) as f32 * SCALE
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(tensor: &RawTensor<'_>) -> Vec<f32> {
        tensor.bytes.chunks_exact(2).map(|pair| bf16::from_le_bytes([pair[0], pair[1]]).to_f32()).collect()
    }

    fn source(seed: u64) -> SeededSource {
        let shapes = [("a.weight", vec![64, 100]), ("b.weight", vec![64, 100]), ("model.norm.weight", vec![64])];
        SeededSource::new(seed, shapes.map(|(name, shape)| (name.to_owned(), shape)).to_vec())
    }

    #[test]
    fn the_same_seed_and_name_give_the_same_weights() {
        let (one, two) = (source(7), source(7));
        let [a, again, b, other] =
            [one.get("a.weight"), two.get("a.weight"), one.get("b.weight"), source(8).get("a.weight")]
                .map(|tensor| tensor.expect("is among the shapes").bytes.into_owned());
        assert_eq!(a, again);
        assert_ne!(a, b);
        assert_ne!(a, other);
    }

    #[test]
    fn weights_are_near_normal_and_norms_are_ones() {
        let source = source(1);
        let weights = values(&source.get("a.weight").expect("is among the shapes"));
        let mean = weights.iter().sum::<f32>() / weights.len() as f32;
        let deviation = (weights.iter().map(|w| (w - mean).powi(2)).sum::<f32>() / weights.len() as f32).sqrt();
        assert!(mean.abs() < 1e-3, "{mean}");
        assert!((deviation - 0.02).abs() < 1e-3, "{deviation}");
        assert!(values(&source.get("model.norm.weight").expect("is among the shapes")).iter().all(|&w| w == 1.0));
        assert!(source.get("c.weight").is_none());
    }
}
