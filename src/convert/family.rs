//! The families that can be written: what GGUF calls them, and what llama.cpp reads in their files.

use std::sync::Arc;

use super::{delta_net, latent, turn::Turn};
use crate::{
    arch::config::ModelConfig,
    error::{Error, Result},
    weights::gguf::INTERLEAVED,
};

/// What llama.cpp makes of windows in a family's files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Windows {
    /// It knows none.
    Unknown,
    /// All layers have the one that a file names, which llama.cpp itself reads and disregards.
    InAll,
    /// Those layers have one that a file lists.
    Listed,
    /// The same, in models of so many layers; in others none has.
    ListedIn(usize),
}

/// A family of architectures that share a form of file.
pub(super) struct Family {
    /// Hugging Face's classes.
    pub(super) classes: &'static [&'static str],
    /// `general.architecture`.
    pub(super) name: &'static str,
    /// What it reads of windows.
    pub(super) windows: Windows,
    /// Whether its norms take the mean away.
    pub(super) has_layer_norms: bool,
    /// Whether a file may have what each rotary frequency is divided by, `rope_freqs.weight`.
    pub(super) has_divisors: bool,
}

const USUAL: Family =
    Family { classes: &[], name: "", windows: Windows::Unknown, has_layer_norms: false, has_divisors: false };

/// All of them.
pub(super) const FAMILIES: &[Family] = &[
    Family {
        classes: &[
            "LlamaForCausalLM",
            "MistralForCausalLM",
            "MinistralForCausalLM",
            "Ministral3ForCausalLM",
            "Mistral3ForConditionalGeneration",
            "MixtralForCausalLM",
        ],
        name: "llama",
        has_divisors: true,
        ..USUAL
    },
    Family { classes: &["Qwen2ForCausalLM"], name: "qwen2", ..USUAL },
    Family { classes: &["Qwen3ForCausalLM"], name: "qwen3", ..USUAL },
    Family { classes: &["Qwen3MoeForCausalLM"], name: "qwen3moe", ..USUAL },
    Family { classes: &["Qwen3NextForCausalLM"], name: "qwen3next", ..USUAL },
    Family { classes: &["Qwen3_5ForCausalLM", "Qwen3_5ForConditionalGeneration"], name: "qwen35", ..USUAL },
    Family { classes: &["Qwen3_5MoeForCausalLM", "Qwen3_5MoeForConditionalGeneration"], name: "qwen35moe", ..USUAL },
    Family { classes: &["Phi3ForCausalLM"], name: "phi3", windows: Windows::InAll, ..USUAL },
    Family { classes: &["Gemma2ForCausalLM"], name: "gemma2", windows: Windows::Listed, ..USUAL },
    Family {
        classes: &["Gemma3ForCausalLM", "Gemma3ForConditionalGeneration"],
        name: "gemma3",
        windows: Windows::Listed,
        ..USUAL
    },
    Family { classes: &["SmolLM3ForCausalLM"], name: "smollm3", ..USUAL },
    Family { classes: &["Olmo2ForCausalLM"], name: "olmo2", ..USUAL },
    Family { classes: &["GraniteForCausalLM"], name: "granite", has_divisors: true, ..USUAL },
    Family { classes: &["Glm4ForCausalLM"], name: "glm4", ..USUAL },
    Family { classes: &["Starcoder2ForCausalLM"], name: "starcoder2", has_layer_norms: true, ..USUAL },
    Family { classes: &["GPT2LMHeadModel"], name: "gpt2", has_layer_norms: true, ..USUAL },
    Family { classes: &["GptOssForCausalLM"], name: "gpt-oss", windows: Windows::Listed, ..USUAL },
    Family {
        classes: &["Cohere2ForCausalLM"],
        name: "cohere2",
        windows: Windows::Listed,
        has_layer_norms: true,
        ..USUAL
    },
    Family {
        classes: &["Exaone4ForCausalLM"],
        name: "exaone4",
        windows: Windows::ListedIn(64),
        has_divisors: true,
        ..USUAL
    },
    Family { classes: &["StableLmForCausalLM"], name: "stablelm", has_layer_norms: true, ..USUAL },
    Family { classes: &["GPTNeoXForCausalLM"], name: "gptneox", has_layer_norms: true, ..USUAL },
    Family { classes: &["DeepseekV3ForCausalLM"], name: latent::NAME, ..USUAL },
];

impl Family {
    /// Of a class of Hugging Face's.
    pub(super) fn of(class: &str) -> Option<&'static Self> {
        FAMILIES.iter().find(|family| family.classes.contains(&class))
    }

    /// What becomes of a tensor that keeps its place but for what the family's files have another way. `name` is as in a
    /// model of text alone.
    ///
    /// # Errors
    /// What is wrong with its shape.
    pub(super) fn turns(&self, turn: Turn, name: &str, config: &ModelConfig) -> Result<Vec<Turn>, String> {
        let heads = (config.num_attention_heads, config.num_key_value_heads);
        let turned = match self.name {
            // Norms hold how far a weight is from 1.
            "gemma2" | "gemma3" if name.ends_with("norm.weight") => {
                Turn { number: Some(|weight| weight + 1.0), ..turn }
            }
            // Linears lie `[in, out]`.
            "gpt2" if name.contains(".c_") && turn.shape.len() == 2 => {
                Turn { shape: turn.shape.iter().rev().copied().collect(), transposed: true, ..turn }
            }
            "gptneox" if name.contains(".query_key_value.") => {
                let rows = by_part(rows_of(&turn, 3 * heads.0)?, heads.0, 3);
                Turn { rows: Some(rows), ..turn }
            }
            latent::NAME if name.ends_with(".kv_b_proj.weight") => return latent::halves(&turn, config),
            family if INTERLEAVED.contains(&family) && name.contains(".self_attn.q_proj.") => {
                interleaved(turn, heads.0)?
            }
            family if INTERLEAVED.contains(&family) && name.contains(".self_attn.k_proj.") => {
                interleaved(turn, heads.1)?
            }
            family => return Ok(delta_net::turns(turn, name, family, config)),
        };
        Ok(vec![turned])
    }
}

/// Its rows, which must be those of so many parts.
fn rows_of(turn: &Turn, parts: usize) -> Result<usize, String> {
    let rows = turn.shape.first().copied().filter(|rows| rows.is_multiple_of(parts));
    rows.ok_or_else(|| format!("has shape {:?}, which does not divide into {parts} parts", turn.shape))
}

/// With rotary pairs as neighbours: row `j * half + i` of each head at `2i + j`.
fn interleaved(turn: Turn, heads: usize) -> Result<Turn, String> {
    let rows = rows_of(&turn, 2 * heads)?;
    let half = rows / (2 * heads);
    let order = (0..rows).map(|row| row / (2 * half) * 2 * half + row % 2 * half + row % (2 * half) / 2);
    Ok(Turn { rows: Some(order.collect()), ..turn })
}

/// Rows of all heads' first parts, then of their second and so on, out of those of the first head's parts, the second's...
fn by_part(rows: usize, heads: usize, parts: usize) -> Arc<[usize]> {
    let part = rows / (heads * parts);
    let rows_of = |p: usize, head: usize| (0..part).map(move |row| (head * parts + p) * part + row);
    (0..parts).flat_map(|p| (0..heads).flat_map(move |head| rows_of(p, head))).collect()
}

/// The error for a class that is none of them.
pub(super) fn unknown(path: &std::path::Path, class: &str) -> Error {
    let known = FAMILIES.iter().flat_map(|family| family.classes).copied().collect::<Vec<_>>().join(", ");
    Error::bad_file(path, "architectures", format!("is {class}; converted are {known}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rotary_pairs_become_neighbours() {
        let turn = Turn { shape: vec![8, 3], ..Turn::default() };
        let rows = interleaved(turn, 2).expect("two heads of two halves").rows.expect("are moved");
        assert_eq!(*rows, [0, 2, 1, 3, 4, 6, 5, 7]);
        let odd = Turn { shape: vec![6], ..Turn::default() };
        assert!(interleaved(odd, 2).is_err_and(|why| why.contains("does not divide into 4 parts")));
    }

    #[test]
    fn queries_keys_and_values_of_each_head_become_all_queries_all_keys_and_all_values() {
        assert_eq!(*by_part(12, 2, 3), [0, 1, 6, 7, 2, 3, 8, 9, 4, 5, 10, 11]);
    }

    #[test]
    fn every_class_is_one_that_is_served_and_stands_once() {
        let classes: Vec<_> = FAMILIES.iter().flat_map(|family| family.classes).collect();
        for (k, class) in classes.iter().enumerate() {
            assert!(!classes[..k].contains(class), "{class}");
            assert!(crate::arch::find(std::path::Path::new("config.json"), class).is_ok(), "{class}");
        }
    }
}
