//! Who may do what concerns everybody: the one place that decides it, for every wire.

use axum::http::Extensions;
use tonic::metadata::MetadataMap;

use crate::{
    error::{Code, Error, Result},
    server::{access::Caller, peer::Peer},
};

/// What a proxy adds to calls that it passes on: who calls it is not who calls.
const FORWARDED: [&str; 4] = ["forwarded", "x-forwarded-for", "x-real-ip", "via"];
/// What browsers send with every call of a page. A page may come from anywhere, also where it claims to be this server's.
const PAGE: &str = "origin";

/// Lets through, where keys are asked for, who has an administrator's; where none are, who calls from this machine and not
/// through a proxy. Never a page in a browser.
///
/// # Errors
/// `PermissionDenied`.
pub(crate) fn check_operator(metadata: &MetadataMap, extensions: &Extensions) -> Result<()> {
    let keyed = extensions.get::<Caller>().filter(|caller| caller.has_key());
    if let (Some(caller), false) = (keyed, metadata.contains_key(PAGE)) {
        return caller.check_admin();
    }
    let is_local = keyed.is_none() && extensions.get::<Peer>().is_some_and(|peer| peer.is_local());
    let is_forwarded = FORWARDED.iter().any(|header| metadata.contains_key(*header));
    let why = match (metadata.contains_key(PAGE), is_local && !is_forwarded) {
        (false, true) => return Ok(()),
        (true, _) => "this call is not for pages in browsers",
        (false, false) => "this call concerns everybody: it is taken from the server's own machine only",
    };
    Err(Error::new(Code::PermissionDenied, why))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_programs_on_this_machine_are_operators() {
        let cases: [(Option<&str>, Option<&str>, bool); 6] = [
            (Some("127.0.0.1"), None, true),
            (Some("::1"), None, true),
            (Some("10.1.2.3"), None, false),
            (None, None, false),
            (Some("127.0.0.1"), Some("x-forwarded-for"), false),
            (Some("127.0.0.1"), Some("origin"), false),
        ];
        for (address, header, allowed) in cases {
            let (mut metadata, mut extensions) = (MetadataMap::new(), Extensions::new());
            extensions.insert(Peer(address.map(|address| address.parse().unwrap())));
            if let Some(header) = header {
                metadata.insert(header, "http://localhost".parse().unwrap());
            }
            let checked = check_operator(&metadata, &extensions);
            assert_eq!(checked.is_ok(), allowed, "{address:?} with {header:?}");
            assert!(checked.err().is_none_or(|error| error.code == Code::PermissionDenied));
        }
        assert!(check_operator(&MetadataMap::new(), &Extensions::new()).is_err(), "who knows from where");
    }
}
