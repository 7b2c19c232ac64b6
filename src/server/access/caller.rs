//! Who makes a call. The faces take it from the call and hand it to whatever works for it, or remembers something for it.

use std::sync::Arc;

use axum::http::Extensions;
use tokio::time::Instant;

use super::tenant::Tenant;
use crate::{
    engine::Request,
    error::{Code, Error, Result},
    params::limits,
};

/// Whose something is; none is the one that everybody shares where no keys are asked for.
pub(crate) type Owner = Option<Arc<str>>;

/// See the [module](self). Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Caller(Option<Arc<Tenant>>);

/// What a request takes of its tenant's quotas while it lasts.
#[derive(Debug)]
pub(crate) struct Admission {
    tenant: Option<Arc<Tenant>>,
    sequences: u32,
}

/// A tenant's place for a session.
#[derive(Debug)]
pub(crate) struct SessionPlace(Option<Arc<Tenant>>);

impl Caller {
    pub(super) fn tenant(tenant: Arc<Tenant>) -> Self {
        Self(Some(tenant))
    }

    /// Everybody, where no keys are asked for.
    pub(crate) fn anybody() -> Self {
        Self(None)
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
        self.0.is_some()
    }

    /// Whose things its things are.
    pub(crate) fn owner(&self) -> Owner {
        self.0.as_ref().map(|tenant| tenant.name.clone())
    }

    /// Whether it may do what concerns everybody.
    ///
    /// # Errors
    /// `PermissionDenied`.
    pub(crate) fn check_admin(&self) -> Result<()> {
        match &self.0 {
            Some(tenant) if !tenant.limits().admin => {
                Err(Error::new(Code::PermissionDenied, "this call concerns all tenants: it needs the key of an admin"))
            }
            _ => Ok(()),
        }
    }

    /// Makes a request the caller's own: cached prefixes and shares are its tenant's.
    pub(crate) fn own(&self, request: Request) -> Request {
        Request { tenant: self.owner(), ..request }
    }

    /// Counts a request against the tenant's quotas, before anything is done for it.
    ///
    /// # Errors
    /// `ResourceExhausted` that names the quota and says when to come back.
    pub(crate) fn admit(&self, request: &Request) -> Result<Admission> {
        let sequences = request.params.num_sequences().clamp(1, limits::SEQUENCES);
        self.enter(u32::try_from(sequences).unwrap_or(u32::MAX))
    }

    /// Counts a call that generates nothing, likewise.
    ///
    /// # Errors
    /// `ResourceExhausted`, likewise.
    pub(crate) fn admit_call(&self) -> Result<Admission> {
        self.enter(1)
    }

    fn enter(&self, sequences: u32) -> Result<Admission> {
        if let Some(tenant) = &self.0 {
            tenant.enter(sequences, Instant::now())?;
        }
        Ok(Admission { tenant: self.0.clone(), sequences })
    }

    /// Counts a session.
    ///
    /// # Errors
    /// `ResourceExhausted` that names the quota.
    pub(crate) fn admit_session(&self) -> Result<SessionPlace> {
        if let Some(tenant) = &self.0 {
            tenant.open_session()?;
        }
        Ok(SessionPlace(self.0.clone()))
    }
}

impl Admission {
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
            tenant.leave(self.sequences);
        }
    }
}

impl Drop for SessionPlace {
    fn drop(&mut self) {
        if let Some(tenant) = &self.0 {
            tenant.close_session();
        }
    }
}
