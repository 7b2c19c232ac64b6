//! The tensors of a GGUF file under Hugging Face's names and in Hugging Face's order.

use std::{borrow::Cow, collections::BTreeMap, path::PathBuf, sync::Arc};

use super::Gguf;
use crate::{
    error::{Error, Result},
    kernels::linear::format::{RawTensor, WeightFormat},
    weights::{TensorSource, names, shown},
};

/// Architectures whose query and key rows GGUF's converter interleaves: a head's row `i` of its first half is followed
/// by row `i` of its second, so that rotary pairs are neighbours. Hugging Face keeps the halves apart.
const INTERLEAVED: [&str; 3] = ["llama", "mistral3", "granite"];

/// The tensors of a GGUF file, as [`TensorSource`] gives them. A name that the table of [`names`] does not have stays
/// as it is.
pub struct GgufSource {
    gguf: Arc<Gguf>,
    /// GGUF's name by Hugging Face's.
    gguf_names: BTreeMap<String, String>,
    /// Query and key/value heads, where rows of the two are interleaved.
    interleaved_heads: Option<(usize, usize)>,
}

impl GgufSource {
    /// Takes the tensors of an open file.
    ///
    /// # Errors
    /// `FailedPrecondition` that names the field: one of several parts of a split model, no architecture, no head count
    /// or one that does not divide the rows of a query or key weight, two tensors of one name.
    pub fn new(gguf: Arc<Gguf>) -> Result<Self> {
        let wrong = |field: &str, why: String| Error::bad_file(gguf.path(), field, why);
        if let Some(parts) = gguf.u64("split.count")?.filter(|&parts| parts > 1) {
            let why = format!("says that this is one of {parts} files: merge them first (llama-gguf-split --merge)");
            return Err(wrong("metadata split.count", why));
        }
        let architecture = gguf.string("general.architecture")?;
        let architecture = architecture.ok_or_else(|| wrong("metadata general.architecture", "is missing".into()))?;
        let mut gguf_names = BTreeMap::new();
        for (name, _) in gguf.tensors() {
            let hf_name = names::to_hf(architecture, name).unwrap_or_else(|| name.to_owned());
            if gguf_names.insert(hf_name, name.to_owned()).is_some() {
                return Err(wrong(
                    &format!("tensor {}", shown(name)),
                    "appears twice, by GGUF's and another name".into(),
                ));
            }
        }
        let interleaved_heads = if INTERLEAVED.contains(&architecture) {
            let heads = |key: &str| {
                let key = format!("{architecture}.attention.{key}");
                let count = gguf.u64(&key)?;
                match count.map(usize::try_from) {
                    None => Ok(None),
                    Some(Ok(count)) if count > 0 => Ok(Some(count)),
                    Some(_) => Err(wrong(&format!("metadata {key}"), "is no number of heads".into())),
                }
            };
            let query = heads("head_count")?;
            let query = query
                .ok_or_else(|| wrong(&format!("metadata {architecture}.attention.head_count"), "is missing".into()))?;
            Some((query, heads("head_count_kv")?.unwrap_or(query)))
        } else {
            None
        };
        let source = Self { gguf_names, interleaved_heads, gguf: Arc::clone(&gguf) };
        for (hf_name, name) in &source.gguf_names {
            let (Some(heads), Some(tensor)) = (source.interleaved(hf_name), gguf.tensor(name)) else { continue };
            let rows = tensor.shape.first().copied().unwrap_or(0);
            let whole_rows = tensor.shape.len() == 2 || tensor.format.is_none_or(|format| format.block_len() == 1);
            if !whole_rows || heads.checked_mul(2).is_none_or(|halves| rows % halves != 0) {
                let why = format!("{:?} do not divide into {heads} heads of two halves", tensor.shape);
                return Err(wrong(&format!("tensor {}: dimensions", shown(name)), why));
            }
        }
        Ok(source)
    }

    /// The file.
    #[must_use]
    pub fn gguf(&self) -> &Arc<Gguf> {
        &self.gguf
    }

    /// Heads of a tensor whose rows are interleaved.
    fn interleaved(&self, hf_name: &str) -> Option<usize> {
        let (query, key) = self.interleaved_heads?;
        let ends_in = |projection: &str| {
            let stem = hf_name.strip_suffix(".weight").or_else(|| hf_name.strip_suffix(".bias"));
            stem.is_some_and(|stem| stem.ends_with(projection))
        };
        if ends_in("self_attn.q_proj") {
            Some(query)
        } else if ends_in("self_attn.k_proj") {
            Some(key)
        } else {
            None
        }
    }
}

impl TensorSource for GgufSource {
    fn path(&self) -> PathBuf {
        self.gguf.path().to_owned()
    }

    fn get(&self, name: &str) -> Option<RawTensor<'_>> {
        let tensor = self.gguf.tensor(self.gguf_names.get(name)?)?;
        let format = tensor.format?;
        let bytes = self.gguf.tensor_bytes(tensor)?;
        let bytes = match self.interleaved(name) {
            Some(heads) => Cow::Owned(separate_halves(bytes, *tensor.shape.first()?, heads)),
            None => Cow::Borrowed(bytes),
        };
        Some(RawTensor { format, shape: tensor.shape.clone(), bytes })
    }

    fn names(&self) -> Vec<String> {
        self.gguf_names.keys().filter(|name| self.contains(name)).cloned().collect()
    }

    fn contains(&self, name: &str) -> bool {
        let tensor = self.gguf_names.get(name).and_then(|name| self.gguf.tensor(name));
        tensor.is_some_and(|tensor| tensor.format.is_some())
    }

    fn refusal(&self, name: &str) -> Option<String> {
        let tensor = self.gguf.tensor(self.gguf_names.get(name)?)?;
        let read = WeightFormat::ALL.map(|format| format.to_string()).join(", ");
        tensor.format.is_none().then(|| format!("is stored as {}, but only {read} are read", tensor.kind_name()))
    }
}

/// Moves row `2i + j` of each head to row `j · half + i`, the inverse of what GGUF's converter does. Rows are whole
/// blocks in every format, so that bytes can be moved without being decoded.
fn separate_halves(bytes: &[u8], rows: usize, heads: usize) -> Vec<u8> {
    let row_bytes = bytes.len().checked_div(rows).unwrap_or(0);
    let half = rows.checked_div(2 * heads).unwrap_or(0);
    let mut separated = Vec::with_capacity(bytes.len());
    if row_bytes == 0 {
        return separated;
    }
    for head in bytes.chunks_exact(2 * half * row_bytes) {
        for j in 0..2 {
            for row in head.chunks_exact(row_bytes).skip(j).step_by(2) {
                separated.extend_from_slice(row);
            }
        }
    }
    separated
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn separating_halves_inverts_the_converters_interleaving() {
        // Two heads of four rows of three bytes; Hugging Face's rows are 0 to 7.
        let (heads, half) = (2, 2);
        let mut interleaved = Vec::new();
        for head in 0..heads {
            for i in 0..half {
                for j in 0..2 {
                    interleaved.extend([(head * 2 * half + j * half + i) as u8; 3]);
                }
            }
        }
        let expected: Vec<u8> = (0..8u8).flat_map(|row| [row; 3]).collect();
        assert_eq!(separate_halves(&interleaved, 8, heads), expected);
    }
}
