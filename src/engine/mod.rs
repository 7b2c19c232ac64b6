//! THE API: an [`Engine`](self) takes requests and gives streams of tokens.

pub mod block_manager;
pub mod executor;
pub mod fake;
pub mod scheduler;
pub mod sequence;
