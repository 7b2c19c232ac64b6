//! The only reader of flags and environment; a `Config` resolves to the limits that the rest of the crate works with.
//!
//! Flag names are vLLM's where it has the same thing.

use std::time::Duration;

/// Limits of one engine, resolved: every field is in force as it stands.
#[derive(Clone, Debug, PartialEq)]
pub struct EngineConfig {
    /// Tokens a KV block.
    pub block_size: usize,
    /// Blocks of the KV cache.
    pub num_blocks: usize,
    /// Tokens a step, prefill chunks and decodes together.
    pub max_num_batched_tokens: usize,
    /// Sequences that hold blocks and run at once.
    pub max_num_seqs: usize,
    /// Prompt and generated tokens a sequence; never more than the cache holds.
    pub max_model_len: usize,
    /// Requests that may wait beyond those that run; one more is refused.
    pub max_waiting: usize,
    /// Tokens that may wait for a reader before its sequence leaves the batch.
    pub stream_capacity_tokens: usize,
    /// Whether full blocks are kept and shared by content.
    pub enable_prefix_caching: bool,
    /// A reader that takes nothing for this long loses its stream (`ABORTED`).
    pub stall_timeout: Duration,
    /// A step that takes this long is given up and the engine restarted.
    pub step_timeout: Duration,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            block_size: 16,
            num_blocks: 1024,
            max_num_batched_tokens: 512,
            max_num_seqs: 64,
            max_model_len: 4096,
            max_waiting: 1024,
            stream_capacity_tokens: 64,
            enable_prefix_caching: true,
            stall_timeout: Duration::from_secs(120),
            step_timeout: Duration::from_secs(120),
        }
    }
}
