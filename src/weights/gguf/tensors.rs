//! The tensor table of a GGUF file.

use std::{collections::BTreeMap, ops::Range};

use super::cursor::Cursor;
use crate::{
    error::Result,
    kernels::linear::{
        format::WeightFormat,
        stored::{self, ReadOnly, StoredFormat},
    },
    weights::shown,
};

/// The format's most dimensions (`GGML_MAX_DIMS`).
const MAX_DIMS: u32 = 4;

/// ggml's tensor kinds: number, name, and the format where it is one that weights have.
static KINDS: [(u32, &str, Option<StoredFormat>); 35] = [
    (0, "F32", kept(WeightFormat::F32)),
    (1, "F16", kept(WeightFormat::F16)),
    (2, "Q4_0", kept(WeightFormat::Q4_0)),
    (3, "Q4_1", read_only(&stored::Q4_1)),
    (6, "Q5_0", read_only(&stored::Q5_0)),
    (7, "Q5_1", read_only(&stored::Q5_1)),
    (8, "Q8_0", kept(WeightFormat::Q8_0)),
    (9, "Q8_1", read_only(&stored::Q8_1)),
    (10, "Q2_K", read_only(&stored::Q2_K)),
    (11, "Q3_K", read_only(&stored::Q3_K)),
    (12, "Q4_K", kept(WeightFormat::Q4K)),
    (13, "Q5_K", kept(WeightFormat::Q5K)),
    (14, "Q6_K", kept(WeightFormat::Q6K)),
    (15, "Q8_K", read_only(&stored::Q8_K)),
    (16, "IQ2_XXS", read_only(&stored::IQ2_XXS)),
    (17, "IQ2_XS", read_only(&stored::IQ2_XS)),
    (18, "IQ3_XXS", read_only(&stored::IQ3_XXS)),
    (19, "IQ1_S", read_only(&stored::IQ1_S)),
    (20, "IQ4_NL", read_only(&stored::IQ4_NL)),
    (21, "IQ3_S", read_only(&stored::IQ3_S)),
    (22, "IQ2_S", read_only(&stored::IQ2_S)),
    (23, "IQ4_XS", read_only(&stored::IQ4_XS)),
    (24, "I8", None),
    (25, "I16", None),
    (26, "I32", None),
    (27, "I64", None),
    (28, "F64", None),
    (29, "IQ1_M", read_only(&stored::IQ1_M)),
    (30, "BF16", kept(WeightFormat::BF16)),
    (34, "TQ1_0", read_only(&stored::TQ1_0)),
    (35, "TQ2_0", read_only(&stored::TQ2_0)),
    (39, "MXFP4", read_only(&stored::MXFP4)),
    (40, "NVFP4", read_only(&stored::NVFP4)),
    (41, "Q1_0", read_only(&stored::Q1_0)),
    (42, "Q2_0", read_only(&stored::Q2_0)),
];

const fn kept(format: WeightFormat) -> Option<StoredFormat> {
    Some(StoredFormat::Kept(format))
}

const fn read_only(format: &'static ReadOnly) -> Option<StoredFormat> {
    Some(StoredFormat::ReadOnly(format))
}

/// ggml's number of a format.
pub(super) fn ggml_kind(format: StoredFormat) -> u32 {
    KINDS.iter().find(|row| row.2 == Some(format)).map_or(0, |row| row.0)
}

/// A tensor of a GGUF file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GgufTensor {
    /// ggml's number of the format.
    pub kind: u32,
    /// Outermost dimension first, the reverse of the file's order.
    pub shape: Vec<usize>,
    /// The format, where it is one that is read.
    pub format: Option<StoredFormat>,
    /// Which of the files of a split model it lies in, counted from 0.
    pub(super) part: usize,
    /// Where the tensor starts in that file.
    start: usize,
    /// Its length, known where the format is.
    length: Option<usize>,
}

impl GgufTensor {
    /// ggml's name of the format, or its number where it has none here.
    #[must_use]
    pub fn kind_name(&self) -> String {
        let row = KINDS.iter().find(|row| row.0 == self.kind);
        row.map_or_else(|| format!("kind {}", self.kind), |row| row.1.to_owned())
    }

    /// The tensor's place in the file, where its format is one that is read.
    #[must_use]
    pub fn bytes(&self) -> Option<Range<usize>> {
        Some(self.start..self.start + self.length?)
    }
}

/// A tensor as the table declares it; its offset counts from the end of the table.
struct Declared {
    name: String,
    kind: u32,
    shape: Vec<usize>,
    offset: u64,
}

/// Reads the table of `count` tensors, after which, at the next multiple of `alignment`, their data starts.
pub(super) fn read(cursor: &mut Cursor<'_>, count: u64, alignment: u64) -> Result<BTreeMap<String, GgufTensor>> {
    // A name's length, no dimensions, a kind and an offset.
    let count = cursor.check_count(count, 8 + 4 + 4 + 8, format_args!("tensor_count"))?;
    let mut declared = Vec::new();
    for number in 0..count {
        declared.push(read_one(cursor, number)?);
    }
    let data_start = (cursor.at() as u64).next_multiple_of(alignment);
    let mut tensors = BTreeMap::new();
    for one in declared {
        let field = format!("tensor {}", shown(&one.name));
        let name = one.name.clone();
        let tensor = place(cursor, one, data_start, alignment, &field)?;
        if tensors.insert(name, tensor).is_some() {
            return Err(cursor.wrong(field, "appears twice"));
        }
    }
    check_overlaps(cursor, &tensors)?;
    Ok(tensors)
}

fn read_one(cursor: &mut Cursor<'_>, number: usize) -> Result<Declared> {
    let name = cursor.string(format_args!("tensor[{number}]: name"))?.to_owned();
    let field = format!("tensor {}", shown(&name));
    let n_dims = cursor.u32(format_args!("{field}: n_dims"))?;
    if n_dims > MAX_DIMS {
        return Err(
            cursor.wrong(format_args!("{field}: n_dims"), format_args!("is {n_dims}, at most {MAX_DIMS} are allowed"))
        );
    }
    let mut shape = Vec::new();
    for dim in 0..n_dims {
        let size = cursor.u64(format_args!("{field}: dimension {dim}"))?;
        let size = usize::try_from(size).map_err(|_| {
            cursor.wrong(format_args!("{field}: dimension {dim}"), format_args!("is {size}, which overflows"))
        })?;
        shape.push(size);
    }
    shape.reverse();
    let kind = cursor.u32(format_args!("{field}: type"))?;
    let offset = cursor.u64(format_args!("{field}: offset"))?;
    Ok(Declared { name, kind, shape, offset })
}

/// Checks one tensor against the file.
fn place(cursor: &Cursor<'_>, declared: Declared, data_start: u64, alignment: u64, field: &str) -> Result<GgufTensor> {
    let Declared { kind, shape, offset, .. } = declared;
    let wrong = |what: &str, why: String| Err(cursor.wrong(format_args!("{field}: {what}"), why));
    let Some(elements) = shape.iter().try_fold(1usize, |product, &dim| product.checked_mul(dim)) else {
        return wrong("dimensions", format!("{shape:?} overflow"));
    };
    let format = KINDS.iter().find(|row| row.0 == kind).and_then(|row| row.2);
    let length = match format {
        None => None,
        Some(format) if shape.last().is_some_and(|row| row % format.block_len() != 0) => {
            let (block, rows) = (format.block_len(), shape.last().copied().unwrap_or_default());
            return wrong("dimension 0", format!("is {rows}, but {format} has blocks of {block}"));
        }
        Some(format) => match format.bytes_for(elements) {
            None => return wrong("dimensions", format!("{shape:?} of {format} overflow or are no whole blocks")),
            length => length,
        },
    };
    if offset % alignment != 0 {
        return wrong("offset", format!("is {offset}, no multiple of the alignment {alignment}"));
    }
    let file_bytes = cursor.file_bytes();
    let start = data_start.checked_add(offset).and_then(|start| usize::try_from(start).ok());
    let end = start.and_then(|start| start.checked_add(length.unwrap_or(0)));
    // An empty tensor may lie where the padding after the table would end, which a writer may leave out.
    match (start, end) {
        (Some(start), Some(end)) if end <= file_bytes || length == Some(0) => {
            let start = if length == Some(0) { start.min(file_bytes) } else { start };
            Ok(GgufTensor { kind, shape, format, part: 0, start, length })
        }
        _ => {
            let length = length.map_or_else(|| "its".to_owned(), |length| length.to_string());
            let why =
                format!("is {offset}, from where {length} bytes leave the file of {file_bytes}: is it truncated?");
            wrong("offset", why)
        }
    }
}

/// Checks that no tensor starts inside another.
fn check_overlaps(cursor: &Cursor<'_>, tensors: &BTreeMap<String, GgufTensor>) -> Result<()> {
    let mut by_place: Vec<(usize, usize, &str)> = tensors
        .iter()
        .filter(|(_, tensor)| tensor.length != Some(0))
        // Of one whose format is unknown, one byte at least.
        .map(|(name, tensor)| (tensor.start, tensor.start.saturating_add(tensor.length.unwrap_or(1)), name.as_str()))
        .collect();
    by_place.sort_unstable();
    for pair in by_place.windows(2) {
        if let [(_, end, before), (start, _, name)] = pair
            && start < end
        {
            let why = format!("overlaps tensor {}", shown(before));
            return Err(cursor.wrong(format_args!("tensor {}: offset", shown(name)), why));
        }
    }
    Ok(())
}
