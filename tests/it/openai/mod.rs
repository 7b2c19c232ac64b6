//! OpenAI's, Anthropic's and Ollama's APIs over a real socket, on an engine without arithmetic.

mod anthropic;
mod chat;
mod completions;
mod embeddings;
pub(crate) mod http;
mod malformed;
mod ollama;
mod responses;
mod tokens;
mod trouble;
