//! Experts of gpt-oss: gates and what they gate take turns, as columns of plain matrices, which lie `[in, out]`, or as rows of
//! those in MXFP4, which lie `[out, in]`. GGUF has them apart, `[out, in]`.

use super::turn::{Stored, Turn};
use crate::{
    error::{Error, Result},
    weights::{TensorSource, names, shown},
};

/// `general.architecture`.
pub(super) const NAME: &str = "gpt-oss";

/// What becomes of a tensor of experts; none where it is no such tensor.
pub(super) fn turns(tensors: &Stored<'_>, (stored, name): (&str, &str)) -> Result<Option<Vec<Turn>>> {
    let Some((before, part)) = name.split_once(".experts.") else { return Ok(None) };
    let header = tensors.header(stored)?;
    let (shape, in_blocks) = (header.shape.as_slice(), !header.format.is_float());
    let of = |part: &str, shape: &[usize]| -> Result<Turn> {
        let gguf_name = gguf_name(tensors, stored, &format!("{before}.experts.{part}"))?;
        Ok(Turn { exact: part.ends_with(".bias"), ..Turn::named(gguf_name, stored, shape) })
    };
    let every_other = |first: usize, both: usize| Some((1, (first..both).step_by(2).collect()));
    let turns = match (part, shape) {
        ("gate_up_proj", &[count, both, hidden]) if in_blocks && both.is_multiple_of(2) => {
            let half = |part: &str, first: usize| -> Result<Turn> {
                let rows = Some((first..count * both).step_by(2).collect());
                Ok(Turn { rows, ..of(part, &[count, both / 2, hidden])? })
            };
            vec![half("gate_proj.weight", 0)?, half("up_proj.weight", 1)?]
        }
        ("down_proj", &[_, _, _]) if in_blocks => vec![of("down_proj.weight", shape)?],
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

fn gguf_name(tensors: &Stored<'_>, stored: &str, name: &str) -> Result<String> {
    let missing = || Error::bad_file(tensors.source.path(), format!("tensor {}", shown(stored)), "has no name in GGUF");
    names::to_gguf(NAME, name).ok_or_else(missing)
}
