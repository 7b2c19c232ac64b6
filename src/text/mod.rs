//! Text to token ids and back: tokenizers, streaming detokenization, stop strings, chat templates.
//!
//! A prompt comes down through [`ChatTemplate`] (messages to text) and [`Tokenizer::encode`] (text to ids); generated
//! ids go up through [`Detokenizer`] (ids to text that never splits a character) and [`StopMatcher`] (text that never
//! leaks the start of a stop string).
//!
//! A [`Tokenizer`] comes from a `tokenizer.json` (`tokenizer_file`) or from a GGUF file's metadata ([`GgufVocab`]):
//! byte-level BPE runs in the `tokenizers` crate (`tokenizer_gguf`), sentencepiece in our own `sentencepiece`, because
//! only the merge order by score gives the exact ids. Both fill one `TokenTable`: the bytes that each id stands for.

mod added_tokens;
mod chat_template;
mod chat_template_json;
mod detokenizer;
mod sentencepiece;
mod stop;
mod token_table;
mod tokenizer;
mod tokenizer_config;
mod tokenizer_file;
mod tokenizer_gguf;
mod vocab;

pub use chat_template::{ChatMessage, ChatTemplate, RenderOptions, Role};
pub use detokenizer::Detokenizer;
pub use stop::{StopMatcher, StopStep};
pub use tokenizer::{MAX_TEXT_BYTES, Tokenizer};
pub use tokenizer_config::TokenizerConfig;
pub use tokenizer_gguf::pre_tokenizer_name;
pub use vocab::{GgufVocab, TokenType};
