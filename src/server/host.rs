//! By which name a call addresses the server. A page that a browser got from elsewhere may call a server on the same machine
//! under the page's own name, once that name leads here (DNS rebinding); an address, or `localhost`, is nobody else's.

use std::net::IpAddr;

use axum::http::{HeaderMap, Uri, header::HOST, uri::Authority};

/// See the [module](self). What comes later is trusted less.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Host {
    /// `localhost`, or an address that is this machine's on each.
    Local,
    /// Another address.
    Address,
    /// A name, or nothing that could be read.
    Name,
}

impl Host {
    /// As a request says, in its address (HTTP/2) or in its header; where both are there, what is trusted less counts.
    pub(crate) fn of(headers: &HeaderMap, uri: &Uri) -> Self {
        let header = headers.get_all(HOST).iter().map(|value| {
            let authority = value.to_str().ok().and_then(|text| text.parse::<Authority>().ok());
            authority.map_or(Self::Name, |authority| Self::named(authority.host()))
        });
        let address = uri.authority().map(|authority| Self::named(authority.host()));
        header.chain(address).max().unwrap_or(Self::Name)
    }

    fn named(host: &str) -> Self {
        if host.eq_ignore_ascii_case("localhost") {
            return Self::Local;
        }
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        match host.parse::<IpAddr>() {
            Ok(address) if address.to_canonical().is_loopback() => Self::Local,
            Ok(_) => Self::Address,
            Err(_) => Self::Name,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_addressed_by_a_name_or_by_what_is_nobody_elses() {
        let of = |host: Option<&str>, uri: &str| {
            let headers = host.map(|host| (HOST, host.parse().unwrap())).into_iter().collect();
            Host::of(&headers, &uri.parse().unwrap())
        };
        for (host, kind) in [
            ("localhost", Host::Local),
            ("LocalHost:50051", Host::Local),
            ("127.0.0.1:50051", Host::Local),
            ("127.9.9.9", Host::Local),
            ("[::1]:50051", Host::Local),
            ("[::ffff:127.0.0.1]", Host::Local),
            ("10.0.0.1:50051", Host::Address),
            ("[2001:db8::1]", Host::Address),
            ("model.example:50051", Host::Name),
            ("localhost.evil.example", Host::Name),
            ("127.0.0.1.evil.example", Host::Name),
            ("0x7f000001", Host::Name),
            ("", Host::Name),
        ] {
            assert_eq!(of(Some(host), "/x"), kind, "{host}");
            if !host.is_empty() {
                assert_eq!(of(None, &format!("http://{host}/x")), kind, "HTTP/2: {host}");
            }
        }
        assert_eq!(of(None, "/x"), Host::Name, "who knows");
        assert_eq!(of(Some("localhost"), "http://evil.example/x"), Host::Name);
        assert_eq!(of(Some("evil.example"), "http://localhost/x"), Host::Name);
    }
}
