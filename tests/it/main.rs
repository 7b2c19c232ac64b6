//! Everything that is tested from outside the crate, in one binary.

mod arch_golden;
mod engine;
mod grpc;
mod hostile_files;
mod house;
mod hub;
mod model_config;
mod model_files;
mod text_vectors;
