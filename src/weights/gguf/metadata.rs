//! Metadata of a GGUF file: keys with typed values. Strings and arrays stay in the file and are read on demand.

use std::{collections::BTreeMap, fmt, ops::Range};

use super::{Gguf, cursor::Cursor};
use crate::{
    error::{Error, Result},
    ids::TokenId,
    weights::shown,
};

/// Arrays in arrays in arrays; real files have none.
const MAX_NESTING: usize = 4;
/// The specification's longest key.
const MAX_KEY_BYTES: usize = 65_535;

/// The kinds of values, by the numbers that the format gives them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    String,
    Array,
    U64,
    I64,
    F64,
}

/// In the order of the format's numbers.
const KINDS: [Kind; 13] = [
    Kind::U8,
    Kind::I8,
    Kind::U16,
    Kind::I16,
    Kind::U32,
    Kind::I32,
    Kind::F32,
    Kind::Bool,
    Kind::String,
    Kind::Array,
    Kind::U64,
    Kind::I64,
    Kind::F64,
];

impl Kind {
    /// Bytes of a value, or `None` where they vary.
    fn bytes(self) -> Option<usize> {
        match self {
            Self::U8 | Self::I8 | Self::Bool => Some(1),
            Self::U16 | Self::I16 => Some(2),
            Self::U32 | Self::I32 | Self::F32 => Some(4),
            Self::U64 | Self::I64 | Self::F64 => Some(8),
            Self::String | Self::Array => None,
        }
    }

    /// Fewest bytes of a value: a string has a length, an array a kind and a length.
    fn least_bytes(self) -> usize {
        self.bytes().unwrap_or(if self == Self::String { 8 } else { 12 })
    }
}

/// One value. Ranges are places in the file.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Bool(bool),
    String(Range<usize>),
    Array { kind: Kind, count: usize, bytes: Range<usize> },
}

impl fmt::Display for Value {
    /// What it is, for a message that wanted something else.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unsigned(value) => value.fmt(f),
            Self::Signed(value) => value.fmt(f),
            Self::Float(value) => value.fmt(f),
            Self::Bool(value) => value.fmt(f),
            Self::String(_) => f.write_str("a string"),
            Self::Array { kind, count, .. } => write!(f, "an array of {count} values of kind {kind:?}"),
        }
    }
}

/// Values by their keys, and where each lies with its type.
type Metadata = (BTreeMap<String, Value>, BTreeMap<String, Range<usize>>);

/// Reads `count` keys and values.
pub(super) fn read(cursor: &mut Cursor<'_>, count: u64) -> Result<Metadata> {
    // A key's length, a kind and the smallest value.
    let count = cursor.check_count(count, 8 + 4 + 1, format_args!("metadata_kv_count"))?;
    let (mut metadata, mut places) = (BTreeMap::new(), BTreeMap::new());
    for number in 0..count {
        let key = cursor.string(format_args!("metadata[{number}]: key"))?;
        if key.len() > MAX_KEY_BYTES {
            return Err(cursor.wrong(format_args!("metadata[{number}]: key"), "is longer than 65535 bytes"));
        }
        let field = format!("metadata {}", shown(key));
        let start = cursor.at();
        let kind = read_kind(cursor, &field)?;
        let value = read_value(cursor, kind, &field)?;
        if metadata.insert(key.to_owned(), value).is_some() {
            return Err(cursor.wrong(field, "appears twice"));
        }
        places.insert(key.to_owned(), start..cursor.at());
    }
    Ok((metadata, places))
}

fn read_kind(cursor: &mut Cursor<'_>, field: &str) -> Result<Kind> {
    let number = cursor.u32(format_args!("{field}: type"))?;
    let kind = KINDS.get(number as usize).copied();
    kind.ok_or_else(|| cursor.wrong(format_args!("{field}: type"), format_args!("is {number}, the format has 0 to 12")))
}

fn read_value(cursor: &mut Cursor<'_>, kind: Kind, field: &str) -> Result<Value> {
    match kind {
        Kind::String => cursor.skip_string(format_args!("{field}")).map(Value::String),
        Kind::Array => {
            let (kind, count) = read_array_head(cursor, field)?;
            let start = cursor.at();
            skip_array(cursor, kind, count, field, 1)?;
            Ok(Value::Array { kind, count, bytes: start..cursor.at() })
        }
        _ => {
            let bytes = cursor.take(kind.least_bytes() as u64, format_args!("{field}"))?;
            scalar(kind, bytes).ok_or_else(|| cursor.wrong(field, "is a boolean of neither 0 nor 1"))
        }
    }
}

fn read_array_head(cursor: &mut Cursor<'_>, field: &str) -> Result<(Kind, usize)> {
    let kind = read_kind(cursor, field)?;
    let count = cursor.u64(format_args!("{field}: count"))?;
    let count = cursor.check_count(count, kind.least_bytes(), format_args!("{field}: count"))?;
    Ok((kind, count))
}

/// Goes over an array's elements, checking that they are all there.
fn skip_array(cursor: &mut Cursor<'_>, kind: Kind, count: usize, field: &str, depth: usize) -> Result<()> {
    if depth > MAX_NESTING {
        return Err(cursor.wrong(field, format_args!("nests arrays more than {MAX_NESTING} deep")));
    }
    if let Some(bytes) = kind.bytes() {
        // The count was checked against the bytes that remain, so that this product is at most their number.
        cursor.skip((count * bytes) as u64, format_args!("{field}"))?;
        return Ok(());
    }
    for number in 0..count {
        if kind == Kind::String {
            cursor.skip_string(format_args!("{field}[{number}]"))?;
        } else {
            let (kind, count) = read_array_head(cursor, field)?;
            skip_array(cursor, kind, count, field, depth + 1)?;
        }
    }
    Ok(())
}

/// Decodes a value of fixed size, or `None` where the bytes are none of that kind's.
fn scalar(kind: Kind, bytes: &[u8]) -> Option<Value> {
    fn from<const N: usize>(bytes: &[u8]) -> Option<[u8; N]> {
        bytes.try_into().ok()
    }
    Some(match kind {
        Kind::U8 => Value::Unsigned(u8::from_le_bytes(from(bytes)?).into()),
        Kind::I8 => Value::Signed(i8::from_le_bytes(from(bytes)?).into()),
        Kind::U16 => Value::Unsigned(u16::from_le_bytes(from(bytes)?).into()),
        Kind::I16 => Value::Signed(i16::from_le_bytes(from(bytes)?).into()),
        Kind::U32 => Value::Unsigned(u32::from_le_bytes(from(bytes)?).into()),
        Kind::I32 => Value::Signed(i32::from_le_bytes(from(bytes)?).into()),
        Kind::F32 => Value::Float(f32::from_le_bytes(from(bytes)?).into()),
        Kind::Bool => Value::Bool(match bytes {
            [0] => false,
            [1] => true,
            _ => return None,
        }),
        Kind::U64 => Value::Unsigned(u64::from_le_bytes(from(bytes)?)),
        Kind::I64 => Value::Signed(i64::from_le_bytes(from(bytes)?)),
        Kind::F64 => Value::Float(f64::from_le_bytes(from(bytes)?)),
        Kind::String | Kind::Array => return None,
    })
}

/// Reading metadata. A key that is absent is `Ok(None)`; one of another type is an error that names the key.
impl Gguf {
    /// The keys, in alphabetical order.
    pub fn metadata_keys(&self) -> impl Iterator<Item = &str> {
        self.metadata.keys().map(String::as_str)
    }

    /// A string.
    ///
    /// # Errors
    /// Where it is no string, or not UTF-8.
    pub fn string(&self, key: &str) -> Result<Option<&str>> {
        let Some(value) = self.metadata.get(key) else { return Ok(None) };
        let Value::String(range) = value else { return Err(self.mismatch(key, value, "a string")) };
        let bytes = self.bytes.get(range.clone()).unwrap_or_default();
        std::str::from_utf8(bytes).map(Some).map_err(|_| self.wrong(key, "is not UTF-8"))
    }

    /// An integer of any width, not negative.
    ///
    /// # Errors
    /// Where it is anything else.
    pub fn u64(&self, key: &str) -> Result<Option<u64>> {
        let Some(value) = self.metadata.get(key) else { return Ok(None) };
        let number = match *value {
            Value::Unsigned(number) => Some(number),
            Value::Signed(number) => u64::try_from(number).ok(),
            _ => None,
        };
        number.map(Some).ok_or_else(|| self.mismatch(key, value, "an integer of at least 0"))
    }

    /// A token's number. 0xFFFFFFFF, with which some writers say that there is no such token, is `None`.
    ///
    /// # Errors
    /// Where it is no unsigned 32-bit number.
    pub fn token_id(&self, key: &str) -> Result<Option<TokenId>> {
        let Some(number) = self.u64(key)? else { return Ok(None) };
        let id =
            u32::try_from(number).map_err(|_| self.wrong(key, &format!("is {number}, which no token id can be")))?;
        Ok((id != u32::MAX).then_some(TokenId(id)))
    }

    /// A number, rounded to float32.
    ///
    /// # Errors
    /// Where it is no number.
    pub fn f32(&self, key: &str) -> Result<Option<f32>> {
        let Some(value) = self.metadata.get(key) else { return Ok(None) };
        match *value {
            Value::Float(number) => Ok(Some(number as f32)),
            Value::Unsigned(number) => Ok(Some(number as f32)),
            Value::Signed(number) => Ok(Some(number as f32)),
            _ => Err(self.mismatch(key, value, "a number")),
        }
    }

    /// A boolean.
    ///
    /// # Errors
    /// Where it is none.
    pub fn bool(&self, key: &str) -> Result<Option<bool>> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(&Value::Bool(value)) => Ok(Some(value)),
            Some(value) => Err(self.mismatch(key, value, "a boolean")),
        }
    }

    /// An array of booleans.
    ///
    /// # Errors
    /// Where it is none.
    pub fn array_bools<'a>(&'a self, key: &str) -> Result<Option<impl ExactSizeIterator<Item = bool> + use<'a>>> {
        let scalars = self.array_scalars(key, &[Kind::Bool], "an array of booleans")?;
        Ok(scalars.map(|scalars| scalars.map(|value| matches!(value, Value::Bool(true)))))
    }

    /// An array of strings, read as it is iterated.
    ///
    /// # Errors
    /// Where it is none, or one of its strings is not UTF-8.
    pub fn array_strings(&self, key: &str) -> Result<Option<StringArray<'_>>> {
        let Some(value) = self.metadata.get(key) else { return Ok(None) };
        let Value::Array { kind: Kind::String, count, bytes } = value else {
            return Err(self.mismatch(key, value, "an array of strings"));
        };
        let array = StringArray { bytes: self.bytes.get(bytes.clone()).unwrap_or_default(), count: *count };
        let mut strings = RawStrings(array.bytes);
        if let Some(bad) = (0..*count).find(|_| strings.next().is_none_or(|bytes| std::str::from_utf8(bytes).is_err()))
        {
            return Err(self.wrong(&format!("{key}[{bad}]"), "is not UTF-8"));
        }
        Ok(Some(array))
    }

    /// An array of floats, rounded to float32.
    ///
    /// # Errors
    /// Where it is none.
    pub fn array_f32<'a>(&'a self, key: &str) -> Result<Option<impl ExactSizeIterator<Item = f32> + use<'a>>> {
        let scalars = self.array_scalars(key, &[Kind::F32, Kind::F64], "an array of floats")?;
        Ok(scalars
            .map(|scalars| scalars.map(|value| if let Value::Float(number) = value { number as f32 } else { 0.0 })))
    }

    /// An array of integers of any width.
    ///
    /// # Errors
    /// Where it is none. Unsigned numbers of 64 bits are not read.
    pub fn array_i64<'a>(&'a self, key: &str) -> Result<Option<impl ExactSizeIterator<Item = i64> + use<'a>>> {
        const KINDS: &[Kind] = &[Kind::U8, Kind::I8, Kind::U16, Kind::I16, Kind::U32, Kind::I32, Kind::I64];
        let scalars = self.array_scalars(key, KINDS, "an array of integers")?;
        Ok(scalars.map(|scalars| {
            scalars.map(|value| match value {
                // At most 32 bits, by the list above.
                Value::Unsigned(number) => number as i64,
                Value::Signed(number) => number,
                _ => 0,
            })
        }))
    }

    fn array_scalars<'a>(
        &'a self,
        key: &str,
        kinds: &'static [Kind],
        wanted: &str,
    ) -> Result<Option<impl ExactSizeIterator<Item = Value> + use<'a>>> {
        let Some(value) = self.metadata.get(key) else { return Ok(None) };
        match value {
            Value::Array { kind, bytes, .. } if kinds.contains(kind) => {
                let (kind, bytes) = (*kind, self.bytes.get(bytes.clone()).unwrap_or_default());
                let decode = move |bytes| scalar(kind, bytes).unwrap_or(Value::Unsigned(0));
                Ok(Some(bytes.chunks_exact(kind.least_bytes()).map(decode)))
            }
            _ => Err(self.mismatch(key, value, wanted)),
        }
    }

    fn wrong(&self, key: &str, why: &str) -> Error {
        Error::bad_file(&self.path, format!("metadata {}", shown(key)), why)
    }

    fn mismatch(&self, key: &str, value: &Value, wanted: &str) -> Error {
        self.wrong(key, &format!("is {value}, must be {wanted}"))
    }
}

/// The strings of an array that was checked when the file was opened: each a length and as many bytes.
struct RawStrings<'a>(&'a [u8]);

impl<'a> Iterator for RawStrings<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let (length, rest) = self.0.split_first_chunk::<8>()?;
        let (string, rest) = rest.split_at_checked(usize::try_from(u64::from_le_bytes(*length)).ok()?)?;
        self.0 = rest;
        Some(string)
    }
}

/// An array of strings in a GGUF file.
#[derive(Clone, Debug)]
pub struct StringArray<'a> {
    bytes: &'a [u8],
    count: usize,
}

impl<'a> Iterator for StringArray<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        let mut strings = RawStrings(self.bytes);
        let string = strings.next()?;
        self.bytes = strings.0;
        self.count = self.count.saturating_sub(1);
        // Checked where the array was asked for.
        Some(std::str::from_utf8(string).unwrap_or_default())
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.count, Some(self.count))
    }
}

impl ExactSizeIterator for StringArray<'_> {}
