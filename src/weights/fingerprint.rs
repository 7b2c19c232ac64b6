//! A short name for a set of weights, so that a receipt can say which ones an answer came from.

use sha2::{Digest, Sha256};

use super::Weights;

/// Bytes of each sample, and samples a tensor: what is hashed of a large model is read in a moment.
const SAMPLE_BYTES: usize = 4096;
const SAMPLES: usize = 4;

impl Weights {
    /// SHA-256, in hexadecimal, over the tensors in the order of their names: name, format, shape, and four samples of
    /// 4 KiB at even distances (all bytes of a tensor that has no more). It tells models, formats and fine-tunes apart;
    /// it does not prove that no byte between two samples was changed.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        let mut names = self.names();
        names.sort_unstable();
        let mut hash = Sha256::new();
        for name in names {
            hash.update(name.as_bytes());
            let Some(tensor) = self.source.get(&name) else { continue };
            hash.update(format!("\0{:?}{:?}", tensor.format, tensor.shape).as_bytes());
            let (bytes, stride) = (&tensor.bytes[..], tensor.bytes.len() / SAMPLES);
            if bytes.len() <= SAMPLES * SAMPLE_BYTES {
                hash.update(bytes);
                continue;
            }
            (0..SAMPLES).for_each(|k| hash.update(&bytes[k * stride..][..SAMPLE_BYTES]));
        }
        hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}
