//! Byte-level BPE: GGUF has the tokens and merges as they are, and the pre-tokenizer by its name.

use serde_json::Value;

use crate::{
    error::{Error, Result},
    text::{GgufVocab, pre_tokenizer_name},
};

/// Says how a vocabulary merges.
pub(super) fn fill(vocab: &mut GgufVocab, file: &Value, merges: &[(&str, &str)]) -> Result<()> {
    let patterns = patterns(&file["pre_tokenizer"]);
    let patterns: Vec<&str> = patterns.iter().map(String::as_str).collect();
    let pre = pre_tokenizer_name(&patterns, file["model"]["ignore_merges"] == true);
    let unnamed = || Error::bad_file(&vocab.path, "pre_tokenizer", "is none that has a name in GGUF");
    vocab.pre = Some(pre.ok_or_else(unnamed)?.to_owned());
    vocab.model = "gpt2".to_owned();
    vocab.merges = merges.iter().map(|(left, right)| format!("{left} {right}")).collect();
    Ok(())
}

/// The patterns that text is cut by, in order; digits and ByteLevel's own stand for theirs.
fn patterns(step: &Value) -> Vec<String> {
    match step["type"].as_str() {
        Some("Sequence") => step["pretokenizers"].as_array().into_iter().flatten().flat_map(patterns).collect(),
        Some("Split") => step["pattern"]["Regex"].as_str().map(str::to_owned).into_iter().collect(),
        Some("Digits") if step["individual_digits"] == true => vec![r"\p{N}".to_owned()],
        Some("ByteLevel") if step["use_regex"] != false => {
            vec![r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+".to_owned()]
        }
        _ => Vec::new(),
    }
}
