//! The architectures: a table of names, and `CausalLm<B>` which owns everything but the block.

pub mod config;
