//! Everything that is tested from outside the crate, in one binary.

mod engine;
mod grpc;
mod house;
