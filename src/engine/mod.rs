//! THE API: an [`Engine`](self) takes requests and gives streams of tokens.

pub mod block_manager;
pub mod executor;
pub mod fake;
mod faults;
#[cfg(test)]
mod properties;
pub mod scheduler;
pub mod sequence;
