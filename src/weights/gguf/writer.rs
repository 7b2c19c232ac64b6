//! Writes GGUF files, version 3: metadata, the table of tensors, and their data one after another.

use std::{
    fs::{self, File},
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
};

use super::{DEFAULT_ALIGNMENT, Gguf, MAGIC, metadata::Kind, tensors::ggml_kind};
use crate::{
    error::{Error, Result},
    kernels::linear::stored::StoredFormat,
};

const VERSION: u32 = 3;
/// Files beside the one to be written that others write, or left behind, before it is given up.
const MAX_PARTS: usize = 1000;

/// A value of a key, as the file has it: the number of its type, and its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewValue(Vec<u8>);

impl NewValue {
    fn typed(kind: Kind, bytes: impl AsRef<[u8]>) -> Self {
        Self([&(kind as u32).to_le_bytes(), bytes.as_ref()].concat())
    }

    /// A value that another file has, as it lies there.
    pub(super) fn copied(bytes: &[u8]) -> Self {
        Self(bytes.to_vec())
    }

    /// An unsigned number of 32 bits.
    #[must_use]
    pub fn u32(value: u32) -> Self {
        Self::typed(Kind::U32, value.to_le_bytes())
    }

    /// A signed number of 32 bits.
    #[must_use]
    pub fn i32(value: i32) -> Self {
        Self::typed(Kind::I32, value.to_le_bytes())
    }

    /// A single.
    #[must_use]
    pub fn f32(value: f32) -> Self {
        Self::typed(Kind::F32, value.to_le_bytes())
    }

    /// A boolean.
    #[must_use]
    pub fn bool(value: bool) -> Self {
        Self::typed(Kind::Bool, [u8::from(value)])
    }

    /// A list of booleans.
    #[must_use]
    pub fn bools(list: &[bool]) -> Self {
        let mut bytes = array_head(Kind::Bool, list.len());
        bytes.extend(list.iter().map(|&flag| u8::from(flag)));
        Self::typed(Kind::Array, bytes)
    }

    /// A text.
    #[must_use]
    pub fn string(text: &str) -> Self {
        Self::typed(Kind::String, sized(text))
    }

    /// A list of texts.
    #[must_use]
    pub fn strings<T: AsRef<str>>(list: &[T]) -> Self {
        let mut bytes = array_head(Kind::String, list.len());
        list.iter().for_each(|text| bytes.extend(sized(text.as_ref())));
        Self::typed(Kind::Array, bytes)
    }

    /// A list of singles.
    #[must_use]
    pub fn f32s(list: &[f32]) -> Self {
        let mut bytes = array_head(Kind::F32, list.len());
        list.iter().for_each(|number| bytes.extend(number.to_le_bytes()));
        Self::typed(Kind::Array, bytes)
    }

    /// A list of bytes.
    #[must_use]
    pub fn u8s(list: &[u8]) -> Self {
        let mut bytes = array_head(Kind::U8, list.len());
        bytes.extend(list);
        Self::typed(Kind::Array, bytes)
    }

    /// A list of signed numbers of 32 bits.
    #[must_use]
    pub fn i32s(list: &[i32]) -> Self {
        let mut bytes = array_head(Kind::I32, list.len());
        list.iter().for_each(|number| bytes.extend(number.to_le_bytes()));
        Self::typed(Kind::Array, bytes)
    }
}

fn array_head(kind: Kind, count: usize) -> Vec<u8> {
    [&(kind as u32).to_le_bytes()[..], &(count as u64).to_le_bytes()].concat()
}

fn sized(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

/// A tensor that will be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewTensor {
    /// GGUF's name.
    pub name: String,
    /// Outermost dimension first.
    pub shape: Vec<usize>,
    /// Of its data.
    pub format: StoredFormat,
}

impl NewTensor {
    /// Bytes of its data.
    ///
    /// # Errors
    /// `FailedPrecondition` that names the tensor where its rows are no whole blocks.
    pub fn bytes(&self) -> Result<usize> {
        let elements = self.shape.iter().try_fold(1usize, |product, &dim| product.checked_mul(dim));
        let whole_rows = self.shape.last().is_none_or(|row| row % self.format.block_len() == 0);
        let bytes = elements.filter(|_| whole_rows).and_then(|elements| self.format.bytes_for(elements));
        bytes.ok_or_else(|| {
            let why = format!("{:?} are no whole blocks of {}", self.shape, self.format);
            Error::bad_file("output", format!("tensor {}: dimensions", self.name), why)
        })
    }
}

/// Writes a file: whole, or not at all. It grows under a name that nobody else has, beside its own. `data` is called for each tensor in order and gives its bytes.
///
/// # Errors
/// `FailedPrecondition` that names the file where it cannot be written; whatever `data` gives.
pub fn write<'a>(
    path: &Path,
    metadata: &[(String, NewValue)],
    tensors: &[NewTensor],
    data: &mut dyn FnMut(usize) -> Result<std::borrow::Cow<'a, [u8]>>,
) -> Result<()> {
    let failed = |error| Error::bad_file(path, "write", error);
    let (part, file) = create_beside(path).map_err(failed)?;
    let written =
        write_part(path, file, metadata, tensors, data).and_then(|()| fs::rename(&part, path).map_err(failed));
    if written.is_err() {
        let _gone_already = fs::remove_file(&part);
    }
    written
}

/// A new file in the folder of `path`: one that was not there, so that no other writer has it.
fn create_beside(path: &Path) -> io::Result<(PathBuf, File)> {
    let name = path.file_name().unwrap_or_default();
    for number in 0..MAX_PARTS {
        let mut name = name.to_owned();
        name.push(format!(".{number}.part"));
        let part = path.with_file_name(name);
        match File::create_new(&part) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            created => return Ok((part, created?)),
        }
    }
    Err(io::Error::other(format!("{MAX_PARTS} files beside it that end in .part are there already")))
}

fn write_part<'a>(
    path: &Path,
    file: File,
    metadata: &[(String, NewValue)],
    tensors: &[NewTensor],
    data: &mut dyn FnMut(usize) -> Result<std::borrow::Cow<'a, [u8]>>,
) -> Result<()> {
    let failed = |error: io::Error| Error::bad_file(path, "write", error);
    let mut header = [&MAGIC[..], &VERSION.to_le_bytes()].concat();
    header.extend((tensors.len() as u64).to_le_bytes());
    header.extend((metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata {
        header.extend(sized(key));
        header.extend(&value.0);
    }
    let mut offset = 0u64;
    for tensor in tensors {
        header.extend(sized(&tensor.name));
        header.extend((tensor.shape.len() as u32).to_le_bytes());
        tensor.shape.iter().rev().for_each(|&dim| header.extend((dim as u64).to_le_bytes()));
        header.extend(ggml_kind(tensor.format).to_le_bytes());
        header.extend(offset.to_le_bytes());
        offset += (tensor.bytes()? as u64).next_multiple_of(DEFAULT_ALIGNMENT);
    }
    let padding = |length: usize| vec![0; length.next_multiple_of(DEFAULT_ALIGNMENT as usize) - length];
    header.extend(padding(header.len()));

    let mut file = BufWriter::new(file);
    file.write_all(&header).map_err(failed)?;
    for (index, tensor) in tensors.iter().enumerate() {
        let bytes = data(index)?;
        if bytes.len() != tensor.bytes()? {
            return Err(Error::internal(format!("tensor {} has {} bytes to write", tensor.name, bytes.len())));
        }
        file.write_all(&bytes).and_then(|()| file.write_all(&padding(bytes.len()))).map_err(failed)?;
    }
    file.into_inner().map_err(|error| failed(error.into_error()))?.sync_all().map_err(failed)
}

impl Gguf {
    /// Its keys and values as they lie in the file, for a new one.
    pub fn raw_metadata(&self) -> impl Iterator<Item = (&str, NewValue)> {
        self.values
            .iter()
            .map(|(key, range)| (key.as_str(), NewValue::copied(self.bytes.get(range.clone()).unwrap_or_default())))
    }
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use super::*;
    use crate::kernels::linear::{format::WeightFormat, stored};

    #[test]
    fn what_is_written_is_read_again() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("new.gguf");
        let metadata = [
            ("general.architecture", NewValue::string("llama")),
            ("a.number", NewValue::u32(7)),
            ("a.float", NewValue::f32(1.5)),
            ("a.flag", NewValue::bool(true)),
            ("a.list", NewValue::strings(&["x", "yz"])),
            ("some.numbers", NewValue::i32s(&[-1, 2])),
            ("some.switches", NewValue::bools(&[true, false])),
        ]
        .map(|(key, value)| (key.to_owned(), value));
        let tensor = |name: &str, shape: &[usize], format: StoredFormat| NewTensor {
            name: name.into(),
            shape: shape.into(),
            format,
        };
        let tensors = [
            tensor("a.weight", &[3], WeightFormat::F32.into()),
            tensor("b.weight", &[2, 32], StoredFormat::ReadOnly(&stored::IQ4_NL)),
        ];
        let bytes = [vec![1; 12], vec![2; 36]];
        write(&path, &metadata, &tensors, &mut |index| Ok(Cow::Borrowed(&bytes[index]))).expect("is written");
        let file = Gguf::open(&path).expect("a good file");
        assert_eq!(file.u64("a.number").expect("a number"), Some(7));
        assert_eq!(file.f32("a.float").expect("a number"), Some(1.5));
        assert_eq!(file.bool("a.flag").expect("a flag"), Some(true));
        let list = file.array_strings("a.list").expect("texts").expect("is there");
        assert_eq!(list.collect::<Vec<_>>(), ["x", "yz"]);
        let numbers = file.array_i64("some.numbers").expect("numbers").expect("is there");
        assert_eq!(numbers.collect::<Vec<_>>(), [-1, 2]);
        let switches = file.array_bools("some.switches").expect("booleans").expect("is there");
        assert_eq!(switches.collect::<Vec<_>>(), [true, false]);
        for (new, bytes) in tensors.iter().zip(&bytes) {
            let read = file.tensor(&new.name).expect("is there");
            assert_eq!((&read.shape, read.format), (&new.shape, Some(new.format)));
            assert_eq!(file.tensor_bytes(read), Some(&bytes[..]));
        }
        let copied: Vec<_> = file.raw_metadata().map(|(key, value)| (key.to_owned(), value)).collect();
        let mut sorted = metadata.to_vec();
        sorted.sort_by(|a, b| a.0.cmp(&b.0));
        assert_eq!(copied, sorted);
    }

    #[test]
    fn writers_of_one_file_do_not_write_into_each_others() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("new.gguf");
        fs::write(directory.path().join("new.gguf.0.part"), b"another's").expect("is written");
        let tensors = [NewTensor { name: "a".into(), shape: vec![1], format: WeightFormat::F32.into() }];
        let mut inner = |_: usize| Ok(Cow::Borrowed(&[0u8, 0, 0, 64][..]));
        write(&path, &[], &tensors, &mut |_| {
            // Another begins and ends while this one is under way.
            write(&path, &[], &tensors, &mut inner).expect("is written");
            Ok(Cow::Borrowed(&[0u8, 0, 128, 63]))
        })
        .expect("is written");
        let file = Gguf::open(&path).expect("a whole file");
        let tensor = file.tensor("a").expect("is there");
        assert_eq!(file.tensor_bytes(tensor), Some(&[0u8, 0, 128, 63][..]), "the last to end counts");
        assert_eq!(fs::read(directory.path().join("new.gguf.0.part")).expect("is there still"), b"another's");
        assert_eq!(directory.path().read_dir().expect("a directory").count(), 2);
    }

    #[test]
    fn a_file_that_cannot_be_finished_is_not_there() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("new.gguf");
        let tensors = [NewTensor { name: "a".into(), shape: vec![1], format: WeightFormat::F32.into() }];
        let error = write(&path, &[], &tensors, &mut |_| Err(Error::internal("no data"))).expect_err("has no data");
        assert_eq!(error.message, "no data");
        assert_eq!(directory.path().read_dir().expect("a directory").count(), 0);
    }
}
