//! Everything that is tested from outside the crate, in one binary.

// What cannot be had fails the test, in its fixtures too; and nothing here is for anybody else.
#![allow(clippy::unwrap_used, unreachable_pub)]

mod access;
mod allocations;
mod arch_golden;
mod bench_serve;
mod cli;
mod client;
mod contract;
mod conversations;
mod converted_tokenizers;
mod dashboard;
mod documented;
mod engine;
mod grpc;
mod hostile_files;
mod house;
mod hub;
mod logs;
mod long_tail;
mod model_config;
mod model_files;
mod openai;
mod place;
mod prefix_cache;
mod real_formats;
mod reference;
mod settings;
mod structured_outputs;
mod text_vectors;
mod tokenizer_json;
mod tokenizers;
mod traces;
