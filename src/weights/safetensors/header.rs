//! The header of one safetensors file, trusted in nothing.
//!
//! Written here rather than taken from the safetensors crate because that one merges duplicate names in silence, gives
//! up a whole file for one dtype that it does not know, and cannot say which field of which tensor was wrong.

use std::{collections::BTreeMap, fmt, ops::Range, path::Path};

use ::safetensors::Dtype;
use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed, Error as _, IgnoredAny, IntoDeserializer, MapAccess, SeqAccess, Visitor},
};

use crate::{
    error::{Error, Result},
    weights::shown,
};

/// Bytes before the header: its length.
const LENGTH_BYTES: usize = 8;
/// The longest header the format allows.
const MAX_HEADER_BYTES: usize = 100_000_000;
/// Dimensions a tensor; none of ours has more than four.
const MAX_DIMS: usize = 8;

/// Where a tensor lies.
pub(super) struct Entry {
    /// As the file spells it, so that a message can.
    pub(super) dtype: String,
    /// Outermost dimension first.
    pub(super) shape: Vec<usize>,
    /// In the file. Checked against the file's length, and against shape and dtype where the dtype is a known one.
    pub(super) bytes: Range<usize>,
}

/// Reads and checks the header of the file whose bytes are `file`.
///
/// # Errors
/// `FailedPrecondition` that names the field: a header longer than the file, a tensor whose offsets are reversed, leave
/// the file, overlap another's or do not fit its shape, a duplicate name, bytes that belong to no tensor.
pub(super) fn read(path: &Path, file: &[u8]) -> Result<BTreeMap<String, Entry>> {
    let wrong = |field: &str, why: String| Error::bad_file(path, field, why);
    let Some((length, rest)) = file.split_first_chunk::<LENGTH_BYTES>() else {
        return Err(wrong("header length", format!("needs {LENGTH_BYTES} bytes, but the file has {}", file.len())));
    };
    let length = u64::from_le_bytes(*length);
    let header = usize::try_from(length).ok().filter(|&length| length <= MAX_HEADER_BYTES).ok_or_else(|| {
        wrong("header length", format!("is {length}, more than the {MAX_HEADER_BYTES} that the format allows"))
    })?;
    let Some((header, data)) = rest.split_at_checked(header) else {
        let why =
            format!("is {length}, but only {} bytes follow: the file is truncated or not safetensors", rest.len());
        return Err(wrong("header length", why));
    };
    let mut parse = Parse { at: "header".into(), tensors: BTreeMap::new() };
    let mut json = serde_json::Deserializer::from_slice(header);
    let parsed = HeaderSeed(&mut parse).deserialize(&mut json).and_then(|()| json.end());
    parsed.map_err(|error| wrong(&parse.at, shown(&error.to_string())))?;

    let data_start = LENGTH_BYTES + header.len();
    let mut tensors = BTreeMap::new();
    for (name, declared) in parse.tensors {
        let bytes = check(&declared, data.len())
            .map_err(|(field, why)| wrong(&format!("tensor {}: {field}", shown(&name)), why))?;
        let bytes = data_start + bytes.start..data_start + bytes.end;
        tensors.insert(name, Entry { dtype: declared.dtype, shape: declared.shape, bytes });
    }
    check_cover(path, &tensors, data_start, file.len())?;
    Ok(tensors)
}

/// A tensor as the header declares it.
struct Declared {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: [u64; 2],
}

/// Checks one tensor by itself, giving its bytes counted from the end of the header, or the field and the reason.
fn check(declared: &Declared, data_bytes: usize) -> Result<Range<usize>, (&'static str, String)> {
    let [start, end] = declared.data_offsets;
    let wrong_offsets = |why: &str| ("data_offsets", format!("[{start}, {end}] {why}"));
    if start > end {
        return Err(wrong_offsets("are reversed"));
    }
    if end > data_bytes as u64 {
        return Err(wrong_offsets(&format!("leave the file, which has {data_bytes} bytes of data: is it truncated?")));
    }
    // Both fit, being at most the length of a slice.
    let bytes = start as usize..end as usize;
    let overflow = || ("shape", format!("{:?} overflows", declared.shape));
    let elements =
        declared.shape.iter().try_fold(1usize, |product, &dim| product.checked_mul(dim)).ok_or_else(overflow)?;
    let dtype = Dtype::deserialize(declared.dtype.as_str().into_deserializer());
    if let Ok(dtype) = dtype.map_err(|_: serde::de::value::Error| ()) {
        let bits = elements.checked_mul(dtype.bitsize()).ok_or_else(overflow)?;
        if !bits.is_multiple_of(8) || bits / 8 != bytes.len() {
            let (shape, length) = (&declared.shape, bytes.len());
            let why = format!("hold {length} bytes, but shape {shape:?} of {} takes {}", declared.dtype, bits / 8);
            return Err(wrong_offsets(&why));
        }
    }
    Ok(bytes)
}

/// Checks that the tensors cover the data exactly, which the format demands so that a file can hide nothing.
fn check_cover(path: &Path, tensors: &BTreeMap<String, Entry>, data_start: usize, file_bytes: usize) -> Result<()> {
    let mut by_place: Vec<(&str, &Range<usize>)> =
        tensors.iter().map(|(name, entry)| (&**name, &entry.bytes)).collect();
    by_place.sort_by_key(|(_, bytes)| (bytes.start, bytes.end));
    let mut covered = data_start;
    let mut before = "";
    for (name, bytes) in by_place {
        if bytes.start != covered {
            let why = if bytes.start < covered {
                format!("overlaps tensor {}", shown(before))
            } else {
                format!("leaves {} bytes before it that belong to no tensor", bytes.start - covered)
            };
            return Err(Error::bad_file(path, format!("tensor {}: data_offsets", shown(name)), why));
        }
        (covered, before) = (bytes.end, name);
    }
    if covered != file_bytes {
        let why = format!("ends with {} bytes that belong to no tensor", file_bytes - covered);
        return Err(Error::bad_file(path, "data", why));
    }
    Ok(())
}

/// What has been parsed, and which field is being parsed, for the message if it fails.
struct Parse {
    at: String,
    tensors: BTreeMap<String, Declared>,
}

/// Parses the header: an object of tensors, and `__metadata__`.
struct HeaderSeed<'p>(&'p mut Parse);

impl<'de> DeserializeSeed<'de> for HeaderSeed<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for HeaderSeed<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(name) = map.next_key::<String>()? {
            if name == "__metadata__" {
                self.0.at = name;
                map.next_value::<IgnoredAny>()?;
            } else {
                let declared = map.next_value_seed(TensorSeed { at: &mut self.0.at, name: &name })?;
                self.0.at = format!("tensor {}", shown(&name));
                if self.0.tensors.insert(name, declared).is_some() {
                    return Err(A::Error::custom("appears twice"));
                }
            }
            self.0.at = "header".into();
        }
        Ok(())
    }
}

/// Parses one tensor: `{"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}`.
struct TensorSeed<'p> {
    at: &'p mut String,
    name: &'p str,
}

impl<'de> DeserializeSeed<'de> for TensorSeed<'_> {
    type Value = Declared;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Declared, D::Error> {
        *self.at = format!("tensor {}", shown(self.name));
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for TensorSeed<'_> {
    type Value = Declared;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with dtype, shape and data_offsets")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Declared, A::Error> {
        let (mut dtype, mut shape, mut data_offsets) = (None::<String>, None::<Dims>, None::<[u64; 2]>);
        while let Some(field) = map.next_key::<String>()? {
            *self.at = format!("tensor {}: {}", shown(self.name), shown(&field));
            let again = match field.as_str() {
                "dtype" => dtype.replace(map.next_value()?).is_some(),
                "shape" => shape.replace(map.next_value()?).is_some(),
                "data_offsets" => data_offsets.replace(map.next_value()?).is_some(),
                _ => map.next_value::<IgnoredAny>().map(|_| false)?,
            };
            if again {
                return Err(A::Error::custom("appears twice"));
            }
        }
        let mut missing = |field: &str| {
            *self.at = format!("tensor {}: {field}", shown(self.name));
            A::Error::custom("is missing")
        };
        Ok(Declared {
            dtype: dtype.ok_or_else(|| missing("dtype"))?,
            shape: shape.ok_or_else(|| missing("shape"))?.0,
            data_offsets: data_offsets.ok_or_else(|| missing("data_offsets"))?,
        })
    }
}

/// At most [`MAX_DIMS`] dimensions, so that a shape of a million ones is not held.
struct Dims(Vec<usize>);

impl<'de> Deserialize<'de> for Dims {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct DimsVisitor;
        impl<'de> Visitor<'de> for DimsVisitor {
            type Value = Dims;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of dimensions")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Dims, A::Error> {
                let mut dims = Vec::new();
                while let Some(dim) = seq.next_element::<usize>()? {
                    if dims.len() == MAX_DIMS {
                        return Err(A::Error::custom(format!("has more than {MAX_DIMS} dimensions")));
                    }
                    dims.push(dim);
                }
                Ok(Dims(dims))
            }
        }
        deserializer.deserialize_seq(DimsVisitor)
    }
}
