//! Tensors of a directory as the hub lays it out: one `model.safetensors`, or several behind an index.
//!
//! Format: <https://github.com/huggingface/safetensors#format>. The index maps each tensor to the file that holds it
//! (`{"weight_map": {"lm_head.weight": "model-00002-of-00002.safetensors"}}`).

mod header;
mod index;

use std::{
    borrow::Cow,
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use self::header::Entry;
use super::{TensorSource, file::FileBytes, shown};
use crate::{
    error::{Error, Result},
    kernels::linear::format::{RawTensor, WeightFormat},
};

/// The file that holds all tensors where they are not split.
pub const WEIGHTS_FILE: &str = "model.safetensors";
/// The file that says which file holds which tensor where they are split.
pub const INDEX_FILE: &str = "model.safetensors.index.json";

/// The tensors of one safetensors file, or of several behind an index.
pub struct SafetensorsSource {
    path: PathBuf,
    shards: Vec<FileBytes>,
    tensors: BTreeMap<String, Located>,
}

/// A tensor and the file it lies in.
struct Located {
    shard: usize,
    entry: Entry,
}

impl SafetensorsSource {
    /// Maps the weights of a directory: `model.safetensors`, else the files that `model.safetensors.index.json` names.
    /// A path of a `.safetensors` file opens that file alone. Only headers are read.
    ///
    /// # Errors
    /// `FailedPrecondition` that names the file and the field where one is missing or does not hold together.
    pub fn open(path: &Path) -> Result<Self> {
        if path.is_file() {
            return Self::single(path.to_owned(), FileBytes::map(path)?);
        }
        let (weights, index) = (path.join(WEIGHTS_FILE), path.join(INDEX_FILE));
        if weights.exists() {
            Self::single(weights.clone(), FileBytes::map(&weights)?)
        } else if index.exists() {
            Self::sharded(path, index)
        } else {
            Err(Error::bad_file(path, "weights", format!("there is neither {WEIGHTS_FILE} nor {INDEX_FILE}")))
        }
    }

    /// Reads one safetensors file that is in memory; `name` stands for it in messages.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn from_bytes(name: &Path, bytes: Cow<'static, [u8]>) -> Result<Self> {
        Self::single(name.to_owned(), FileBytes::Held(bytes))
    }

    fn single(path: PathBuf, bytes: FileBytes) -> Result<Self> {
        let entries = header::read(&path, &bytes)?;
        let tensors = entries.into_iter().map(|(name, entry)| (name, Located { shard: 0, entry })).collect();
        Ok(Self { path, shards: vec![bytes], tensors })
    }

    fn sharded(directory: &Path, index: PathBuf) -> Result<Self> {
        let mut shards = Vec::new();
        let mut tensors = BTreeMap::new();
        for (file, names) in index::read(&index)? {
            let path = directory.join(&file);
            if !path.exists() {
                return Err(Error::bad_file(
                    &index,
                    "weight_map",
                    format!("names {}, which is not there", shown(&file)),
                ));
            }
            let bytes = FileBytes::map(&path)?;
            let mut entries = header::read(&path, &bytes)?;
            for name in names {
                let Some(entry) = entries.remove(&name) else {
                    let why = format!("names {}, which does not hold it", shown(&file));
                    return Err(Error::bad_file(&index, format!("weight_map: {}", shown(&name)), why));
                };
                tensors.insert(name, Located { shard: shards.len(), entry });
            }
            shards.push(bytes);
        }
        Ok(Self { path: index, shards, tensors })
    }
}

/// The format of a safetensors dtype, where it is one that weights are read in.
fn weight_format(dtype: &str) -> Option<WeightFormat> {
    match dtype {
        "F32" => Some(WeightFormat::F32),
        "F16" => Some(WeightFormat::F16),
        "BF16" => Some(WeightFormat::BF16),
        _ => None,
    }
}

impl TensorSource for SafetensorsSource {
    fn path(&self) -> PathBuf {
        self.path.clone()
    }

    fn get(&self, name: &str) -> Option<RawTensor<'_>> {
        let Located { shard, entry } = self.tensors.get(name)?;
        let format = weight_format(&entry.dtype)?;
        let bytes = self.shards.get(*shard)?.get(entry.bytes.clone())?;
        Some(RawTensor { format, shape: entry.shape.clone(), bytes: Cow::Borrowed(bytes) })
    }

    fn names(&self) -> Vec<String> {
        self.tensors.keys().filter(|name| self.contains(name)).cloned().collect()
    }

    fn contains(&self, name: &str) -> bool {
        self.tensors.get(name).is_some_and(|tensor| weight_format(&tensor.entry.dtype).is_some())
    }

    fn octets(&self, name: &str) -> Option<&[u8]> {
        let Located { shard, entry } = self.tensors.get(name).filter(|tensor| tensor.entry.dtype == "U8")?;
        self.shards.get(*shard)?.get(entry.bytes.clone())
    }

    fn refusal(&self, name: &str) -> Option<String> {
        let dtype = &self.tensors.get(name)?.entry.dtype;
        let unread = weight_format(dtype).is_none();
        unread.then(|| format!("is stored as {}, but only F32, F16 and BF16 are read", shown(dtype)))
    }
}

#[cfg(test)]
mod tests {
    use ::safetensors::{Dtype, serialize, tensor::TensorView};

    use super::*;

    fn file(tensors: &[(&str, Dtype, &[usize], &[u8])]) -> Vec<u8> {
        let views = tensors.iter().map(|&(name, dtype, shape, bytes)| {
            (name, TensorView::new(dtype, shape.to_vec(), bytes).expect("a tensor that fits its bytes"))
        });
        serialize(views, None).expect("serializes")
    }

    #[test]
    fn tensors_come_back_as_they_were_written() {
        let (floats, halves) = ([1, 2, 3, 4, 5, 6, 7, 8], [9, 10, 11, 12]);
        let bytes = file(&[
            ("a.weight", Dtype::F32, &[2, 1], &floats),
            ("b.weight", Dtype::BF16, &[1, 2], &halves),
            ("ids", Dtype::I64, &[1], &floats),
        ]);
        let source = SafetensorsSource::from_bytes(Path::new("m.safetensors"), bytes.into()).expect("a good file");
        let a = source.get("a.weight").expect("is there");
        assert_eq!((a.format, a.shape.as_slice(), &*a.bytes), (WeightFormat::F32, &[2, 1][..], &floats[..]));
        let b = source.get("b.weight").expect("is there");
        assert_eq!((b.format, b.shape.as_slice(), &*b.bytes), (WeightFormat::BF16, &[1, 2][..], &halves[..]));
        assert_eq!(source.names(), ["a.weight", "b.weight"]);
        let error = crate::weights::Weights::new(Box::new(source)).get("ids", &[1]).expect_err("is not for weights");
        assert_eq!(error.message, "m.safetensors: tensor ids: is stored as I64, but only F32, F16 and BF16 are read");
    }

    #[test]
    fn shards_are_read_through_their_index() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let write = |name: &str, bytes: &[u8]| std::fs::write(directory.path().join(name), bytes).expect("is written");
        write("one.safetensors", &file(&[("a", Dtype::F16, &[1], &[1, 2])]));
        write("two.safetensors", &file(&[("b", Dtype::F16, &[1], &[3, 4]), ("unlisted", Dtype::F16, &[1], &[3, 4])]));
        write(
            INDEX_FILE,
            br#"{"metadata":{"total_size":4},"weight_map":{"a":"one.safetensors","b":"two.safetensors"}}"#,
        );
        let source = SafetensorsSource::open(directory.path()).expect("good files");
        assert_eq!(source.names(), ["a", "b"]);
        assert_eq!(&*source.get("b").expect("is there").bytes, [3, 4]);

        write(INDEX_FILE, br#"{"weight_map":{"a":"one.safetensors","c":"two.safetensors"}}"#);
        let error = SafetensorsSource::open(directory.path()).err().expect("c is not there");
        assert!(error.message.contains("index.json: weight_map: c: names two.safetensors, which does not hold it"));

        write(INDEX_FILE, br#"{"weight_map":{"a":"three.safetensors"}}"#);
        let error = SafetensorsSource::open(directory.path()).err().expect("the file is not there");
        assert!(error.message.contains("index.json: weight_map: names three.safetensors, which is not there"));
    }

    #[test]
    fn a_directory_without_weights_says_what_was_looked_for() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let error = SafetensorsSource::open(directory.path()).err().expect("nothing is there");
        assert!(error.message.contains("neither model.safetensors nor model.safetensors.index.json"), "{error}");
    }
}
