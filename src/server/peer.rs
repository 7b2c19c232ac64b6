//! Whom a call comes from, and whom it takes this server for, for those who ask.

use std::{
    net::{IpAddr, Ipv6Addr},
    task::{Context, Poll},
};

use axum::{Router, http::Request};
use tower_service::Service;

use super::host::Host;

/// The address at the other end of a call's connection, where it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Peer(pub(crate) Option<IpAddr>);

impl Peer {
    /// Whether that is this machine.
    pub(crate) fn is_local(self) -> bool {
        self.0.is_some_and(|address| address.to_canonical().is_loopback())
    }

    /// The network that somebody without a name is known by: an IPv4 address, or the 64 first bits of an IPv6 one, which is
    /// what one customer has. None for this machine, from where a proxy may call for everybody.
    pub(crate) fn network(self) -> Option<IpAddr> {
        match self.0?.to_canonical() {
            address if address.is_loopback() => None,
            IpAddr::V6(address) => Some(Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into()),
            address => Some(address),
        }
    }
}

/// The routes, as one connection calls them: each of its requests carries its [`Peer`] and its [`Host`].
#[derive(Clone)]
pub(super) struct FromPeer {
    router: Router,
    peer: Peer,
}

impl FromPeer {
    pub(super) fn new(router: Router, peer: Peer) -> Self {
        Self { router, peer }
    }
}

impl<B> Service<Request<B>> for FromPeer
where
    Router: Service<Request<B>>,
{
    type Response = <Router as Service<Request<B>>>::Response;
    type Error = <Router as Service<Request<B>>>::Error;
    type Future = <Router as Service<Request<B>>>::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Service::<Request<B>>::poll_ready(&mut self.router, cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let host = Host::of(request.headers(), request.uri());
        request.extensions_mut().insert(self.peer);
        request.extensions_mut().insert(host);
        self.router.call(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_is_known_by_any_of_its_loopback_addresses() {
        for (address, is_local) in [
            ("127.0.0.1", true),
            ("127.9.9.9", true),
            ("::1", true),
            ("::ffff:127.0.0.1", true),
            ("10.0.0.1", false),
            ("::ffff:10.0.0.1", false),
            ("0.0.0.0", false),
        ] {
            assert_eq!(Peer(Some(address.parse().unwrap())).is_local(), is_local, "{address}");
        }
        assert!(!Peer(None).is_local());
    }

    #[test]
    fn a_network_is_what_one_customer_has() {
        for (address, network) in [
            ("127.0.0.1", None),
            ("::1", None),
            ("::ffff:127.0.0.1", None),
            ("192.0.2.7", Some("192.0.2.7")),
            ("::ffff:192.0.2.7", Some("192.0.2.7")),
            ("2001:db8:1:2:3:4:5:6", Some("2001:db8:1:2::")),
            ("2001:db8:1:3::", Some("2001:db8:1:3::")),
        ] {
            let network = network.map(|network| network.parse().unwrap());
            assert_eq!(Peer(Some(address.parse().unwrap())).network(), network, "{address}");
        }
        assert_eq!(Peer(None).network(), None);
    }
}
