//! Experts, which GGUF has as one tensor for all of a layer's, gates apart from what they gate. Files of Hugging Face's have
//! each by itself, or all as one with gates and what they gate together.

use super::turn::{Stored, Turn};
use crate::{
    arch::moe_config::MoeConfig,
    error::{Error, Result},
    weights::{TensorSource, gguf::writer::NewValue, names},
};

/// The keys of experts, whose width is `usual` where they have none of their own.
pub(super) fn keys(moe: &MoeConfig, usual: Option<usize>) -> Vec<(&'static str, NewValue)> {
    let sizes = [("expert_count", Some(moe.num_experts)), ("expert_used_count", Some(moe.experts_per_token))];
    let widths = [
        ("expert_feed_forward_length", moe.intermediate_size.or(usual)),
        ("expert_shared_feed_forward_length", moe.weighed_expert_size),
    ];
    let sizes = sizes.into_iter().chain(widths);
    sizes.filter_map(|(key, size)| Some((key, NewValue::u32(size? as u32)))).collect()
}

/// What becomes of a tensor of experts; none where it is a part of what became of another. `name` is as in a model of text
/// alone, `stored` as in the directory.
pub(super) fn turns(
    tensors: &Stored<'_>,
    (stored, name): (&str, &str),
    architecture: &str,
    moe: &MoeConfig,
) -> Result<Option<Vec<Turn>>> {
    let Some((before, after)) = name.split_once(".experts.") else { return Ok(None) };
    let wrong = |why: String| Error::bad_file(tensors.source.path(), format!("tensor {stored}"), why);
    let gguf_name = |part: &str| {
        let name = format!("{before}.experts.{part}.weight");
        names::to_gguf(architecture, &name).ok_or_else(|| wrong("has no name in GGUF".into()))
    };
    let shape = tensors.header(stored)?.shape.as_slice();
    if let Some((number, part)) = after.split_once('.')
        && let (Ok(number), Some(part)) = (number.parse::<usize>(), part.strip_suffix(".weight"))
    {
        if number >= moe.num_experts {
            return Err(wrong(format!("is one too many of {} experts", moe.num_experts)));
        }
        if number > 0 {
            return Ok(Some(Vec::new()));
        }
        let of_expert = |expert: usize| stored.replace(".experts.0.", &format!(".experts.{expert}."));
        let shape = [&[moe.num_experts], shape].concat();
        let sources = (0..moe.num_experts).map(of_expert).collect();
        return Ok(Some(vec![Turn { name: gguf_name(part)?, sources, shape, ..Turn::default() }]));
    }
    match (after.strip_suffix(".weight").unwrap_or(after), shape) {
        ("gate_up_proj", &[count, both, hidden]) if both.is_multiple_of(2) => {
            let half = both / 2;
            let of = |part: &str, first: usize| -> Result<Turn> {
                let rows =
                    (0..count).flat_map(|expert| (0..half).map(move |row| expert * both + first + row)).collect();
                Ok(Turn { rows: Some(rows), ..Turn::named(gguf_name(part)?, stored, &[count, half, hidden]) })
            };
            Ok(Some(vec![of("gate_proj", 0)?, of("up_proj", half)?]))
        }
        ("down_proj", &[_, _, _]) => Ok(Some(vec![Turn::named(gguf_name("down_proj")?, stored, shape)])),
        _ => Err(wrong(format!("of shape {shape:?} has no name in GGUF"))),
    }
}
