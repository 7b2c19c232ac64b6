//! Text to token ids and back: tokenizers, streaming detokenization, stop strings, chat templates.
//!
//! A prompt comes down through [`ChatTemplate`] (messages to text) and [`Tokenizer::encode`] (text to ids); generated
//! ids go up through [`Detokenizer`] (ids to text that never splits a character) and [`StopMatcher`] (text that never
//! leaks the start of a stop string).
//!
//! A [`Tokenizer`] comes from a `tokenizer.json` (`tokenizer_file`), a sentencepiece `.model` (`sentencepiece_file`), a
//! `.tiktoken` file (`tiktoken_file`) or a GGUF file's metadata ([`GgufVocab`], `tokenizer_gguf`). Byte-level BPE and
//! WordPiece run in the `tokenizers` crate, cut by our own linear `pattern`s; sentencepiece and tiktoken are
//! our own over one `merge`, because only the order by score gives the exact ids. All fill one `TokenTable`:
//! the bytes that each id stands for.

mod added_tokens;
mod chat_template;
mod chat_template_json;
mod detokenizer;
mod families;
mod merge;
mod pattern;
mod sentencepiece;
mod sentencepiece_file;
mod sentencepiece_normalizer;
mod stop;
mod tiktoken;
mod tiktoken_file;
mod token_runs;
mod token_table;
mod tokenizer;
mod tokenizer_config;
mod tokenizer_directory;
mod tokenizer_file;
mod tokenizer_gguf;
mod tokenizer_reuse;
mod tokenizer_split;
mod tokenizer_wordpiece;
mod trie;
mod unigram;
mod vocab;

pub use chat_template::{ChatMessage, ChatTemplate, RenderOptions, Role};
pub use detokenizer::Detokenizer;
pub use stop::{StopMatcher, StopStep};
pub use token_runs::token_runs;
pub use tokenizer::{MAX_TEXT_BYTES, Tokenizer};
pub use tokenizer_config::TokenizerConfig;
pub use tokenizer_directory::TOKENIZER_FILES;
pub use vocab::{GgufVocab, TokenType};
