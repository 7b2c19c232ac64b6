//! What whoever runs the server may see and do: loads, aborts, and a cache to be emptied.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::Arc,
};

use super::{Engine, channel::ReaderControl, step::Command, unavailable};
use crate::{
    error::Result,
    telemetry::{EngineState, EngineTotals},
};

/// How busy the engine is.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Loads {
    /// What it holds, as of its newest step.
    pub state: EngineState,
    /// What it has counted.
    pub totals: EngineTotals,
    /// Blocks of the KV cache.
    pub num_blocks: usize,
    /// … of which sequences hold so many.
    pub used_blocks: usize,
    /// Tokens of prompts, and tokens generated, since the start.
    pub prompt_tokens: u64,
    /// Likewise.
    pub generated_tokens: u64,
    /// Those tenants that have requests here, by name; the nameless one first.
    pub tenants: Vec<TenantLoad>,
}

/// What one tenant has here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TenantLoad {
    /// Its name; none for whoever came without.
    pub tenant: Option<Arc<str>>,
    /// Its share beside those of others.
    pub weight: u32,
    /// Sequences that have run and have not ended.
    pub running: usize,
    /// Sequences that have not run.
    pub waiting: usize,
    /// Tokens generated for it since the start; none where more tenants came than are counted one by one.
    pub generated_tokens: Option<u64>,
}

/// Which requests are meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which<'a> {
    /// Those with this id, of whatever tenant.
    Id(&'a str),
    /// All of a tenant.
    Tenant(Option<&'a str>),
    /// Those of a tenant with one of these ids.
    Own(Option<&'a str>, &'a HashSet<&'a str>),
}

impl Which<'_> {
    fn is(self, reader: &ReaderControl) -> bool {
        let request = reader.request();
        match self {
            Self::Id(id) => request.id == id,
            Self::Tenant(tenant) => request.tenant.as_deref() == tenant,
            Self::Own(tenant, ids) => request.tenant.as_deref() == tenant && ids.contains(request.id.as_str()),
        }
    }
}

/// What emptying the prefix cache came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flushed {
    /// Blocks whose contents were forgotten.
    pub freed: usize,
    /// Blocks whose contents can still be found, because sequences or sessions hold them.
    pub in_use: usize,
}

impl Engine {
    /// How busy the engine is. Looks at all live requests, and asks nothing of the engine thread.
    #[must_use]
    pub fn loads(&self) -> Loads {
        let (config, telemetry) = (self.config(), self.telemetry());
        let state = telemetry.state();
        let mut tenants: BTreeMap<Option<Arc<str>>, TenantLoad> = BTreeMap::new();
        for reader in self.readers().iter().filter(|reader| !reader.has_ended()) {
            let request = reader.request();
            let load = tenants.entry(request.tenant.clone()).or_insert_with(|| TenantLoad {
                tenant: request.tenant.clone(),
                weight: self.shares().weight(request.tenant.as_deref()),
                generated_tokens: request.tokens.as_ref().and_then(|tokens| tokens.generated()),
                ..TenantLoad::default()
            });
            match reader.standing().started {
                true => load.running += 1,
                false => load.waiting += 1,
            }
        }
        Loads {
            state,
            totals: telemetry.totals(),
            num_blocks: config.num_blocks,
            used_blocks: (state.kv_cache_usage * config.num_blocks as f64).round() as usize,
            prompt_tokens: telemetry.prompt_tokens(),
            generated_tokens: telemetry.generated_tokens(),
            tenants: tenants.into_values().collect(),
        }
    }

    /// Has the metrics say which adapters requests run with and wait for, where adapters are served. Looks at all live requests.
    pub fn tell_adapters(&self) {
        let Some(max_lora) = self.info().adapters.max_loras() else { return };
        let (mut running, mut waiting) = (BTreeSet::new(), BTreeSet::new());
        for reader in self.readers().iter().filter(|reader| !reader.has_ended()) {
            if let Some(adapter) = &reader.request().adapter {
                let named = if reader.standing().started { &mut running } else { &mut waiting };
                named.insert(adapter.to_string());
            }
        }
        self.telemetry().set_lora_requests(max_lora, running, waiting);
    }

    /// Ends requests, wherever they stand, with `CANCELLED`, after what waits for their readers; rows and blocks are free
    /// within a step. Says how many requests that were.
    pub fn abort(&self, which: Which<'_>) -> usize {
        let mut requests: Vec<_> = Vec::new();
        for reader in self.readers().iter().filter(|reader| which.is(reader)) {
            if reader.abort(self.telemetry()) {
                requests.push(Arc::as_ptr(reader.request()));
            }
        }
        requests.sort_unstable();
        requests.dedup();
        requests.len()
    }

    /// Forgets what the prefix cache holds and nobody uses.
    ///
    /// # Errors
    /// `Unavailable` between two lives of the engine, `ResourceExhausted` where too much is asked of it.
    pub async fn flush_cache(&self) -> Result<Flushed> {
        let life = self.inner.supervised.life().ok_or_else(|| unavailable("the engine is restarting"))?;
        life.ask(|reply| Command::FlushCache { reply }).await
    }

    /// The readers of all live sequences.
    fn readers(&self) -> Vec<Arc<ReaderControl>> {
        self.inner.supervised.life().map(|life| life.readers()).unwrap_or_default()
    }
}
