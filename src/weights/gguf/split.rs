//! Models split into several GGUF files, as llama.cpp's gguf-split and its converter write them:
//! `name-00001-of-00003.gguf` holds the metadata, and each part its own tensors.

use std::path::{Path, PathBuf};

use super::Gguf;
use crate::{
    error::{Error, Result},
    weights::shown,
};

/// Most parts: numbers in the names have five digits.
const MAX_PARTS: u64 = 99_999;

const COUNT: &str = "split.count";
const NUMBER: &str = "split.no";

/// The name of one part of a split model.
struct PartName<'a> {
    stem: &'a str,
    parts: usize,
}

impl<'a> PartName<'a> {
    /// Takes a name apart: a stem, `-`, five digits, `-of-`, five digits, `.gguf`.
    fn parse(path: &'a Path) -> Option<Self> {
        let name = path.file_name()?.to_str()?.strip_suffix(".gguf")?;
        let (rest, parts) = name.rsplit_once("-of-")?;
        let (stem, number) = rest.rsplit_once('-')?;
        let is_number = |text: &str| text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit());
        if !is_number(number) || !is_number(parts) {
            return None;
        }
        let (number, parts) = (number.parse::<usize>().ok()?, parts.parse().ok()?);
        (1..=parts).contains(&number).then_some(Self { stem, parts })
    }

    fn name_of(&self, number: usize) -> String {
        format!("{}-{number:05}-of-{:05}.gguf", self.stem, self.parts)
    }
}

/// The path of the first part, where `path` is named as a part of a split model.
pub(crate) fn first_part(path: &Path) -> Option<PathBuf> {
    Some(first_of_parts(path)?.0)
}

/// The same, and how many parts there are.
pub(crate) fn first_of_parts(path: &Path) -> Option<(PathBuf, usize)> {
    let name = PartName::parse(path)?;
    Some((path.with_file_name(name.name_of(1)), name.parts))
}

/// Adds the tensors of the other parts to those of the first.
///
/// # Errors
/// `FailedPrecondition` that names the part and the field: one that is missing, of another model or out of order, a
/// tensor that two of them hold.
pub(super) fn add_parts(first: &mut Gguf) -> Result<()> {
    let Some(count) = first.u64(COUNT)?.filter(|&count| count > 1) else { return Ok(()) };
    let path = first.path().to_owned();
    let wrong = |key: &str, why: String| Error::bad_file(&path, format!("metadata {key}"), why);
    let name = PartName::parse(&path);
    let Some(name) = name.filter(|name| count <= MAX_PARTS && name.parts as u64 == count) else {
        let why = format!("is {count}, but the file is not named as the first of {count} (…-00001-of-{count:05}.gguf)");
        return Err(wrong(COUNT, why));
    };
    check_number(first, 0)?;
    for number in 1..name.parts {
        let part_path = path.with_file_name(name.name_of(number + 1));
        if !part_path.is_file() {
            let missing = shown(&name.name_of(number + 1));
            return Err(wrong(COUNT, format!("is {count}, but part {missing} is not there")));
        }
        let part = Gguf::open_part(&part_path)?;
        if part.u64(COUNT)? != Some(count) {
            let why = format!("is not {count}, as the first part has it");
            return Err(Error::bad_file(&part_path, format!("metadata {COUNT}"), why));
        }
        check_number(&part, number as u64)?;
        for (tensor_name, mut tensor) in part.tensors {
            if first.tensors.contains_key(&tensor_name) {
                let field = format!("tensor {}", shown(&tensor_name));
                return Err(Error::bad_file(&part_path, field, "is in a part before this one too"));
            }
            tensor.part = number;
            first.tensors.insert(tensor_name, tensor);
        }
        first.others.push(part.bytes);
    }
    let declared = first.u64("split.tensors.count")?;
    match declared.filter(|&declared| declared != first.tensors.len() as u64) {
        Some(declared) => {
            let why = format!("is {declared}, but the parts hold {} tensors", first.tensors.len());
            Err(wrong("split.tensors.count", why))
        }
        None => Ok(()),
    }
}

fn check_number(part: &Gguf, number: u64) -> Result<()> {
    match part.u64(NUMBER)? {
        Some(found) if found == number => Ok(()),
        found => {
            let found = found.map_or_else(|| "missing".to_owned(), |found| found.to_string());
            let why = format!("is {found}, but the file's name says {number} (counted from 0)");
            Err(Error::bad_file(part.path(), format!("metadata {NUMBER}"), why))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        kernels::linear::format::WeightFormat,
        weights::gguf::writer::{NewTensor, NewValue, write},
    };

    #[test]
    fn any_part_names_the_first() {
        let first = |name: &str| first_part(&Path::new("/models").join(name));
        assert_eq!(first("a-b-00002-of-00003.gguf"), Some("/models/a-b-00001-of-00003.gguf".into()));
        assert_eq!(first("a-00001-of-00001.gguf"), Some("/models/a-00001-of-00001.gguf".into()));
        for name in ["a.gguf", "a-00004-of-00003.gguf", "a-00000-of-00003.gguf", "a-1-of-3.gguf", "00001-of-00002.gguf"]
        {
            assert_eq!(first(name), None, "{name}");
        }
    }

    /// Writes a part with one tensor, and gives its path.
    fn part(folder: &Path, number: usize, of: usize, says: [u32; 2], tensor: &str) -> PathBuf {
        let path = folder.join(format!("m-{number:05}-of-{of:05}.gguf"));
        let metadata = [(NUMBER, says[0]), (COUNT, says[1]), ("split.tensors.count", 2)];
        let metadata = metadata.map(|(key, value)| (key.to_owned(), NewValue::u32(value)));
        let tensors = [NewTensor { name: tensor.into(), shape: vec![2], format: WeightFormat::F32.into() }];
        write(&path, &metadata, &tensors, &mut |_| Ok(vec![number as u8; 8].into())).expect("is written");
        path
    }

    #[test]
    fn the_parts_are_one_model() {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let first = part(folder.path(), 1, 2, [0, 2], "a");
        let second = part(folder.path(), 2, 2, [1, 2], "b");
        for path in [&first, &second] {
            let gguf = Gguf::open(path).expect("two parts");
            assert_eq!((gguf.parts(), gguf.path()), (2, first.as_path()));
            for (name, byte) in [("a", 1), ("b", 2)] {
                let tensor = gguf.tensor(name).expect("is there");
                assert_eq!(gguf.tensor_bytes(tensor), Some(&[byte; 8][..]), "{name}");
            }
        }
    }

    #[test]
    fn parts_that_do_not_fit_are_refused_by_name() {
        let refused = |parts: &[(usize, [u32; 2], &str)]| {
            let folder = tempfile::tempdir().expect("a temporary directory");
            parts.iter().for_each(|&(number, says, tensor)| drop(part(folder.path(), number, 2, says, tensor)));
            Gguf::open(&folder.path().join("m-00001-of-00002.gguf")).expect_err("does not fit").message
        };
        let first = (1, [0, 2], "a");
        for (second, why) in [
            ((2, [1, 2], "a"), "m-00002-of-00002.gguf: tensor a: is in a part before this one too"),
            ((2, [0, 2], "b"), "m-00002-of-00002.gguf: metadata split.no: is 0"),
            ((2, [1, 3], "b"), "m-00002-of-00002.gguf: metadata split.count: is not 2"),
        ] {
            let message = refused(&[first, second]);
            assert!(message.contains(why), "{message}");
        }
        assert!(refused(&[first]).contains("part m-00002-of-00002.gguf is not there"));
        assert!(refused(&[(1, [0, 3], "a")]).contains("split.count: is 3, but the file is not named"));
        assert!(refused(&[(1, [1, 2], "a"), (2, [1, 2], "b")]).contains("metadata split.no: is 1"));
    }
}
