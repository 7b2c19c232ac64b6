//! Output that must match a grammar: which tokens may come next, and which must.
//!
//! A constraint ([`StructuredOutputs`](crate::params::StructuredOutputs)) is compiled once by a [`Compiler`] for one
//! [`Vocabulary`], away from the engine, into a [`Grammar`], which sequences share. Each sequence has a [`Matcher`] of
//! its own, which remembers how far its output has come and gives a [`TokenMask`] for the next token. Masks are computed
//! by [`MaskWorkers`], threads beside those that multiply, while the model runs.
//!
//! Parsing is llguidance's: an Earley parser over a lexer of derivatives of regular expressions, walked along a trie of
//! the vocabulary's bytes (<https://github.com/guidance-ai/llguidance>). What is ours: the check of schemas
//! (`schema`), so that no keyword is ignored; tags and EBNF as Lark (`structural_tag`, `ebnf`); the end of the sequence.

mod compiler;
mod ebnf;
mod mask;
mod matcher;
mod schema;
mod structural_tag;
mod vocabulary;
mod workers;

#[cfg(test)]
mod tests;

pub use compiler::{COMPILER_STACK_BYTES, Compiler, Grammar};
pub use mask::TokenMask;
pub use matcher::{Matcher, Next};
pub use vocabulary::Vocabulary;
pub use workers::{MaskWorkers, PendingMask};
