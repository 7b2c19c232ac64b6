//! Encryption: which certificate the server shows, and which it asks of clients. Flags are vLLM's.

use std::path::PathBuf;

use clap::Args;

use super::values::count;
use crate::error::{Error, Result};

/// Encryption.
#[derive(Args, Clone, Debug, Default, PartialEq, Eq)]
#[command(next_help_heading = "Access")]
pub struct TlsArgs {
    /// Certificate to show, with those that lead to its authority: a PEM file. It is taken up when it changes.
    #[arg(long, value_name = "FILE")]
    pub ssl_certfile: Option<PathBuf>,
    /// Its private key: a PEM file.
    #[arg(long, value_name = "FILE")]
    pub ssl_keyfile: Option<PathBuf>,
    /// Authorities that sign the certificates of clients: a PEM file.
    #[arg(long, value_name = "FILE")]
    pub ssl_ca_certs: Option<PathBuf>,
    /// Whether clients show a certificate: 0 not asked for, 1 checked where there is one, 2 required.
    #[arg(long, value_name = "N", default_value = "0", value_parser = count(0, 2))]
    pub ssl_cert_reqs: usize,
}

/// What is asked of clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientCertificates {
    /// Nothing.
    None,
    /// One that is shown must be right.
    Optional,
    /// One must be shown.
    Required,
}

impl TlsArgs {
    /// Whether connections are encrypted.
    ///
    /// # Errors
    /// `InvalidArgument` where a part is missing.
    pub fn is_on(&self) -> Result<bool> {
        let (is_on, asks) = (self.ssl_certfile.is_some(), self.clients() != ClientCertificates::None);
        let missing = [
            ("--ssl-keyfile", is_on && self.ssl_keyfile.is_none(), "is needed with --ssl-certfile"),
            ("--ssl-certfile", !is_on && self.ssl_keyfile.is_some(), "is needed with --ssl-keyfile"),
            ("--ssl-certfile", !is_on && (asks || self.ssl_ca_certs.is_some()), "is needed to ask clients for theirs"),
            ("--ssl-ca-certs", asks && self.ssl_ca_certs.is_none(), "is needed with --ssl-cert-reqs"),
        ];
        match missing.into_iter().find(|(_, wrong, _)| *wrong) {
            Some((flag, _, why)) => Err(Error::invalid(flag, why)),
            None => Ok(is_on),
        }
    }

    /// What is asked of clients, by the number that Python's `ssl` has for it.
    #[must_use]
    pub fn clients(&self) -> ClientCertificates {
        match self.ssl_cert_reqs {
            0 => ClientCertificates::None,
            1 => ClientCertificates::Optional,
            _ => ClientCertificates::Required,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_that_is_missing_is_named() {
        let args = |cert: bool, key: bool, ca: bool, reqs: usize| TlsArgs {
            ssl_certfile: cert.then(PathBuf::new),
            ssl_keyfile: key.then(PathBuf::new),
            ssl_ca_certs: ca.then(PathBuf::new),
            ssl_cert_reqs: reqs,
        };
        assert!(!args(false, false, false, 0).is_on().unwrap());
        assert!(args(true, true, false, 0).is_on().unwrap() && args(true, true, true, 2).is_on().unwrap());
        for (wrong, flag) in [
            (args(true, false, false, 0), "--ssl-keyfile"),
            (args(false, true, false, 0), "--ssl-certfile"),
            (args(false, false, true, 0), "--ssl-certfile"),
            (args(false, false, false, 2), "--ssl-certfile"),
            (args(true, true, false, 1), "--ssl-ca-certs"),
        ] {
            assert_eq!(wrong.is_on().unwrap_err().violations[0].field, flag, "{wrong:?}");
        }
    }
}
