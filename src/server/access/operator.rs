//! Who may do what concerns everybody: the one place that decides it, for every wire.

use axum::http::{Extensions, HeaderMap, header::ORIGIN};

use super::Caller;
use crate::{
    error::{Code, Error, Result},
    server::{host::Host, peer::Peer},
};

/// What a proxy adds to calls that it passes on: who calls it is not who calls.
const FORWARDED: [&str; 3] = ["forwarded", "x-real-ip", "via"];
/// Likewise, how the names of such headers begin.
const FORWARDED_PREFIXES: [&str; 2] = ["x-forwarded-", "x-envoy-"];

/// Refuses pages in browsers. A page may come from anywhere, also where it claims to be this server's.
///
/// # Errors
/// `PermissionDenied`.
pub(crate) fn check_program(headers: &HeaderMap) -> Result<()> {
    // Browsers send it with every call of a page that is not one for the page's own files.
    match headers.contains_key(ORIGIN) {
        true => Err(Error::new(Code::PermissionDenied, "this call is not for pages in browsers")),
        false => Ok(()),
    }
}

/// Lets through, where keys are asked for, who has an administrator's; where none are, who calls from this machine, as this
/// machine, and not through a proxy: one on this machine that hides what it does passes on what its own clients say of the
/// host, unless it is told to say its own. Never a page in a browser.
///
/// # Errors
/// `PermissionDenied`.
pub(crate) fn check_operator(headers: &HeaderMap, extensions: &Extensions) -> Result<()> {
    check_program(headers)?;
    check_reader(headers, extensions)
}

/// The same for what is only told, which a page may show: paths of files, and why something failed.
///
/// # Errors
/// `PermissionDenied`.
pub(crate) fn check_reader(headers: &HeaderMap, extensions: &Extensions) -> Result<()> {
    if let Some(caller) = extensions.get::<Caller>().filter(|caller| caller.has_key()) {
        return caller.check_admin();
    }
    let is_from_here = extensions.get::<Peer>().is_some_and(|peer| peer.is_local());
    let means_here = extensions.get() == Some(&Host::Local);
    if is_from_here && means_here && !is_forwarded(headers) {
        return Ok(());
    }
    let why =
        "this call concerns everybody: it is taken from the server's own machine only, which must call it localhost";
    Err(Error::new(Code::PermissionDenied, why))
}

fn is_forwarded(headers: &HeaderMap) -> bool {
    headers
        .keys()
        .map(|name| name.as_str())
        .any(|name| FORWARDED.contains(&name) || FORWARDED_PREFIXES.iter().any(|prefix| name.starts_with(prefix)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_programs_on_this_machine_that_call_it_so_are_operators() {
        let here = (Some("127.0.0.1"), Some(Host::Local));
        for ((address, host), header, allowed) in [
            (here, None, true),
            ((Some("::1"), Some(Host::Local)), None, true),
            (here, Some("user-agent"), true),
            ((Some("10.1.2.3"), Some(Host::Local)), None, false),
            ((Some("127.0.0.1"), Some(Host::Address)), None, false),
            ((Some("127.0.0.1"), Some(Host::Name)), None, false),
            ((Some("127.0.0.1"), None), None, false),
            ((None, Some(Host::Local)), None, false),
            (here, Some("forwarded"), false),
            (here, Some("via"), false),
            (here, Some("x-real-ip"), false),
            (here, Some("x-forwarded-for"), false),
            (here, Some("x-forwarded-proto"), false),
            (here, Some("x-envoy-expected-rq-timeout-ms"), false),
            (here, Some("origin"), false),
        ] {
            let mut extensions = Extensions::new();
            extensions.insert(Peer(address.map(|address| address.parse().unwrap())));
            if let Some(host) = host {
                extensions.insert(host);
            }
            let headers = header.map(|name| (name.parse().unwrap(), "http://localhost".parse().unwrap()));
            let checked = check_operator(&headers.into_iter().collect(), &extensions);
            assert_eq!(checked.is_ok(), allowed, "{address:?} {host:?} {header:?}");
            assert!(checked.err().is_none_or(|error| error.code == Code::PermissionDenied));
        }
        assert!(check_operator(&HeaderMap::new(), &Extensions::new()).is_err(), "who knows from where");
    }
}
