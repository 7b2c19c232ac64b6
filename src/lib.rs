//! candlewick: a streaming LLM token server with native inference.
//!
//! # The map of the house
//!
//! A token travels down through nine files and back through three:
//!
//! `server/grpc` decodes a call → [`engine`] renders, tokenizes ([`text`]), admits or refuses → `engine/step` drains
//! commands → `engine/scheduler` (with `engine/block_manager`) makes a [`engine::executor::StepPlan`] →
//! `engine/runner` packs it → [`arch`] runs the model's blocks → [`layers`] → [`kernels`].
//! Back: [`sampling`] → `engine/step` → `engine/stream` detokenizes → `server/grpc`.
//!
//! Imports go one way; `tests/it/house.rs` holds the edges:
//! base ([`error`], [`ids`], [`params`], [`config`], [`proto`], [`telemetry`]) ← [`kernels`] ← [`weights`] ← [`layers`] ←
//! [`arch`]; base ← [`text`]; base, kernels ← [`sampling`]; all of these ← [`engine`] ← [`server`] ← [`cli`].
//! [`error`], [`ids`] and [`kernels`] are a crate of their own, `crates/compute`.
//! [`convert`] writes model files, out of what [`arch`], [`text`] and those before them read.

pub mod arch;
pub mod cli;
pub mod config;
pub mod convert;
pub mod engine;
pub mod layers;
pub mod params;
pub mod proto;
pub mod sampling;
pub mod server;
pub mod telemetry;
pub mod text;
pub mod weights;

pub use candlewick_compute::{error, ids, kernels};
