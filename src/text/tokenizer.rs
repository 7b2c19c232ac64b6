//! [`Tokenizer`]: text to token ids, ids to the bytes they stand for.
//!
//! Encoding is the `tokenizers` crate's, or our own sentencepiece or tiktoken; decoding is ours for all of them, on the
//! bytes of each token, because a stream needs exactly what one token contributes.

use std::{
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
};

use crate::{
    error::{Error, Result},
    ids::TokenId,
};

use super::{
    added_tokens::AddedTokens, leading_space::LeadingSpace, sentencepiece::Sentencepiece, tiktoken::Tiktoken,
    token_table::TokenTable, tokenizer_config::TokenizerConfig, tokenizer_file, tokenizer_gguf,
    tokenizer_split::Pipeline, vocab::GgufVocab,
};

/// Most bytes of text that one call encodes.
pub const MAX_TEXT_BYTES: usize = 8 << 20;

/// What turns text into ids.
pub(super) enum Encoder {
    /// The `tokenizers` crate, for its own files and byte-level BPE.
    Pipeline(Box<Pipeline>),
    /// `.model` files, and the vocabularies of GGUF files that were made from one.
    Sentencepiece { model: Box<Sentencepiece>, added: AddedTokens },
    /// `.tiktoken` files.
    Tiktoken { model: Box<Tiktoken>, added: AddedTokens },
}

/// A vocabulary with its way of cutting text. Cheap to share behind an `Arc`, safe to use from many threads.
pub struct Tokenizer {
    pub(super) path: PathBuf,
    pub(super) encoder: Encoder,
    pub(super) table: TokenTable,
    /// What decoding a whole text takes away of its first spaces.
    pub(super) leading_space: LeadingSpace,
    /// Words are ended by a space, so decoding a whole text takes the last away.
    pub(super) strip_trailing_space: bool,
    pub(super) bos: Option<TokenId>,
    pub(super) eos: Option<TokenId>,
    /// Added around a text with special tokens, on top of what the encoder's own post-processor adds.
    pub(super) prefix: Option<TokenId>,
    pub(super) suffix: Option<TokenId>,
    /// Tokens that the `tokenizers` crate finds before all else; none where some of them ask what stands beside them.
    pub(super) seams: Option<AddedTokens>,
    /// Most bytes of a text; [`MAX_TEXT_BYTES`] but where a pattern cannot be run in linear time.
    pub(super) max_text_bytes: usize,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer")
            .field("path", &self.path)
            .field("vocab_size", &self.vocab_size())
            .finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// Of these parts, with nothing added around a text; whoever reads a file fills the rest in.
    pub(super) fn new(path: &Path, encoder: Encoder, table: TokenTable) -> Self {
        Self {
            path: path.to_owned(),
            encoder,
            table,
            leading_space: LeadingSpace::KEPT,
            strip_trailing_space: false,
            bos: None,
            eos: None,
            prefix: None,
            suffix: None,
            seams: None,
            max_text_bytes: MAX_TEXT_BYTES,
        }
    }

    /// Reads a `tokenizer.json`, a sentencepiece `.model` or a `.tiktoken` file, and the `tokenizer_config.json` beside it
    /// where there is one (for `bos_token`, `eos_token` and what the file itself leaves out).
    ///
    /// # Errors
    /// `FailedPrecondition` that names the file and the field where it cannot be read or used.
    pub fn from_file(path: &Path) -> Result<Self> {
        let config = path.with_file_name("tokenizer_config.json");
        let config = config.is_file().then(|| TokenizerConfig::from_file(&config)).transpose()?;
        let is_json = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("json"));
        let tokenizer = match is_json {
            true => Self::from_json_bytes(path, &read_bounded(path, tokenizer_file::MAX_FILE_BYTES)?)?,
            false => Self::from_vocabulary_file(path, config.as_ref())?,
        };
        match &config {
            Some(config) => tokenizer.with_config(config),
            None => Ok(tokenizer),
        }
    }

    /// Takes the text of a `tokenizer.json`. `path` is for messages only.
    ///
    /// Truncation, padding and BPE dropout that the file may ask for are left out: a server wants none of them.
    ///
    /// # Errors
    /// `FailedPrecondition` that names the file and the field where it cannot be used.
    pub fn from_json_bytes(path: &Path, json: &[u8]) -> Result<Self> {
        guarded(path, "file", || tokenizer_file::load(path, json))
    }

    /// Builds the tokenizer of a GGUF file: byte-level BPE (`gpt2`), sentencepiece (`llama`), unigram (`t5`) or WordPiece
    /// (`bert`).
    ///
    /// # Errors
    /// `FailedPrecondition` that names the file and the metadata key where it cannot be used.
    pub fn from_gguf(vocab: GgufVocab) -> Result<Self> {
        guarded(&vocab.path.clone(), "tokenizer.ggml", || tokenizer_gguf::load(vocab))
    }

    /// The same tokenizer with the begin and end tokens that a `tokenizer_config.json` names.
    ///
    /// # Errors
    /// `FailedPrecondition` where the vocabulary has no such token.
    pub fn with_config(mut self, config: &TokenizerConfig) -> Result<Self> {
        let id = |field: &str, token: &Option<String>| match token {
            None => Ok(None),
            Some(text) => self.token_to_id(text).map(Some).ok_or_else(|| {
                Error::bad_file(
                    &config.path,
                    field,
                    format!("is {text:?}, which {} does not have", self.path.display()),
                )
            }),
        };
        let (bos, eos) = (id("bos_token", &config.bos_token)?, id("eos_token", &config.eos_token)?);
        // Where we put a frame around a text, it is of these.
        self.prefix = self.prefix.and(bos).or(self.prefix);
        self.suffix = self.suffix.and(eos).or(self.suffix);
        self.bos = bos.or(self.bos);
        self.eos = eos.or(self.eos);
        Ok(self)
    }

    /// Checks that every id of this vocabulary is a row of a model's embedding.
    ///
    /// # Errors
    /// `FailedPrecondition` that names the file and the first token beyond it.
    pub fn ensure_fits(&self, model_vocab_size: usize) -> Result<()> {
        if self.vocab_size() <= model_vocab_size {
            return Ok(());
        }
        let token = self.id_to_token(TokenId(model_vocab_size as u32)).unwrap_or_default();
        let why = format!(
            "reaches to id {}, but config.json gives the model vocab_size {model_vocab_size} (the first token beyond is {token:?}): \
             use the tokenizer that came with this model",
            self.vocab_size() - 1
        );
        Err(Error::bad_file(&self.path, "vocabulary", why))
    }

    /// The ids of a text.
    ///
    /// Added tokens written out in the text (`<|im_end|>`) become their ids: templates rely on it. With
    /// `add_special_tokens` the text is framed as the model was trained (usually a begin token first); leave that off
    /// for text that came out of a chat template, which writes the frame itself.
    ///
    /// The cost grows with the text, in the order of a millisecond for a few thousand bytes: on an asynchronous worker,
    /// longer texts belong on a blocking thread.
    ///
    /// # Errors
    /// `InvalidArgument` for a text longer than [`MAX_TEXT_BYTES`]; `Internal` where the vocabulary cannot spell the
    /// text and has no unknown token.
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<TokenId>> {
        if text.len() > self.max_text_bytes {
            let why = format!("has {} bytes, at most {} are allowed", text.len(), self.max_text_bytes);
            return Err(Error::invalid("text", why));
        }
        let ids = match &self.encoder {
            Encoder::Pipeline(pipeline) => guarded(&self.path, "file", || {
                let encoding = pipeline.encode_fast(text, add_special_tokens);
                Ok(encoding.map(|e| e.get_ids().to_vec()).map_err(|e| e.to_string()))
            })?,
            Encoder::Sentencepiece { model, added } => added.encode(text, |text, ids| {
                model.encode(text, ids);
                Ok(())
            }),
            Encoder::Tiktoken { model, added } => added.encode(text, |text, ids| model.encode(text, ids)),
        }
        .map_err(|why| self.cannot_encode(&why))?;
        if let Some(id) = ids.iter().find(|&&id| id as usize >= self.vocab_size()) {
            return Err(self.cannot_encode(&format!("it gave id {id}, outside its vocabulary")));
        }
        let frame = |token: Option<TokenId>| token.filter(|_| add_special_tokens);
        Ok(frame(self.prefix).into_iter().chain(ids.into_iter().map(TokenId)).chain(frame(self.suffix)).collect())
    }

    /// The ids of a text that goes on from other text: nothing is put before or after it, no space either where our own
    /// sentencepiece encodes it. A file's own pipeline may still put one.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn encode_continuation(&self, text: &str) -> Result<Vec<TokenId>> {
        let Encoder::Sentencepiece { model, .. } = &self.encoder else { return self.encode(text, false) };
        let mut ids = Vec::new();
        model.encode_continuation(text, &mut ids);
        Ok(ids.into_iter().map(TokenId).collect())
    }

    fn cannot_encode(&self, why: &str) -> Error {
        Error::internal(format!("{}: the tokenizer cannot encode this text: {why}", self.path.display()))
    }

    /// The exact bytes that a token contributes to a text, perhaps only a part of a character. Empty for an id outside
    /// the vocabulary.
    #[must_use]
    pub fn token_bytes(&self, id: TokenId) -> &[u8] {
        self.table.bytes(id)
    }

    /// Whether the token means something instead of spelling something.
    #[must_use]
    pub fn is_special(&self, id: TokenId) -> bool {
        self.table.is_special(id)
    }

    /// The text of a whole sequence: all bytes together, U+FFFD for what is not UTF-8, without the space that
    /// sentencepiece puts first.
    #[must_use]
    pub fn decode(&self, ids: &[TokenId], skip_special: bool) -> String {
        let kept = ids.iter().filter(|&&id| !(skip_special && self.is_special(id)));
        let mut space = self.leading_space;
        let bytes: Vec<u8> = kept.flat_map(|&id| space.take_from(id, self.token_bytes(id))).copied().collect();
        let mut text = bytes.as_slice();
        if self.strip_trailing_space {
            text = text.strip_suffix(b" ").unwrap_or(text);
        }
        String::from_utf8_lossy(text).into_owned()
    }

    /// Whether a whole text ends with a space that is not part of it; see [`Detokenizer`](super::Detokenizer).
    pub(super) fn strips_trailing_space(&self) -> bool {
        self.strip_trailing_space
    }

    /// What encoding put before a whole text; see [`Detokenizer`](super::Detokenizer).
    pub(super) fn leading_space(&self) -> LeadingSpace {
        self.leading_space
    }

    /// One more than the largest id.
    #[must_use]
    pub fn vocab_size(&self) -> usize {
        self.table.len()
    }

    /// The begin-of-sequence token.
    #[must_use]
    pub fn bos(&self) -> Option<TokenId> {
        self.bos
    }

    /// The end-of-sequence token.
    #[must_use]
    pub fn eos(&self) -> Option<TokenId> {
        self.eos
    }

    /// A token as the vocabulary writes it (`Ġthe`, `▁the`, `<0x0A>`), for people; none for an id without a token.
    #[must_use]
    pub fn id_to_token(&self, id: TokenId) -> Option<String> {
        let written = match &self.encoder {
            Encoder::Pipeline(pipeline) => pipeline.id_to_token(id.0),
            Encoder::Sentencepiece { model, .. } => model.piece(id.0).map(str::to_owned),
            Encoder::Tiktoken { .. } => None,
        };
        // Tiktoken writes bytes, and tokens that were added stand as they are.
        let bytes = || Some(self.token_bytes(id)).filter(|bytes| !bytes.is_empty());
        written.or_else(|| bytes().map(|bytes| String::from_utf8_lossy(bytes).into_owned()))
    }

    /// The id of a token as the vocabulary writes it.
    #[must_use]
    pub fn token_to_id(&self, token: &str) -> Option<TokenId> {
        match &self.encoder {
            Encoder::Pipeline(pipeline) => pipeline.token_to_id(token),
            Encoder::Sentencepiece { model, added } => added.id(token).or_else(|| model.id(token)),
            Encoder::Tiktoken { model, added } => added.id(token).or_else(|| model.id(token.as_bytes())),
        }
        .map(TokenId)
    }
}

/// A file's bytes, unless it is implausibly large.
pub(super) fn read_bounded(path: &Path, limit_bytes: u64) -> Result<Vec<u8>> {
    let cannot_read = |error| Error::bad_file(path, "file", format!("cannot be read: {error}"));
    let len = fs::metadata(path).map_err(cannot_read)?.len();
    if len > limit_bytes {
        return Err(Error::bad_file(path, "file", format!("has {len} bytes, at most {limit_bytes} are allowed")));
    }
    fs::read(path).map_err(cannot_read)
}

/// Runs what a file drives inside the `tokenizers` crate. We check all that we know of before, but that crate has
/// `expect`s on data of its own; the last resort is to turn a panic into an error.
pub(super) fn guarded<T>(path: &Path, field: &str, run: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|_| {
        Err(Error::bad_file(
            path,
            field,
            "makes the tokenizers crate panic (its message is in the log): the file is broken",
        ))
    })
}
