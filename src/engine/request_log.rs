//! Requests in the log, where the operator asks for that (`--enable-log-requests`). Nothing else of the engine or of a face writes
//! anything of a prompt there.

use crate::{config::LogRequests, ids::TokenId, params::SamplingParams};

/// Writes a request with its prompt: its text, which for a chat is the rendered one, or its ids where it came without.
pub(super) fn write(
    log: LogRequests,
    request_id: &str,
    text: Option<&str>,
    prompt: &[TokenId],
    params: &SamplingParams,
) {
    let most = log.max_len.unwrap_or(usize::MAX);
    // Written as Rust writes strings, so that a line break of a prompt does not look like a line of the log.
    let said = match text {
        Some(text) => format!("{:?}", text.chars().take(most).collect::<String>()),
        None => format!("{:?}", prompt.iter().take(most).map(|id| id.0).collect::<Vec<_>>()),
    };
    let (prompt_tokens, max_tokens, seed) = (prompt.len(), params.max_tokens, params.seed);
    tracing::info!(request_id, prompt_tokens, ?max_tokens, ?seed, prompt = %said, "a request");
}
