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
    text::{GgufVocab, TokenType},
};

/// Most characters of a step in a message: tables of characters are long.
const MAX_SHOWN: usize = 200;

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

    let rules = Rules::read(file).map_err(|(field, step)| {
        let step: String = step.to_string().chars().take(MAX_SHOWN).collect();
        let steps = "characters replaced by a table, spaces folded and written as ▁, with one before a text";
        bad(field, &format!("is {step}; {steps}, are converted of unigram"))
    })?;
    let mut normal = vocab.tokens.iter().zip(&vocab.token_types).filter(|(_, kind)| **kind == TokenType::Normal);
    if let Some((piece, _)) = normal.find(|(piece, _)| rules.parts(piece)) {
        let why = format!("cuts a text at spaces, which GGUF cannot say, and the piece {piece:?} goes across one");
        return Err(bad("pre_tokenizer", &why));
    }
    if rules.is_loose {
        tracing::warn!(
            file = %path.display(),
            "the steps before the model leave spaces at a text's ends, or put none before one that has; with GGUF there is one \
             before every text, and none behind it where they are folded"
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

impl Rules {
    /// Reads the steps of a file.
    ///
    /// # Errors
    /// The first that GGUF has no key for, and where it stands.
    fn read(file: &Value) -> Result<Self, (&'static str, &Value)> {
        let mut rules = Self::default();
        let (mut writes, mut strips) = (false, false);
        for (at, step) in steps(&file["normalizer"], "normalizers").enumerate() {
            match step["type"].as_str() {
                // Whatever comes before it would see other characters.
                Some("Precompiled") if at == 0 => {
                    let table = step["precompiled_charsmap"].as_str().map(|text| BASE64_STANDARD.decode(text));
                    let Some(Ok(table)) = table else { return Err(("normalizer", step)) };
                    rules.charsmap = table;
                }
                Some("Strip") => strips |= step["strip_left"] == true && step["strip_right"] == true,
                Some("Replace") if step["pattern"]["Regex"] == " {2,}" && is_space(&step["content"]) => {
                    rules.folds_spaces = true;
                }
                Some("Prepend") if is_space(&step["prepend"]) => rules.puts_space = true,
                Some("Replace") if step["pattern"]["String"] == " " && step["content"] == SPACE => writes = true,
                _ => return Err(("normalizer", step)),
            }
        }
        for step in steps(&file["pre_tokenizer"], "pretokenizers") {
            match step["type"].as_str() {
                Some("WhitespaceSplit") => (rules.folds_spaces, rules.parts_words, strips) = (true, true, true),
                Some("Metaspace") if step["replacement"] == SPACE => {
                    writes = true;
                    rules.parts_words |= step["split"] != false;
                    if step["prepend_scheme"] != "never" && step["add_prefix_space"] != false {
                        rules.puts_space = true;
                        // One that is there already is enough to it.
                        rules.is_loose |= !rules.folds_spaces;
                    }
                }
                _ => return Err(("pre_tokenizer", step)),
            }
        }
        rules.is_loose |= rules.folds_spaces && !strips;
        // Without a prefix llama.cpp would put one where it folds.
        if !writes || rules.folds_spaces && !rules.puts_space {
            return Err(("pre_tokenizer", &file["pre_tokenizer"]));
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
