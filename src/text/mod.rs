//! Text to token ids and back: tokenizers, streaming detokenization, stop strings, chat templates, tool calls.
//!
//! A prompt comes down through [`ChatTemplate`] (messages to text) and [`Tokenizer::encode`] (text to ids); generated
//! ids go up through [`Detokenizer`] (ids to text that never splits a character) and [`StopMatcher`] (text that never
//! leaks the start of a stop string), and in a chat through [`OutputParser`] (text to reasoning, text and tool calls).
//!
//! A [`Tokenizer`] comes from a `tokenizer.json` (`tokenizer_file`), a sentencepiece `.model` (`sentencepiece_file`), a
//! `.tiktoken` file (`tiktoken_file`) or a GGUF file's metadata ([`GgufVocab`], `tokenizer_gguf`). Byte-level BPE and
//! WordPiece run in the `tokenizers` crate, cut by our own linear `pattern`s; sentencepiece and tiktoken are
//! our own over one `merge`, because only the order by score gives the exact ids. All fill one `TokenTable`:
//! the bytes that each id stands for.

mod added_tokens;
mod chat_template;
mod chat_template_continue;
mod chat_template_json;
mod chat_template_source;
mod detokenizer;
mod families;
mod json_bytes;
mod leading_space;
mod marks;
mod merge;
mod messages;
mod output_parser;
mod pattern;
mod reasoning;
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
mod tokenizer_json;
mod tokenizer_reuse;
mod tokenizer_split;
mod tokenizer_to_gguf;
mod tokenizer_wordpiece;
pub mod tool_calls;
mod tools;
mod trie;
mod unigram;
mod vocab;

pub use chat_template::{ChatTemplate, RenderOptions};
pub use detokenizer::Detokenizer;
pub use families::pre_tokenizer_name;
pub use json_bytes::{json_bytes, json_map_bytes};
pub use messages::{ChatMessage, ChatPrompt, Role};
pub use output_parser::{Ending, OutputFormat, OutputParser, Piece};
pub use reasoning::ReasoningFormat;
pub use sentencepiece_normalizer::makes_spaces;
pub use stop::{StopMatcher, StopStep};
pub use token_runs::token_runs;
pub use tokenizer::{MAX_TEXT_BYTES, Tokenizer};
pub use tokenizer_config::TokenizerConfig;
pub use tokenizer_directory::TOKENIZER_FILES;
pub use tool_calls::{Grammar, ToolCallFormat};
pub use tools::{MAX_TOOLS, Tool, ToolCall, ToolChoice, validate_tools};
pub use vocab::{GgufVocab, TokenType};
