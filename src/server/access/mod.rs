//! The guard before every face: which tenant a call's key belongs to, and what may be had without one.
//!
//! Keys come as `authorization: Bearer KEY` or, as Anthropic's clients send them, as `x-api-key: KEY`. The server knows
//! their SHA-256 alone. What was shown is compared with all of them, each in constant time, so that the time tells nothing
//! of how near a guess came or whose key it is.

mod caller;
mod operator;
mod tenant;

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock},
};

use axum::{
    extract::{Request, State},
    http::{
        HeaderMap, HeaderValue,
        header::{AUTHORIZATION, ORIGIN},
    },
    middleware::Next,
    response::Response,
};
use subtle::{Choice, ConditionallySelectable, ConstantTimeEq};
use tokio::{sync::watch, time::Instant};

use self::tenant::Tenant;
pub(crate) use self::{
    caller::{Admission, Caller, Owner, SessionPlace},
    operator::{check_operator, check_program, check_reader},
};
use super::{host::Host, peer::Peer, refusal};
use crate::{
    config::{AllowedOrigins, KeyHash, TenantKeys, key_hash},
    error::{Code, Error, Result},
};

/// What needs no key, beside the pages that are merged outside the guard: how the server is, for those that balance load.
/// What ends with a slash stands for all that begins with it.
const OPEN: [&str; 6] = [
    "/grpc.health.v1.Health/",
    "/vllm.grpc.engine.VllmEngine/HealthCheck",
    "/inference.GRPCInferenceService/ServerLive",
    "/inference.GRPCInferenceService/ServerReady",
    "/ping",
    "/version",
];
/// Keys that one call may show.
const SHOWN: usize = 2;

/// Who may call, as it stands. Cheap to clone; all clones change together.
#[derive(Clone, Debug, Default)]
pub struct Access {
    keys: Arc<RwLock<Option<Keys>>>,
    /// Goes up with every change.
    changes: Arc<watch::Sender<u64>>,
}

/// All keys.
#[derive(Debug, Default)]
struct Keys {
    hashes: Vec<(KeyHash, u32)>,
    tenants: Vec<Arc<Tenant>>,
}

/// What another set of keys has changed, by the tenants' names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AccessChanges {
    /// May call from now on.
    pub added: Vec<Arc<str>>,
    /// May not any more.
    pub removed: Vec<Arc<str>>,
    /// Have other keys or limits.
    pub changed: Vec<Arc<str>>,
}

impl Access {
    /// For these tenants; for everybody where there are none to tell apart.
    #[must_use]
    pub fn of(tenants: Option<Vec<TenantKeys>>) -> Self {
        let access = Self::default();
        if let Some(tenants) = tenants {
            access.replace(tenants);
        }
        access
    }

    /// Whether keys are asked for.
    #[must_use]
    pub fn asks(&self) -> bool {
        self.keys.read().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// The shares of the tenants, by their names.
    #[must_use]
    pub fn weights(&self) -> Vec<(Arc<str>, u32)> {
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        let tenants = keys.iter().flat_map(|keys| &keys.tenants);
        tenants.map(|tenant| (tenant.name.clone(), tenant.limits().weight)).collect()
    }

    /// Other keys from now on. Tenants that stay keep what they have and have used; what others have under way goes on,
    /// and they begin nothing new.
    pub fn replace(&self, listed: Vec<TenantKeys>) -> AccessChanges {
        let now = Instant::now();
        let mut changes = AccessChanges::default();
        let mut current = self.keys.write().unwrap_or_else(PoisonError::into_inner);
        let old = current.take().unwrap_or_default();
        let old_keys = old.keys();
        let mut known: HashMap<Arc<str>, Arc<Tenant>> =
            old.tenants.into_iter().map(|tenant| (tenant.name.clone(), tenant)).collect();
        let mut keys = Keys::default();
        for (index, TenantKeys { name, keys: hashes, limits }) in (0..).zip(listed) {
            let tenant = match known.remove(&name) {
                Some(tenant) => {
                    let same_keys = old_keys.get(&name).is_some_and(|old| *old == hashes);
                    if tenant.limits() != limits || !same_keys {
                        changes.changed.push(name);
                    }
                    tenant.limit(limits, now);
                    tenant
                }
                None => {
                    changes.added.push(name.clone());
                    Tenant::new(name, limits, now)
                }
            };
            keys.hashes.extend(hashes.into_iter().map(|hash| (hash, index)));
            keys.tenants.push(tenant);
        }
        for (name, tenant) in known {
            tenant.go();
            changes.removed.push(name);
        }
        changes.removed.sort();
        *current = Some(keys);
        drop(current);
        self.changes.send_modify(|count| *count += 1);
        changes
    }

    /// Whether who calls with these headers may know what concerns everybody.
    pub(super) fn may_administer(&self, headers: &HeaderMap) -> bool {
        self.caller(headers).is_ok_and(|caller| caller.check_admin().is_ok())
    }

    /// Goes up whenever there are other keys.
    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Who calls with these headers.
    ///
    /// # Errors
    /// `Unauthenticated`.
    fn caller(&self, headers: &HeaderMap) -> Result<Caller> {
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        let Some(keys) = keys.as_ref() else { return Ok(Caller::anybody()) };
        let shown: Vec<KeyHash> = shown(headers).take(SHOWN).map(key_hash).collect();
        if shown.is_empty() {
            let why = "this server asks for a key: send the header authorization: Bearer KEY";
            return Err(Error::new(Code::Unauthenticated, why));
        }
        let tenant = shown.iter().find_map(|hash| keys.find(hash));
        let wrong = || Error::new(Code::Unauthenticated, "the key is not one of this server's");
        tenant.map(Caller::tenant).ok_or_else(wrong)
    }
}

impl Keys {
    /// Looks at every key, found or not.
    fn find(&self, shown: &KeyHash) -> Option<Arc<Tenant>> {
        let (mut found, mut at) = (Choice::from(0), 0);
        for (hash, index) in &self.hashes {
            let same = hash.ct_eq(shown);
            at.conditional_assign(index, same);
            found |= same;
        }
        bool::from(found).then(|| self.tenants.get(at as usize).cloned()).flatten()
    }

    fn keys(&self) -> HashMap<Arc<str>, Vec<KeyHash>> {
        let mut keys: HashMap<Arc<str>, Vec<KeyHash>> = HashMap::new();
        for (hash, index) in &self.hashes {
            if let Some(tenant) = self.tenants.get(*index as usize) {
                keys.entry(tenant.name.clone()).or_default().push(*hash);
            }
        }
        keys
    }
}

/// The keys that a call shows.
fn shown(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let bearer = headers.get(AUTHORIZATION).and_then(bearer);
    let plain = headers.get("x-api-key").and_then(|value| value.to_str().ok());
    bearer.into_iter().chain(plain).map(str::trim).filter(|key| !key.is_empty())
}

fn bearer(value: &HeaderValue) -> Option<&str> {
    let (scheme, key) = value.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(key)
}

/// Whether a call of this path needs no key.
pub(crate) fn is_open(path: &str) -> bool {
    OPEN.iter().any(|open| path == *open || open.ends_with('/') && path.starts_with(open))
}

/// What the guard knows.
#[derive(Clone, Debug)]
pub(super) struct Guard {
    pub(super) access: Access,
    /// Sites whose pages may call.
    pub(super) origins: AllowedOrigins,
}

impl Guard {
    /// Who makes a call.
    ///
    /// # Errors
    /// `Unauthenticated`; `PermissionDenied` for a page that calls a server without keys by a name that may be the page's own.
    fn caller(&self, request: &Request) -> Result<Caller> {
        if is_open(request.uri().path()) {
            // Nothing is done for anybody there.
            return Ok(Caller::anybody());
        }
        let caller = self.access.caller(request.headers())?;
        if !caller.has_key() {
            self.check_host(request.headers(), request.extensions().get())?;
        }
        Ok(caller.at(request.extensions().get().copied().unwrap_or(Peer(None))))
    }

    /// Browsers let a page call its own server without asking that server first, and know it by its name alone. A name can
    /// be made to lead here; a key cannot be had that way.
    fn check_host(&self, headers: &HeaderMap, host: Option<&Host>) -> Result<()> {
        let (AllowedOrigins::List(listed), Some(origin)) = (&self.origins, headers.get(ORIGIN)) else { return Ok(()) };
        let is_listed = listed.iter().any(|listed| listed.as_bytes() == origin.as_bytes());
        if is_listed || host.is_some_and(|host| *host != Host::Name) {
            return Ok(());
        }
        let why = "without keys, pages may call this server as localhost or by its address: start it with \
                   --allowed-origins and list this page's origin";
        Err(Error::new(Code::PermissionDenied, why))
    }
}

/// Lets a call through with its [`Caller`] among its extensions, or refuses it in the shape of the face that it is for.
pub(super) async fn guard(State(guard): State<Guard>, mut request: Request, next: Next) -> Response {
    match guard.caller(&request) {
        Ok(caller) => {
            request.extensions_mut().insert(caller);
            next.run(request).await
        }
        Err(error) => refusal::refuse(&request, error),
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;
    use crate::{
        config::TenantLimits,
        engine::{Prompt, Request as EngineRequest},
    };

    fn of(tenants: &[(&str, &[&str])]) -> Vec<TenantKeys> {
        let tenant = |(name, keys): &(&str, &[&str])| TenantKeys {
            name: (*name).into(),
            keys: keys.iter().map(|key| key_hash(key)).collect(),
            limits: TenantLimits::default(),
        };
        tenants.iter().map(tenant).collect()
    }

    fn caller(access: &Access, headers: &[(&'static str, &str)]) -> Result<Owner> {
        let headers = headers.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect();
        access.caller(&headers).map(|caller| caller.owner())
    }

    #[test]
    fn a_key_is_taken_from_either_header_and_belongs_to_its_tenant() {
        let access = Access::of(Some(of(&[("a", &["one", "two"]), ("b", &["three"])])));
        type Headers<'a> = &'a [(&'static str, &'a str)];
        let cases: [(Headers<'_>, Option<&str>); 11] = [
            (&[("authorization", "Bearer one")], Some("a")),
            (&[("authorization", "bearer  two ")], Some("a")),
            (&[("x-api-key", "three")], Some("b")),
            (&[("authorization", "Bearer wrong"), ("x-api-key", "three")], Some("b")),
            (&[], None),
            (&[("authorization", "three")], None),
            (&[("authorization", "Basic three")], None),
            (&[("authorization", "Bearer ")], None),
            (&[("x-api-key", "")], None),
            (&[("x-api-key", "thre")], None),
            (&[("x-api-key", "threee")], None),
        ];
        for (headers, owner) in cases {
            let found = caller(&access, headers);
            assert_eq!(found.as_ref().ok().map(|owner| owner.as_deref()), owner.map(Some), "{headers:?}");
            assert!(owner.is_some() || found.unwrap_err().code == Code::Unauthenticated);
        }
        assert_eq!(caller(&Access::default(), &[]).unwrap(), None, "no keys, no question");
    }

    #[test]
    fn other_keys_hold_at_once_and_say_what_they_changed() {
        let access = Access::of(Some(of(&[("a", &["one"]), ("b", &["two"]), ("c", &["three"])])));
        let names = |names: &[&str]| names.iter().map(|name| Arc::from(*name)).collect::<Vec<_>>();
        let changes = access.replace(of(&[("a", &["one"]), ("c", &["four"]), ("d", &["five"])]));
        let expected = AccessChanges { added: names(&["d"]), removed: names(&["b"]), changed: names(&["c"]) };
        assert_eq!(changes, expected);
        let of_key = |key: &str| caller(&access, &[("x-api-key", key)]).ok().flatten();
        assert_eq!(of_key("one").as_deref(), Some("a"));
        assert_eq!(of_key("four").as_deref(), Some("c"));
        assert_eq!(of_key("five").as_deref(), Some("d"));
        assert!(of_key("two").is_none() && of_key("three").is_none());
    }

    #[test]
    fn a_page_calls_a_server_without_keys_by_what_is_nobody_elses_name() {
        let listed = AllowedOrigins::List(vec!["https://chat.example.org".into()]);
        let guard = |origins| Guard { access: Access::default(), origins };
        let may = |origins: &AllowedOrigins, origin: Option<&str>, host: Option<Host>| {
            let headers = origin.map(|origin| (ORIGIN, origin.parse().unwrap())).into_iter().collect();
            guard(origins.clone()).check_host(&headers, host.as_ref()).is_ok()
        };
        let rebound = Some("http://evil.example:50051");
        for (origin, host, allowed) in [
            (None, Some(Host::Name), true),
            (rebound, Some(Host::Name), false),
            (rebound, None, false),
            (Some("null"), Some(Host::Name), false),
            (Some("http://127.0.0.1:50051"), Some(Host::Local), true),
            (Some("http://10.0.0.1:50051"), Some(Host::Address), true),
            (Some("https://chat.example.org"), Some(Host::Name), true),
            (Some("http://chat.example.org"), Some(Host::Name), false),
        ] {
            assert_eq!(may(&listed, origin, host), allowed, "{origin:?} {host:?}");
            assert!(may(&AllowedOrigins::Any, origin, host), "{origin:?} {host:?}");
        }
    }

    #[test]
    fn who_has_no_name_takes_places_of_its_networks_share_and_who_has_one_of_its_own() {
        let keys = Access::of(Some(of(&[("a", &["one"])])));
        let asked = |access: &Access, path: &str| {
            let guard = Guard { access: access.clone(), origins: AllowedOrigins::default() };
            let mut request = axum::http::Request::get(path).header("x-api-key", "one").body(Body::empty()).unwrap();
            request.extensions_mut().insert(Peer(Some([192, 0, 2, 7].into())));
            let own = guard.caller(&request).unwrap().own(EngineRequest::new(Prompt::Tokens(Vec::new())));
            (own.tenant, own.network)
        };
        assert_eq!(asked(&Access::default(), "/v1/models"), (None, Some([192, 0, 2, 7].into())));
        assert_eq!(asked(&keys, "/v1/models"), (Some("a".into()), None));
    }

    #[test]
    fn only_what_says_how_the_server_is_can_be_had_without_a_key() {
        for path in ["/grpc.health.v1.Health/Watch", "/ping", "/inference.GRPCInferenceService/ServerReady"] {
            assert!(is_open(path), "{path}");
        }
        for path in [
            "/candlewick.v1.Generation/Generate",
            "/grpc.health.v1.Health",
            "/grpc.health.v1.HealthX/Check",
            "/vllm.grpc.engine.VllmEngine/HealthCheckX",
            "/ping/",
            "/v1/models",
            "//ping",
        ] {
            assert!(!is_open(path), "{path}");
        }
    }
}
