//! Who may call the server: keys of the command line and of a file, and what it takes to do without.

use std::{fmt, net::SocketAddr, path::PathBuf, str::FromStr, sync::Arc};

use clap::Args;

use super::{
    keys::{TenantKeys, key_hash, read_keys_file},
    limits::TenantLimits,
};
use crate::error::{Code, Error, Result};

/// Most bytes of a key: it travels in a header.
const MAX_KEY_BYTES: usize = 1024;

/// Who may call.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Access")]
pub struct AccessArgs {
    /// Key that callers must show (authorization: Bearer KEY); may be given several times. Its holder may do everything.
    #[arg(long, value_name = "KEY")]
    pub api_key: Vec<Secret>,
    /// Hashes of keys, with the tenants that hold them and their quotas: a TOML file, read again on SIGHUP.
    #[arg(long, value_name = "FILE")]
    pub api_keys_file: Option<PathBuf>,
    /// Listen beyond this machine without keys and without TLS: whoever reaches the port may use it.
    #[arg(long)]
    pub insecure: bool,
}

/// A word that is neither printed nor logged.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// The word itself.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

impl FromStr for Secret {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.is_empty() || text.len() > MAX_KEY_BYTES || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(format!("must have 1 to {MAX_KEY_BYTES} visible ASCII characters, and no spaces"));
        }
        Ok(Self(text.to_owned()))
    }
}

impl AccessArgs {
    /// The tenants and the hashes of their keys; none where everybody may call. A key of the command line is a tenant of
    /// its own, without limits and allowed to administer.
    ///
    /// # Errors
    /// Those of the file.
    pub fn tenants(&self) -> Result<Option<Vec<TenantKeys>>> {
        let mut tenants: Vec<TenantKeys> = Vec::new();
        for key in &self.api_key {
            let hash = key_hash(key.reveal());
            // Named by its hash, so that it is the same tenant wherever it stands among the others.
            let name: Arc<str> =
                format!("key:{}", hash[..6].iter().map(|byte| format!("{byte:02x}")).collect::<String>()).into();
            if tenants.iter().all(|known| known.name != name) {
                let limits = TenantLimits { admin: true, ..TenantLimits::default() };
                tenants.push(TenantKeys { name, keys: vec![hash], limits });
            }
        }
        let Some(file) = &self.api_keys_file else { return Ok((!tenants.is_empty()).then_some(tenants)) };
        let listed = read_keys_file(file)?;
        let given: Vec<_> = tenants.iter().flat_map(|tenant| &tenant.keys).copied().collect();
        if let Some(tenant) = listed.iter().find(|tenant| tenant.keys.iter().any(|key| given.contains(key))) {
            let field = format!("tenant.{}.keys", tenant.name);
            return Err(Error::bad_file(file, field, "has a key that --api-key gives as well: remove one of them"));
        }
        tenants.extend(listed);
        Ok(Some(tenants))
    }

    /// Whether the server may listen there.
    ///
    /// # Errors
    /// `FailedPrecondition` where others than this machine could reach a server that asks for nothing.
    pub fn check_listen(&self, address: SocketAddr, has_tls: bool) -> Result<()> {
        let asks = !self.api_key.is_empty() || self.api_keys_file.is_some() || has_tls;
        if address.ip().to_canonical().is_loopback() || asks || self.insecure {
            return Ok(());
        }
        let why = format!(
            "--listen {address}: others than this machine could use the server. Ask them for a key (--api-key, \
             --api-keys-file) or for TLS (--ssl-certfile, --ssl-keyfile), listen on 127.0.0.1, or say --insecure where \
             something else keeps them out"
        );
        Err(Error::new(Code::FailedPrecondition, why))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(keys: &[&str]) -> AccessArgs {
        AccessArgs { api_key: keys.iter().map(|key| key.parse().unwrap()).collect(), ..AccessArgs::default() }
    }

    #[test]
    fn a_key_of_the_command_line_is_one_tenant_wherever_it_stands() {
        assert!(given(&[]).tenants().unwrap().is_none());
        let one = given(&["a", "b", "a"]).tenants().unwrap().unwrap();
        let other = given(&["b", "a"]).tenants().unwrap().unwrap();
        assert_eq!((one.len(), other.len()), (2, 2));
        assert_eq!((&one[0].name, &one[0].keys), (&other[1].name, &other[1].keys));
        assert!(one[0].limits.admin && one[0].limits.max_streams.is_none());
    }

    #[test]
    fn a_key_is_no_part_of_what_is_printed() {
        let args = given(&["correct-horse"]);
        assert!(!format!("{args:?}").contains("horse"));
        for text in ["", "with space", "ümlaut", &"x".repeat(1025)] {
            assert!(text.parse::<Secret>().is_err(), "{text}");
        }
    }

    #[test]
    fn others_are_let_in_only_where_something_is_asked_of_them_or_it_was_said_so() {
        let address = |text: &str| text.parse().unwrap();
        let open = AccessArgs::default();
        for loopback in ["127.0.0.1:1", "127.8.8.8:1", "[::1]:1", "[::ffff:127.0.0.1]:1"] {
            assert!(open.check_listen(address(loopback), false).is_ok(), "{loopback}");
        }
        for public in ["0.0.0.0:1", "[::]:1", "192.168.1.7:1", "[::ffff:10.0.0.1]:1"] {
            let error = open.check_listen(address(public), false).unwrap_err();
            assert!(error.message.contains("--insecure") && error.message.contains("--api-key"), "{error}");
            assert!(open.check_listen(address(public), true).is_ok());
            assert!(given(&["k"]).check_listen(address(public), false).is_ok());
            let said = AccessArgs { insecure: true, ..AccessArgs::default() };
            assert!(said.check_listen(address(public), false).is_ok());
        }
    }
}
