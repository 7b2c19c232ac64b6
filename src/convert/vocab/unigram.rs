//! Unigram out of a tokenizer.json: GGUF has pieces and scores as they are, and three keys for what happens to a text first.
//!
//! Sentencepiece replaces characters, folds spaces and puts one before a text. transformers' converters have written that in
//! several ways over the years, as steps of a normalizer and of a pre-tokenizer, all of which are read here: `Precompiled`,
//! `Strip`, `Replace` and `Prepend`, `WhitespaceSplit` and `Metaspace`.

use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::Value;

use super::{
    PAD_SCORE,
    sentencepiece::{SPACE, steps},
};
use crate::{
    error::{Error, Result},
    text::{GgufVocab, TokenType, makes_spaces},
};

/// Most characters of a step in a message: tables of characters are long.
const MAX_SHOWN: usize = 200;
/// What lies between words beside spaces.
const LINES_AND_TABS: &str = "\n\r\t";

/// Says which pieces are how likely, and what happens to a text first.
pub(super) fn fill(vocab: &mut GgufVocab, file: &Value) -> Result<()> {
    let path = vocab.path.clone();
    let bad = |field: &str, why: &str| Error::bad_file(&path, field, why);
    let model = &file["model"];
    if model["byte_fallback"] == true {
        return Err(bad("model.byte_fallback", "is true, and llama.cpp spells nothing by bytes in unigram"));
    }
    let unk = model["unk_id"].as_u64().and_then(|id| usize::try_from(id).ok()).filter(|&id| id < vocab.tokens.len());
    let unk =
        unk.ok_or_else(|| bad("model.unk_id", "is no id of a token, and llama.cpp needs one for what is unknown"))?;
    vocab.token_types[unk] = TokenType::Unknown;
    vocab.unk = Some(unk as u32);

    let rules = Rules::read(file).map_err(|Unsaid { field, step, why }| {
        let step: String = step.to_string().chars().take(MAX_SHOWN).collect();
        bad(field, &format!("is {step}; {why}"))
    })?;
    let mut normal = vocab.tokens.iter().zip(&vocab.token_types).filter(|(_, kind)| **kind == TokenType::Normal);
    if let Some((piece, _)) = normal.find(|(piece, _)| rules.parts(piece)) {
        let why = format!("cuts a text at spaces, which GGUF cannot say, and the piece {piece:?} goes across one");
        return Err(bad("pre_tokenizer", &why));
    }
    if rules.is_loose {
        tracing::warn!(
            file = %path.display(),
            "the steps before the model leave spaces at a text's ends, put none before one that has, or take lines and tabs \
             away there; with GGUF there is a space before every text, and none behind it where they are folded"
        );
    }
    vocab.model = "t5".to_owned();
    vocab.pre = Some("default".to_owned());
    vocab.add_space_prefix = Some(rules.puts_space);
    vocab.remove_extra_whitespaces = Some(rules.folds_spaces);
    vocab.precompiled_charsmap = rules.charsmap;
    let scores = model["vocab"].as_array().map(Vec::as_slice).unwrap_or_default();
    let score = |id: usize| scores.get(id).and_then(|entry| entry[1].as_f64()).map_or(PAD_SCORE, |score| score as f32);
    vocab.scores = (0..vocab.tokens.len()).map(score).collect();
    Ok(())
}

/// What happens to a text before its pieces are looked for.
#[derive(Default)]
struct Rules {
    /// Table of characters that are replaced; empty without one.
    charsmap: Vec<u8>,
    /// Spaces at both ends go, and of several in a row one stays.
    folds_spaces: bool,
    /// A space comes before a text.
    puts_space: bool,
    /// A text is cut before each space.
    parts_words: bool,
    /// At a text's ends spaces are not what they are with GGUF.
    is_loose: bool,
}

/// A step that GGUF has no key for.
struct Unsaid<'a> {
    field: &'static str,
    step: &'a Value,
    why: &'static str,
}

impl<'a> Unsaid<'a> {
    /// One of no kind that is known.
    fn unknown(field: &'static str, step: &'a Value) -> Self {
        let why = "characters replaced by a table, spaces folded and written as ▁, with one before a text, are converted of unigram";
        Self { field, step, why }
    }
}

impl Rules {
    /// Reads the steps of a file.
    ///
    /// # Errors
    /// The first that GGUF has no key for, and where it stands.
    fn read(file: &Value) -> Result<Self, Unsaid<'_>> {
        let mut rules = Self::default();
        let (mut writes, mut strips) = (false, false);
        // The last steps that take spaces away at a text's ends, and all between words.
        let (mut strip, mut words) = (None, None);
        for (at, step) in steps(&file["normalizer"], "normalizers").enumerate() {
            match step["type"].as_str() {
                // Whatever comes before it would see other characters.
                Some("Precompiled") if at == 0 => {
                    let table = step["precompiled_charsmap"].as_str().map(|text| BASE64_STANDARD.decode(text));
                    let Some(Ok(table)) = table else { return Err(Unsaid::unknown("normalizer", step)) };
                    rules.charsmap = table;
                }
                Some("Strip") => {
                    strips |= step["strip_left"] == true && step["strip_right"] == true;
                    strip = Some(step);
                }
                Some("Replace") if step["pattern"]["Regex"] == " {2,}" && is_space(&step["content"]) => {
                    rules.folds_spaces = true;
                }
                Some("Prepend") if is_space(&step["prepend"]) => rules.puts_space = true,
                Some("Replace") if step["pattern"]["String"] == " " && step["content"] == SPACE => writes = true,
                _ => return Err(Unsaid::unknown("normalizer", step)),
            }
        }
        for step in steps(&file["pre_tokenizer"], "pretokenizers") {
            match step["type"].as_str() {
                Some("WhitespaceSplit") => {
                    (rules.folds_spaces, rules.parts_words, strips) = (true, true, true);
                    words = Some(step);
                }
                Some("Metaspace") if step["replacement"] == SPACE => {
                    writes = true;
                    rules.parts_words |= step["split"] != false;
                    if step["prepend_scheme"] != "never" && step["add_prefix_space"] != false {
                        rules.puts_space = true;
                        // One that is there already is enough to it.
                        rules.is_loose |= !rules.folds_spaces;
                    }
                }
                _ => return Err(Unsaid::unknown("pre_tokenizer", step)),
            }
        }
        if let Some(step) = strip.filter(|_| !rules.folds_spaces) {
            let why = "spaces go from a text's ends, and GGUF says that only where they are folded inside it too: serve the directory";
            return Err(Unsaid { field: "normalizer", step, why });
        }
        // To these steps lines and tabs are spaces, to GGUF only where the table makes them such.
        let knows_lines = makes_spaces(&rules.charsmap, LINES_AND_TABS);
        if let Some(step) = words.filter(|_| !knows_lines) {
            let why = "words are cut at lines and tabs too, and no table of the normalizer's makes spaces of those, as GGUF needs: \
                       serve the directory";
            return Err(Unsaid { field: "pre_tokenizer", step, why });
        }
        rules.is_loose |= rules.folds_spaces && !(strips && knows_lines);
        // Without a prefix llama.cpp would put one where it folds.
        if !writes || rules.folds_spaces && !rules.puts_space {
            return Err(Unsaid::unknown("pre_tokenizer", &file["pre_tokenizer"]));
        }
        Ok(rules)
    }

    /// Whether a piece that GGUF would find in a text is cut apart first.
    fn parts(&self, piece: &str) -> bool {
        let word = piece.trim_start_matches(SPACE);
        let is_run = piece.len() > word.len() + SPACE.len();
        self.parts_words && (word.contains(SPACE) || is_run && !self.folds_spaces)
    }
}

/// Whether a text is a space, or how pieces write one.
fn is_space(text: &Value) -> bool {
    text == " " || text == SPACE
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_another_at_a_texts_ends_is_known() {
        let is_loose = |normalizers: &[Value], scheme: &str| {
            let metaspace = json!({"type": "Metaspace", "replacement": SPACE, "prepend_scheme": scheme});
            let normalizer = json!({"type": "Sequence", "normalizers": normalizers});
            let file = json!({"normalizer": normalizer, "pre_tokenizer": metaspace});
            Rules::read(&file).unwrap_or_else(|Unsaid { why, .. }| panic!("{why}")).is_loose
        };
        let folds = json!({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "});
        let strips = json!({"type": "Strip", "strip_left": true, "strip_right": true});
        assert!(!is_loose(&[], "never"));
        assert!(is_loose(&[], "always"), "a space where there is one");
        assert!(is_loose(std::slice::from_ref(&folds), "always"), "spaces stay");
        assert!(is_loose(&[strips, folds], "always"), "lines go, which no table makes spaces");
    }
}
