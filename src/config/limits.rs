//! What one tenant may use.

use serde::Deserialize;

/// Quotas and rights of a tenant. What is left out is not limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct TenantLimits {
    /// Generations a minute; turns of sessions and each of several prompts count.
    pub requests_per_minute: Option<u32>,
    /// Prompt and generated tokens a minute.
    pub tokens_per_minute: Option<u32>,
    /// Sequences at once, waiting or running; each of `n` counts.
    pub max_streams: Option<u32>,
    /// Sessions open at once.
    pub max_sessions: Option<u32>,
    /// Its share where tenants compete, relative to theirs.
    pub weight: u32,
    /// Whether it may see and do what concerns all tenants.
    pub admin: bool,
}

impl Default for TenantLimits {
    fn default() -> Self {
        Self {
            requests_per_minute: None,
            tokens_per_minute: None,
            max_streams: None,
            max_sessions: None,
            weight: 1,
            admin: false,
        }
    }
}

impl TenantLimits {
    /// The name and the reason of the first limit that makes no sense.
    pub(super) fn fault(&self) -> Option<(&'static str, &'static str)> {
        let is_zero = |limit: Option<u32>| limit == Some(0);
        let faults = [
            ("requests-per-minute", is_zero(self.requests_per_minute)),
            ("tokens-per-minute", is_zero(self.tokens_per_minute)),
            ("max-streams", is_zero(self.max_streams)),
            ("weight", self.weight == 0),
        ];
        let (name, _) = faults.into_iter().find(|(_, wrong)| *wrong)?;
        Some((name, "must be at least 1: leave it out for no limit, take the tenant out to refuse it"))
    }
}
