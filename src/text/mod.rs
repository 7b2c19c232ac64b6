//! Text to token ids and back: tokenizers, streaming detokenization, stop strings, chat templates, tool calls.
//!
//! A prompt comes down through [`ChatTemplate`] (messages to text) and [`Tokenizer::encode`] (text to ids); generated
//! ids go up through [`Detokenizer`] (ids to text that never splits a character) and [`StopMatcher`] (text that never
//! leaks the start of a stop string), and in a chat through [`OutputParser`] (text to reasoning, text and tool calls).
//!
//! A [`Tokenizer`] comes from a `tokenizer.json` (`tokenizer_file`) or from a GGUF file's metadata ([`GgufVocab`]):
//! byte-level BPE runs in the `tokenizers` crate (`tokenizer_gguf`), sentencepiece in our own `sentencepiece`, because
//! only the merge order by score gives the exact ids. Both fill one `TokenTable`: the bytes that each id stands for.

mod added_tokens;
mod chat_template;
mod chat_template_continue;
mod chat_template_json;
mod detokenizer;
mod marks;
mod messages;
mod output_parser;
mod reasoning;
mod sentencepiece;
mod stop;
mod token_runs;
mod token_table;
mod tokenizer;
mod tokenizer_config;
mod tokenizer_file;
mod tokenizer_gguf;
pub mod tool_calls;
mod tools;
mod vocab;

pub use chat_template::{ChatTemplate, RenderOptions};
pub use detokenizer::Detokenizer;
pub use messages::{ChatMessage, ChatPrompt, Role};
pub use output_parser::{Ending, OutputFormat, OutputParser, Piece};
pub use reasoning::ReasoningFormat;
pub use stop::{StopMatcher, StopStep};
pub use token_runs::token_runs;
pub use tokenizer::{MAX_TEXT_BYTES, Tokenizer};
pub use tokenizer_config::TokenizerConfig;
pub use tool_calls::{Grammar, ToolCallFormat};
pub use tools::{MAX_TOOLS, Tool, ToolCall, ToolChoice, validate_tools};
pub use vocab::{GgufVocab, TokenType};
