//! Tokens by tenant: so many tenants have series of their own, and all others share one.

use std::{
    collections::HashSet,
    sync::{Mutex, PoisonError},
};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
};

use super::Table;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TenantLabels {
    tenant: String,
}

/// Tenants that have series of their own; all that come after them share [`OTHERS`].
const TENANT_SERIES: usize = 64;
const OTHERS: &str = "others";
/// Who has no name.
const NAMELESS: &str = "anonymous";

/// Where one tenant's tokens are counted.
#[derive(Clone, Debug)]
pub struct TenantTokens {
    prompt: Counter,
    generated: Counter,
    /// They are this tenant's alone.
    is_own: bool,
}

impl TenantTokens {
    /// A request was admitted with a prompt of this many tokens.
    pub fn record_prompt(&self, tokens: usize) {
        self.prompt.inc_by(tokens as u64);
    }

    /// Tokens were generated.
    pub fn record_generated(&self, tokens: usize) {
        self.generated.inc_by(tokens as u64);
    }

    /// Tokens generated so far, where they are counted by themselves.
    #[must_use]
    pub fn generated(&self) -> Option<u64> {
        self.is_own.then(|| self.generated.get())
    }
}

/// Those who have been named, and their tokens.
#[derive(Debug)]
pub(super) struct Tenants {
    prompt: Family<TenantLabels, Counter>,
    generated: Family<TenantLabels, Counter>,
    /// Those that have series.
    named: Mutex<HashSet<String>>,
}

impl Tenants {
    pub(super) fn register(table: &mut Table) -> Self {
        let mut tokens = |name, help| table.add(name, help, Family::default());
        Self {
            prompt: tokens("candlewick:tenant_prompt_tokens", "Prompt tokens of admitted requests, by tenant"),
            generated: tokens("candlewick:tenant_generation_tokens", "Tokens generated, by tenant"),
            named: Mutex::default(),
        }
    }

    pub(super) fn tokens_of(&self, name: Option<&str>) -> TenantTokens {
        let name = name.unwrap_or(NAMELESS);
        let mut named = self.named.lock().unwrap_or_else(PoisonError::into_inner);
        let is_own = named.contains(name) || named.len() < TENANT_SERIES && named.insert(name.to_owned());
        let labels = TenantLabels { tenant: if is_own { name } else { OTHERS }.to_owned() };
        TenantTokens {
            prompt: self.prompt.get_or_create(&labels).clone(),
            generated: self.generated.get_or_create(&labels).clone(),
            is_own,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::Telemetry;

    #[test]
    fn tenants_beyond_a_bound_share_one_series() {
        let telemetry = Telemetry::new("demo");
        for k in 0..TENANT_SERIES + 3 {
            telemetry.tenant(Some(&format!("t{k}"))).record_generated(2);
        }
        telemetry.tenant(Some("t0")).record_prompt(5);
        telemetry.tenant(None).record_generated(1);
        assert_eq!(telemetry.tenant(Some("t0")).generated(), Some(2));
        assert_eq!(telemetry.tenant(Some("t66")).generated(), None);
        let text = telemetry.encode();
        let series = text.lines().filter(|line| line.starts_with("candlewick:tenant_generation_tokens_total"));
        assert_eq!(series.count(), TENANT_SERIES + 1, "{text}");
        for line in [
            "candlewick:tenant_prompt_tokens_total{model_name=\"demo\",tenant=\"t0\"} 5",
            "candlewick:tenant_generation_tokens_total{model_name=\"demo\",tenant=\"others\"} 7",
        ] {
            assert!(text.lines().any(|l| l == line), "no line {line} in\n{text}");
        }
    }
}
