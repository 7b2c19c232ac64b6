//! A short name for a set of weights, so that a receipt can say which ones an answer came from.

use sha2::{Digest, Sha256};

use super::{StoredTensor, Weights};

/// Bytes of each sample, and samples a tensor: what is hashed of a large model is read in a moment.
const SAMPLE_BYTES: usize = 4096;
const SAMPLES: usize = 4;

impl Weights {
    /// SHA-256, in hexadecimal, over the tensors as the file has them, in the order of their names: name, format, shape,
    /// and four samples of 4 KiB at even distances (all bytes of a tensor that has no more). Nothing is decoded for it. It tells models, formats and fine-tunes apart;
    /// it does not prove that no byte between two samples was changed.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        let mut hash = Sha256::new();
        self.source.for_each_stored(&mut |StoredTensor { name, kind, shape, bytes }| {
            hash.update(format!("{name}\0{kind}{shape:?}").as_bytes());
            if bytes.len() <= SAMPLES * SAMPLE_BYTES {
                return hash.update(bytes);
            }
            let stride = bytes.len() / SAMPLES;
            (0..SAMPLES).for_each(|k| hash.update(&bytes[k * stride..][..SAMPLE_BYTES]));
        });
        hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use ::safetensors::{Dtype, serialize, tensor::TensorView};

    use super::*;
    use crate::weights::safetensors::SafetensorsSource;

    #[test]
    fn a_byte_of_any_tensor_that_is_read_changes_the_name() {
        let name = |blocks: u8, weight: u8| {
            let (blocks, weight) = ([blocks; 16], [weight; 4]);
            let view = |dtype, shape: &[usize], bytes| TensorView::new(dtype, shape.to_vec(), bytes).expect("fits");
            let tensors = [
                ("e.down_proj_blocks", view(Dtype::U8, &[1, 1, 1, 16], &blocks)),
                ("e.down_proj_scales", view(Dtype::U8, &[1, 1, 1], &[127])),
                ("w.weight", view(Dtype::F32, &[1], &weight)),
            ];
            let bytes = serialize(tensors, None).expect("serializes");
            let source = SafetensorsSource::from_bytes(Path::new("m.safetensors"), bytes.into()).expect("a good file");
            Weights::new(Box::new(source)).fingerprint()
        };
        assert_eq!(name(1, 1), name(1, 1));
        assert_ne!(name(1, 1), name(2, 1));
        assert_ne!(name(1, 1), name(1, 2));
    }
}
