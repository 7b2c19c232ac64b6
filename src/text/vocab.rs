//! The tokenizer that a GGUF file carries in its metadata, as plain data.
//!
//! The keys are those of the GGUF specification (`tokenizer.ggml.*`); whoever reads the file fills this in, and
//! [`Tokenizer::from_gguf`](super::Tokenizer::from_gguf) checks it.

use std::path::PathBuf;

/// What a token of a GGUF vocabulary is (`tokenizer.ggml.token_type`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TokenType {
    /// 1: ordinary text.
    #[default]
    Normal,
    /// 2: stands for text that the vocabulary cannot spell.
    Unknown,
    /// 3: begin, end, a chat role: means something, spells nothing.
    Control,
    /// 4: text that is always one token.
    UserDefined,
    /// 5: never produced.
    Unused,
    /// 6: one byte, spelled `<0x0A>`.
    Byte,
}

impl TokenType {
    /// The type with that number in the file; anything else is [`TokenType::Normal`].
    #[must_use]
    pub fn from_number(number: i64) -> Self {
        match number {
            2 => Self::Unknown,
            3 => Self::Control,
            4 => Self::UserDefined,
            5 => Self::Unused,
            6 => Self::Byte,
            _ => Self::Normal,
        }
    }
}

/// The tokenizer of a GGUF file. Lists are by token id.
#[derive(Clone, Debug, Default)]
pub struct GgufVocab {
    /// The file, for messages.
    pub path: PathBuf,
    /// `tokenizer.ggml.model`: `llama` (sentencepiece), `gpt2` (byte-level BPE), `t5` (unigram) or `bert` (WordPiece).
    pub model: String,
    /// `tokenizer.ggml.pre`: which pre-tokenizer splits the text before byte-level BPE.
    pub pre: Option<String>,
    /// `tokenizer.ggml.tokens`.
    pub tokens: Vec<String>,
    /// `tokenizer.ggml.scores`: one a token for sentencepiece, empty otherwise.
    pub scores: Vec<f32>,
    /// `tokenizer.ggml.token_type`: one a token, or empty where all are normal.
    pub token_types: Vec<TokenType>,
    /// `tokenizer.ggml.merges`: `left right`, best first; empty for sentencepiece.
    pub merges: Vec<String>,
    /// `tokenizer.ggml.bos_token_id`.
    pub bos: Option<u32>,
    /// `tokenizer.ggml.eos_token_id`.
    pub eos: Option<u32>,
    /// `tokenizer.ggml.unknown_token_id`.
    pub unk: Option<u32>,
    /// `tokenizer.ggml.seperator_token_id`, as the specification spells it.
    pub sep: Option<u32>,
    /// `tokenizer.ggml.padding_token_id`.
    pub pad: Option<u32>,
    /// `tokenizer.ggml.add_bos_token`; without it, as the model family has it.
    pub add_bos: Option<bool>,
    /// `tokenizer.ggml.add_eos_token`; without it, no.
    pub add_eos: Option<bool>,
    /// `tokenizer.ggml.add_space_prefix`; without it, yes (sentencepiece only).
    pub add_space_prefix: Option<bool>,
    /// `tokenizer.ggml.add_sep_token`; without it, as the model family has it.
    pub add_sep: Option<bool>,
    /// `tokenizer.ggml.remove_extra_whitespaces`; without it, no.
    pub remove_extra_whitespaces: Option<bool>,
    /// `tokenizer.ggml.precompiled_charsmap`; empty without it.
    pub precompiled_charsmap: Vec<u8>,
    /// `tokenizer.chat_template`.
    pub chat_template: Option<String>,
}
