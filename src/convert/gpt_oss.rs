//! Experts of gpt-oss: gates and what they gate take turns, as columns of plain matrices, which lie `[in, out]`, or as rows of
//! those in MXFP4, which lie `[out, in]`. GGUF has them apart, `[out, in]`.

use std::borrow::Cow;

use super::{
    DraftTensor,
    turn::{Stored, Turn},
};
use crate::{
    error::{Error, Result},
    kernels::linear::{
        format::RawTensor,
        stored::{MXFP4, StoredFormat},
    },
    weights::{TensorSource, gguf::writer::NewTensor, names, shown},
};

/// `general.architecture`.
pub(super) const NAME: &str = "gpt-oss";

/// Bytes of a block of 32 numbers, without its scale.
const BLOCK_BYTES: usize = 16;
/// How names of tensors in MXFP4 end.
const BLOCKS: &str = "_blocks";
/// Of what stands beside them.
const SCALES: &str = "_scales";

/// What becomes of a tensor of plain experts; none where it is no such tensor.
pub(super) fn turns(tensors: &Stored<'_>, (stored, name): (&str, &str)) -> Result<Option<Vec<Turn>>> {
    let Some((before, part)) = name.split_once(".experts.") else { return Ok(None) };
    let shape = tensors.header(stored)?.shape.as_slice();
    let of = |part: &str, shape: &[usize]| -> Result<Turn> {
        let gguf_name = gguf_name(tensors, stored, &format!("{before}.experts.{part}"))?;
        Ok(Turn { exact: part.ends_with(".bias"), ..Turn::named(gguf_name, stored, shape) })
    };
    let every_other = |first: usize, both: usize| Some((1, (first..both).step_by(2).collect()));
    let turns = match (part, shape) {
        ("gate_up_proj", &[count, hidden, both]) if both.is_multiple_of(2) => {
            let half = |part: &str, first: usize| -> Result<Turn> {
                let turn = of(part, &[count, both / 2, hidden])?;
                Ok(Turn { runs: every_other(first, both), transposed: true, ..turn })
            };
            vec![half("gate_proj.weight", 0)?, half("up_proj.weight", 1)?]
        }
        ("gate_up_proj_bias", &[count, both]) if both.is_multiple_of(2) => {
            let half = |part: &str, first: usize| -> Result<Turn> {
                Ok(Turn { runs: every_other(first, both), ..of(part, &[count, both / 2])? })
            };
            vec![half("gate_proj.bias", 0)?, half("up_proj.bias", 1)?]
        }
        ("down_proj", &[count, inputs, hidden]) => {
            vec![Turn { transposed: true, ..of("down_proj.weight", &[count, hidden, inputs])? }]
        }
        ("down_proj_bias", &[_, _]) => vec![of("down_proj.bias", shape)?],
        _ => {
            let why = format!("of shape {shape:?} has no name in GGUF");
            return Err(Error::bad_file(tensors.source.path(), format!("tensor {}", shown(stored)), why));
        }
    };
    Ok(Some(turns))
}

/// What becomes of experts in MXFP4, of which `name` is a part; none where it is no part of such.
pub(super) fn packed<'a>(tensors: &Stored<'a>, (stored, name): (&str, &str)) -> Result<Option<Vec<DraftTensor<'a>>>> {
    let whole = |name: &str| name.strip_suffix(BLOCKS).or_else(|| name.strip_suffix(SCALES)).map(str::to_owned);
    let (Some(stored_whole), Some(name_whole)) = (whole(stored), whole(name)) else { return Ok(None) };
    let Ok(header) = tensors.header(&stored_whole) else { return Ok(None) };
    let Some((before, part)) = name_whole.split_once(".experts.") else { return Ok(None) };
    if stored.ends_with(SCALES) {
        return Ok(Some(Vec::new()));
    }
    let source = tensors.source;
    let half = |part: &str, parts: usize, first: usize| -> Result<DraftTensor<'a>> {
        let name = gguf_name(tensors, stored, &format!("{before}.experts.{part}"))?;
        let &[count, rows, inputs] = header.shape.as_slice() else {
            let why = format!("has shape {:?}, must be [experts, out, in]", header.shape);
            return Err(Error::bad_file(source.path(), format!("tensor {}", shown(&stored_whole)), why));
        };
        let (shape, format) = (vec![count, rows / parts, inputs], StoredFormat::ReadOnly(&MXFP4));
        let new = NewTensor { name, shape: shape.clone(), format };
        let names = [BLOCKS, SCALES].map(|end| format!("{stored_whole}{end}"));
        let make = move || {
            let [blocks, scales] = names.each_ref().map(|name| source.octets(name).unwrap_or_default());
            let bytes = repacked(blocks, scales, inputs / 32, parts, first);
            Ok(RawTensor { format, shape: shape.clone(), bytes: Cow::Owned(bytes) })
        };
        Ok(DraftTensor { new, make: Box::new(make), scales: None })
    };
    Ok(Some(match part {
        "gate_up_proj" => vec![half("gate_proj.weight", 2, 0)?, half("up_proj.weight", 2, 1)?],
        _ => vec![half(&format!("{part}.weight"), 1, 0)?],
    }))
}

fn gguf_name(tensors: &Stored<'_>, stored: &str, name: &str) -> Result<String> {
    let missing = || Error::bad_file(tensors.source.path(), format!("tensor {}", shown(stored)), "has no name in GGUF");
    names::to_gguf(NAME, name).ok_or_else(missing)
}

/// Every so manieth row of `blocks_a_row` blocks, beginning with the `first`, as ggml has blocks: behind their scale, and with
/// the first half of their numbers in the low halves of bytes, where Hugging Face has neighbours in one.
fn repacked(blocks: &[u8], scales: &[u8], blocks_a_row: usize, parts: usize, first: usize) -> Vec<u8> {
    let rows = blocks.chunks_exact(blocks_a_row.max(1) * BLOCK_BYTES).zip(scales.chunks_exact(blocks_a_row.max(1)));
    let mut bytes = Vec::with_capacity((blocks.len() + scales.len()) / parts);
    for (blocks, scales) in rows.skip(first).step_by(parts) {
        for (block, &scale) in blocks.as_chunks::<BLOCK_BYTES>().0.iter().zip(scales) {
            let number = |k: usize| block[k / 2] >> (4 * (k % 2)) & 15;
            bytes.push(scale);
            bytes.extend((0..BLOCK_BYTES).map(|k| number(k) | number(k + BLOCK_BYTES) << 4));
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_in_a_byte_come_to_stand_half_a_block_apart() {
        // Two rows of one block; the second row's numbers are 0 to 15 twice.
        let mut blocks = [0u8; 32];
        for k in 0..32 {
            blocks[16 + k / 2] |= ((k % 16) as u8) << (4 * (k % 2));
        }
        let up = repacked(&blocks, &[127, 129], 1, 2, 1);
        assert_eq!(up.len(), 17);
        assert_eq!(up[0], 129);
        let wanted: Vec<u8> = (0..16).map(|k| k | k << 4).collect();
        assert_eq!(up[1..], wanted);
        assert_eq!(repacked(&blocks, &[127, 129], 1, 1, 0).len(), 34);
    }
}
