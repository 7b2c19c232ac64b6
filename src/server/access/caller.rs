//! Who makes a call. The faces take it from the call and hand it to whatever works for it, or remembers something for it.

use std::{net::IpAddr, sync::Arc};

use axum::http::Extensions;
use tokio::time::Instant;

use super::tenant::{Tenant, Total};
use crate::{
    engine::Request,
    error::{Code, Error, Result},
    params::{SamplingParams, limits},
    server::peer::Peer,
};

/// Whose something is; none is the one that everybody shares where no keys are asked for.
pub(crate) type Owner = Option<Arc<str>>;

/// See the [module](self). Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    /// None where no keys are asked for.
    tenant: Option<Arc<Tenant>>,
    /// What it is known by then, for its share of the queue.
    network: Option<IpAddr>,
}

/// What a request takes of its tenant's quotas while it lasts.
#[derive(Debug)]
pub(crate) struct Admission {
    tenant: Option<Arc<Tenant>>,
    since: Instant,
    /// Whether what it was let in for was admitted.
    is_admitted: bool,
    sequences: u32,
    /// Whether the tokens of its prompt count: of several answers to one, those of the first do.
    counts_prompt: bool,
}

/// A tenant's place for a session.
#[derive(Debug)]
pub(crate) struct SessionPlace {
    tenant: Option<Arc<Tenant>>,
    since: Instant,
    /// Whether the session was opened.
    is_admitted: bool,
}

impl Caller {
    pub(super) fn tenant(tenant: Arc<Tenant>) -> Self {
        Self { tenant: Some(tenant), network: None }
    }

    /// One of that name, without limits.
    #[cfg(test)]
    pub(crate) fn of_tenant(name: &str) -> Self {
        Self::tenant(Tenant::new(name.into(), crate::config::TenantLimits::default(), Instant::now()))
    }

    /// Everybody, where no keys are asked for.
    pub(crate) fn anybody() -> Self {
        Self { tenant: None, network: None }
    }

    /// The same, calling from there.
    pub(super) fn at(self, peer: Peer) -> Self {
        Self { network: peer.network().filter(|_| self.tenant.is_none()), ..self }
    }

    /// Who makes the call that has these extensions.
    ///
    /// # Errors
    /// `Internal` where nobody has looked at its key: then it must not go on.
    pub(crate) fn of(extensions: &Extensions) -> Result<Self> {
        let missing = || Error::internal("a call reached a service without passing the guard");
        extensions.get().cloned().ok_or_else(missing)
    }

    /// Whether it has shown one.
    pub(crate) fn has_key(&self) -> bool {
        self.tenant.is_some()
    }

    /// Whose things its things are.
    pub(crate) fn owner(&self) -> Owner {
        self.tenant.as_ref().map(|tenant| tenant.name.clone())
    }

    /// Where it calls from, if it has no name.
    pub(crate) fn network(&self) -> Option<IpAddr> {
        self.network
    }

    /// Whether it may do what concerns everybody.
    ///
    /// # Errors
    /// `PermissionDenied`.
    pub(crate) fn check_admin(&self) -> Result<()> {
        match &self.tenant {
            Some(tenant) if !tenant.limits().admin => {
                Err(Error::new(Code::PermissionDenied, "this call concerns all tenants: it needs the key of an admin"))
            }
            _ => Ok(()),
        }
    }

    /// Makes a request the caller's own: cached prefixes and shares are its tenant's, and without one, places are its network's.
    pub(crate) fn own(&self, request: Request) -> Request {
        Request { tenant: self.owner(), network: self.network, ..request }
    }

    /// Counts a request against the tenant's quotas, before anything is done for it.
    ///
    /// # Errors
    /// `ResourceExhausted` that names the quota and says when to come back; `InvalidArgument` for more than the quota itself.
    pub(crate) fn admit(&self, request: &Request) -> Result<Admission> {
        self.admit_all(1, 1, Some(&request.params))
    }

    /// Counts all that a call asks for at once, likewise: so many prompts, each a request, and so many answers to each.
    ///
    /// # Errors
    /// As [`admit`](Self::admit).
    pub(crate) fn admit_all(
        &self,
        prompts: usize,
        answers: usize,
        params: Option<&SamplingParams>,
    ) -> Result<Admission> {
        let each = params.map_or(1, |params| params.num_sequences().clamp(1, limits::SEQUENCES)) * answers;
        let field = if params.is_some_and(|params| params.best_of.is_some()) { "best_of" } else { "n" };
        self.enter(Total { requests: number(prompts), sequences: number(each), field, or_fewer: false })
    }

    /// Counts a call that generates nothing, likewise.
    ///
    /// # Errors
    /// `ResourceExhausted`, likewise.
    pub(crate) fn admit_call(&self) -> Result<Admission> {
        self.enter(Total { requests: 1, sequences: 1, field: "n", or_fewer: false })
    }

    /// Counts a call for so many vectors, likewise: a request, and as many sequences as run at once.
    ///
    /// # Errors
    /// `ResourceExhausted`, likewise.
    pub(crate) fn admit_inputs(&self, inputs: usize) -> Result<Admission> {
        let sequences = number(inputs.clamp(1, limits::EMBED_AT_ONCE));
        self.enter(Total { requests: 1, sequences, field: "inputs", or_fewer: true })
    }

    fn enter(&self, total: Total) -> Result<Admission> {
        let sequences = match &self.tenant {
            Some(tenant) => tenant.enter(total, Instant::now())?,
            None => total.requests.saturating_mul(total.sequences),
        };
        let (tenant, since) = (self.tenant.clone(), Instant::now());
        Ok(Admission { tenant, since, is_admitted: false, sequences, counts_prompt: true })
    }

    /// Counts a session.
    ///
    /// # Errors
    /// `ResourceExhausted` that names the quota.
    pub(crate) fn admit_session(&self) -> Result<SessionPlace> {
        if let Some(tenant) = &self.tenant {
            tenant.open_session()?;
        }
        Ok(SessionPlace { tenant: self.tenant.clone(), since: Instant::now(), is_admitted: false })
    }
}

fn number(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

impl Admission {
    /// Sequences that may run at once.
    pub(crate) fn sequences(&self) -> usize {
        self.sequences as usize
    }

    /// What one of several requests takes of it.
    pub(crate) fn split(&mut self, request: &Request, counts_prompt: bool) -> Self {
        let sequences = number(request.params.num_sequences().max(1)).min(self.sequences);
        self.sequences -= sequences;
        Self { tenant: self.tenant.clone(), since: self.since, is_admitted: false, sequences, counts_prompt }
    }

    /// What it was let in for was not refused by anybody else: how long it takes says when others find a place.
    pub(crate) fn admitted(&mut self) {
        self.is_admitted = true;
    }

    /// Counts the tokens of its prompt.
    pub(crate) fn charge_prompt(&self, tokens: usize) {
        if self.counts_prompt {
            self.charge(tokens as u64);
        }
    }

    /// Counts tokens that were computed.
    pub(crate) fn charge(&self, tokens: u64) {
        if let Some(tenant) = self.tenant.as_ref().filter(|_| tokens > 0) {
            tenant.charge(tokens);
        }
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        if let Some(tenant) = &self.tenant {
            tenant.leave(self.sequences, self.is_admitted.then(|| self.since.elapsed()));
        }
    }
}

impl SessionPlace {
    /// The session was opened, see [`Admission::admitted`].
    pub(crate) fn admitted(&mut self) {
        self.is_admitted = true;
    }
}

impl Drop for SessionPlace {
    fn drop(&mut self) {
        if let Some(tenant) = &self.tenant {
            tenant.close_session(self.is_admitted.then(|| self.since.elapsed()));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::TenantLimits;

    #[tokio::test(start_paused = true)]
    async fn who_is_refused_elsewhere_says_nothing_of_how_long_places_are_held() {
        let limits = TenantLimits { max_streams: Some(2), max_sessions: Some(2), ..TenantLimits::default() };
        let caller = Caller::tenant(Tenant::new("t".into(), limits, Instant::now()));
        let (mut stream, mut session) = (caller.admit_call().unwrap(), caller.admit_session().unwrap());
        stream.admitted();
        session.admitted();
        tokio::time::advance(Duration::from_secs(12)).await;
        drop((stream, session));
        for _ in 0..20 {
            let mut all = caller.admit_all(2, 1, None).unwrap();
            // The first was admitted, and goes with the second, which was not.
            drop(all.split(&Request::new(crate::engine::Prompt::Text(String::new())), true));
            drop((all, caller.admit_session().unwrap()));
        }
        let _held = [(); 2].map(|()| (caller.admit_call().unwrap(), caller.admit_session().unwrap()));
        let hint = Some(Duration::from_secs(6));
        assert_eq!(caller.admit_call().unwrap_err().retry_after, hint);
        assert_eq!(caller.admit_session().unwrap_err().retry_after, hint);
    }
}
