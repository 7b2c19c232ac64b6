//! Bounds of streams that outlive their connection, and of sessions.

use std::time::Duration;

use clap::Args;

use super::values::{count, number_with_unit, seconds};

/// Bounds of streams that outlive their connection, and of sessions.
#[derive(Args, Clone, Copy, Debug, PartialEq, Eq)]
#[command(next_help_heading = "Streams and sessions")]
pub struct StreamArgs {
    /// How often a stream that waits or prefills says so, unless the request says otherwise; 0 never.
    #[arg(long, value_name = "MS", default_value = "5000", value_parser = count(0, 3_600_000))]
    pub heartbeat_interval_ms: usize,
    /// Streams at once that can be resumed; one more is refused.
    #[arg(long, value_name = "N", default_value = "256", value_parser = count(0, 1 << 20))]
    pub max_resumable_streams: usize,
    /// Sessions at once; one more is refused.
    #[arg(long, value_name = "N", default_value = "1024", value_parser = count(0, 1 << 20))]
    pub max_sessions: usize,
    /// Events that a resumable stream or a session keeps for a client that comes back.
    #[arg(long, value_name = "N", default_value = "4096", value_parser = count(1, 1 << 20))]
    pub resume_ring_events: usize,
    /// Bytes of them.
    #[arg(long, value_name = "BYTES", default_value = "256K", value_parser = number_with_unit)]
    pub resume_ring_bytes: usize,
    /// How long a resumable stream that nobody reads waits for its client.
    #[arg(long, value_name = "SECONDS", default_value = "60", value_parser = seconds)]
    pub resume_ttl: Duration,
    /// Longest time that a session may outlive its connection; what it gets unless it asks for less.
    #[arg(long, value_name = "SECONDS", default_value = "600", value_parser = seconds)]
    pub session_ttl: Duration,
    /// Most bytes that a session holds: its messages, tools, documents and options.
    #[arg(long, value_name = "BYTES", default_value = "4M", value_parser = number_with_unit)]
    pub max_session_bytes: usize,
    /// Most bytes that all sessions hold together: the same, counted once for all forks that share it, and the prompts that
    /// they remember.
    #[arg(long, value_name = "BYTES", default_value = "256M", value_parser = number_with_unit)]
    pub session_memory_bytes: usize,
}

impl Default for StreamArgs {
    fn default() -> Self {
        Self {
            heartbeat_interval_ms: 5000,
            max_resumable_streams: 256,
            max_sessions: 1024,
            resume_ring_events: 4096,
            resume_ring_bytes: 256 << 10,
            resume_ttl: Duration::from_secs(60),
            session_ttl: Duration::from_secs(600),
            max_session_bytes: 4 << 20,
            session_memory_bytes: 256 << 20,
        }
    }
}
