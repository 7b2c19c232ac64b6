//! The tensors of a GGUF file under Hugging Face's names and in Hugging Face's order.

use std::{borrow::Cow, collections::BTreeMap, path::PathBuf, sync::Arc};

use super::{Gguf, latent::Expansion};
use crate::{
    error::{Error, Result},
    kernels::linear::format::{RawTensor, WeightFormat},
    weights::{StoredTensor, TensorHeader, TensorSource, names, part::part, shown},
};

/// Architectures whose query and key rows GGUF's converter interleaves: a head's row `i` of its first half is followed
/// by row `i` of its second, so that rotary pairs are neighbours. Hugging Face keeps the halves apart.
pub const INTERLEAVED: [&str; 4] = ["llama", "mistral3", "granite", "smollm3"];

/// The tensors of a GGUF file, as [`TensorSource`] gives them. A name that the table of [`names`] does not have stays
/// as it is.
pub struct GgufSource {
    gguf: Arc<Gguf>,
    /// GGUF's name by Hugging Face's.
    gguf_names: BTreeMap<String, String>,
    /// Matrices that the file has in two halves, by Hugging Face's name.
    expansions: BTreeMap<String, Expansion>,
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
        if let Some(parts) = gguf.u64("split.count")?.filter(|&parts| parts > 1 && parts != gguf.parts() as u64) {
            let why = format!("says that this is one of {parts} files, and the others are not at hand");
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
        let expansions = Expansion::all(&mut gguf_names);
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
        let source = Self { gguf_names, expansions, interleaved_heads, gguf: Arc::clone(&gguf) };
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

    /// A tensor as it is stored, by Hugging Face's name, with GGUF's name.
    fn stored(&self, name: &str) -> Option<(&str, RawTensor<'_>)> {
        let gguf_name = self.gguf_names.get(name)?;
        let raw = self.raw(gguf_name)?;
        Some((gguf_name, RawTensor { shape: hf_shape(name, &raw.shape), ..raw }))
    }

    /// A tensor as it is stored, by GGUF's name.
    fn raw(&self, gguf_name: &str) -> Option<RawTensor<'_>> {
        let tensor = self.gguf.tensor(gguf_name)?;
        let bytes = Cow::Borrowed(self.gguf.tensor_bytes(tensor)?);
        Some(RawTensor { format: tensor.format?, shape: tensor.shape.clone(), bytes })
    }

    /// A tensor that the file has in two halves.
    fn joined(&self, expansion: &Expansion) -> Option<RawTensor<'static>> {
        let half = |name: &str| self.scaled(name, 0, self.raw(name)?);
        expansion.joined(&half(&expansion.keys)?, &half(&expansion.values)?)
    }

    /// What such a tensor is.
    fn joined_header(&self, name: &str, expansion: &Expansion) -> Option<TensorHeader> {
        let half = |name: &str| self.raw(name).map(|raw| RawTensor { bytes: Cow::Borrowed(&[]), ..raw });
        let (keys, values) = (half(&expansion.keys)?, half(&expansion.values)?);
        let (shape, format) = (Expansion::shape(&keys, &values)?, Expansion::format(&keys, &values).into());
        Some(TensorHeader { name: name.to_owned(), shape, format, decoded: true })
    }

    /// A tensor whose first weight is number `first` of the one that GGUF calls `name`, times its scales where it has such.
    fn scaled<'a>(&self, name: &str, first: usize, raw: RawTensor<'a>) -> Option<RawTensor<'a>> {
        let Some(scales) = self.gguf.scales_of(name).ok()? else { return Some(raw) };
        let mut weights = raw.to_f32();
        scales.multiply(first, &mut weights);
        let bytes = weights.iter().flat_map(|&weight| half::bf16::from_f32(weight).to_le_bytes()).collect();
        Some(RawTensor { format: WeightFormat::BF16.into(), shape: raw.shape, bytes })
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
        if let Some(expansion) = self.expansions.get(name) {
            return self.joined(expansion);
        }
        let (gguf_name, raw) = self.stored(name)?;
        let mut raw = self.scaled(gguf_name, 0, raw)?;
        if let Some(heads) = self.interleaved(name) {
            raw.bytes = Cow::Owned(separate_halves(&raw.bytes, *raw.shape.first()?, heads));
        }
        Some(raw)
    }

    fn part(&self, name: &str, index: usize, count: usize) -> Option<RawTensor<'_>> {
        if self.interleaved(name).is_some() || self.expansions.contains_key(name) {
            return part(&self.get(name)?, index, count);
        }
        let (gguf_name, raw) = self.stored(name)?;
        let part = part(&raw, index, count)?;
        let first = index * part.shape.iter().product::<usize>();
        self.scaled(gguf_name, first, part)
    }

    fn headers(&self) -> Vec<TensorHeader> {
        let header = |(name, gguf_name): (&String, &String)| {
            let tensor = self.gguf.tensor(gguf_name)?;
            let scaled = self.gguf.scales_of(gguf_name).ok()?.is_some();
            let format = if scaled { WeightFormat::BF16.into() } else { tensor.format? };
            let decoded = scaled || self.interleaved(name).is_some();
            Some(TensorHeader { name: name.clone(), shape: hf_shape(name, &tensor.shape), format, decoded })
        };
        let joined = self.expansions.iter().filter_map(|(name, expansion)| self.joined_header(name, expansion));
        self.gguf_names.iter().filter_map(header).chain(joined).collect()
    }

    fn for_each_stored(&self, show: &mut dyn FnMut(&StoredTensor<'_>)) {
        for (name, tensor) in self.gguf.tensors() {
            let bytes = self.gguf.tensor_bytes(tensor).unwrap_or_default();
            show(&StoredTensor { name, kind: &tensor.kind_name(), shape: &tensor.shape, bytes });
        }
    }

    fn names(&self) -> Vec<String> {
        self.gguf_names.keys().chain(self.expansions.keys()).filter(|name| self.contains(name)).cloned().collect()
    }

    fn contains(&self, name: &str) -> bool {
        if let Some(expansion) = self.expansions.get(name) {
            return self.joined_header(name, expansion).is_some();
        }
        let Some(name) = self.gguf_names.get(name) else { return false };
        self.gguf.tensor(name).is_some_and(|tensor| tensor.format.is_some()) && self.gguf.scales_of(name).is_ok()
    }

    fn refusal(&self, name: &str) -> Option<String> {
        if let Some(expansion) = self.expansions.get(name) {
            let why = || format!("cannot be made of {} and {}", shown(&expansion.keys), shown(&expansion.values));
            return self.joined_header(name, expansion).is_none().then(why);
        }
        let name = self.gguf_names.get(name)?;
        let tensor = self.gguf.tensor(name)?;
        if tensor.format.is_none() {
            return Some(format!("is stored as {}, which is no kind of weights that is read", tensor.kind_name()));
        }
        self.gguf.scales_of(name).err().map(|error| format!("cannot be scaled: {error}"))
    }
}

/// The shape that Hugging Face gives a tensor, where GGUF leaves dimensions of one away: `[channels, 1, taps]` of a
/// convolution, `[1, inputs]` of a Linear with one output.
fn hf_shape(name: &str, shape: &[usize]) -> Vec<usize> {
    match *shape {
        [channels, taps] if name.ends_with(".conv1d.weight") => vec![channels, 1, taps],
        [inputs] if name.ends_with(".shared_expert_gate.weight") => vec![1, inputs],
        _ => shape.to_vec(),
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
    use crate::{
        kernels::linear::stored::{NVFP4, StoredFormat},
        weights::gguf::writer::{NewTensor, NewValue, write},
    };

    /// A file of two experts in NVFP4, all weights 1 where a scale makes no other of them, and what else is said.
    fn experts(more: &[NewTensor], data: &[Vec<u8>]) -> GgufSource {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("nvfp4.gguf");
        let metadata = [("general.architecture".to_owned(), NewValue::string("qwen3moe"))];
        let format = StoredFormat::ReadOnly(&NVFP4);
        let weight = NewTensor { name: "blk.0.ffn_up_exps.weight".into(), shape: vec![2, 3, 64], format };
        // Four scales of 1 (E4M3), and 64 times the number of four bits that is 1.
        let block = [[0x38; 4].as_slice(), &[0x22; 32]].concat();
        let data = [&[block.repeat(6)], data].concat();
        let tensors = [&[weight], more].concat();
        write(&path, &metadata, &tensors, &mut |index| Ok(Cow::Borrowed(&data[index]))).expect("is written");
        GgufSource::new(Arc::new(Gguf::open(&path).expect("a good file"))).expect("a good file")
    }

    const UP: &str = "model.layers.0.mlp.experts.up_proj.weight";

    #[test]
    fn an_expert_is_cut_out_before_it_is_scaled() {
        let f32s = |numbers: &[f32]| numbers.iter().flat_map(|number| number.to_le_bytes()).collect::<Vec<u8>>();
        let scales = |count: usize| NewTensor {
            name: "blk.0.ffn_up_exps.scale".into(),
            shape: vec![count],
            format: WeightFormat::F32.into(),
        };
        let plain = experts(&[], &[]);
        let part = plain.part(UP, 1, 2).expect("is there");
        assert!(matches!(part.bytes, Cow::Borrowed(_)), "is not decoded");
        assert_eq!((part.shape.as_slice(), part.to_f32()), (&[3, 64][..], vec![1.0; 192]));

        let scaled = experts(&[scales(2)], &[f32s(&[2.0, 4.0])]);
        let whole = scaled.get(UP).expect("is there").to_f32();
        assert_eq!((whole[0], whole[191], whole[192], whole[383]), (2.0, 2.0, 4.0, 4.0));
        assert_eq!(scaled.part(UP, 1, 2).expect("is there").to_f32(), [4.0; 192]);
        assert!(scaled.part(UP, 0, 3).is_none(), "there are two");

        let misfit = experts(&[scales(5)], &[f32s(&[1.0; 5])]);
        assert!(misfit.get(UP).is_none() && !misfit.contains(UP));
        assert!(misfit.refusal(UP).expect("does not fit").contains("has 5 scales"));
    }

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
