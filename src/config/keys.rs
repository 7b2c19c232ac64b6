//! The file of API keys: tenants, the SHA-256 of their keys, and their quotas. No key can be read from it.
//!
//! ```toml
//! [tenant.alice]
//! keys = ["<64 hexadecimal digits>"]   # several while keys are changed
//! requests-per-minute = 60
//! ```

use std::{collections::BTreeMap, fs::File, io::Read, path::Path, sync::Arc};

use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::limits::TenantLimits;
use crate::error::{Error, Result};

/// Bytes of the largest file.
const MAX_FILE_BYTES: u64 = 4 << 20;
/// Keys, of all tenants: every call is compared with each.
const MAX_KEYS: usize = 4096;
/// Characters of a tenant's name.
const MAX_NAME: usize = 64;

/// SHA-256 of a key.
pub type KeyHash = [u8; 32];

/// One tenant: its name, the hashes of its keys and its limits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TenantKeys {
    /// Names it in logs.
    pub name: Arc<str>,
    /// Any of them will do.
    pub keys: Vec<KeyHash>,
    /// What it may use.
    pub limits: TenantLimits,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct KeysFile {
    #[serde(default)]
    tenant: BTreeMap<String, toml::Table>,
}

/// SHA-256 of a key, as the file has it.
#[must_use]
pub fn key_hash(key: &str) -> KeyHash {
    Sha256::digest(key.as_bytes()).into()
}

/// Reads a file of keys.
///
/// # Errors
/// `FailedPrecondition` that names the file and the field that is wrong.
pub fn read_keys_file(path: &Path) -> Result<Vec<TenantKeys>> {
    let text = read_text(path, MAX_FILE_BYTES)?;
    parse(path, &text)
}

/// The text of a configuration file of bounded size.
///
/// # Errors
/// `FailedPrecondition` that names it.
pub(super) fn read_text(path: &Path, most_bytes: u64) -> Result<String> {
    let failed = |error: std::io::Error| Error::bad_file(path, "file", error);
    let mut text = String::new();
    File::open(path).map_err(failed)?.take(most_bytes + 1).read_to_string(&mut text).map_err(failed)?;
    if text.len() as u64 > most_bytes {
        return Err(Error::bad_file(path, "file", format!("is larger than {most_bytes} bytes")));
    }
    Ok(text)
}

fn parse(path: &Path, text: &str) -> Result<Vec<TenantKeys>> {
    let file: KeysFile = toml::from_str(text).map_err(|error| Error::bad_file(path, "file", one_line(&error)))?;
    let mut tenants = Vec::new();
    let mut seen: Vec<KeyHash> = Vec::new();
    for (name, mut table) in file.tenant {
        let at = |field: &str| format!("tenant.{name}.{field}");
        if name.is_empty() || name.len() > MAX_NAME || !name.bytes().all(is_of_a_name) {
            let why = format!("must have 1 to {MAX_NAME} letters, digits, dots, dashes and underscores");
            return Err(Error::bad_file(path, format!("tenant.{name:?}"), why));
        }
        let listed = table.remove("keys").unwrap_or_else(|| toml::Value::Array(Vec::new()));
        let listed: Vec<String> =
            listed.try_into().map_err(|_| Error::bad_file(path, at("keys"), "must be a list of hashes"))?;
        if listed.is_empty() {
            return Err(Error::bad_file(path, at("keys"), "must list the SHA-256 of a key, in hexadecimal digits"));
        }
        let mut keys = Vec::new();
        for (k, hex) in listed.iter().enumerate() {
            let field = at(&format!("keys[{k}]"));
            let Some(hash) = hash_of_hex(hex) else {
                let why = "must be the SHA-256 of a key, 64 hexadecimal digits: candlewick key new prints one";
                return Err(Error::bad_file(path, field, why));
            };
            if seen.contains(&hash) {
                return Err(Error::bad_file(path, field, "is listed twice: a key has one tenant"));
            }
            seen.push(hash);
            keys.push(hash);
        }
        let limits: TenantLimits = toml::Value::Table(table)
            .try_into()
            .map_err(|error: toml::de::Error| Error::bad_file(path, format!("tenant.{name}"), one_line(&error)))?;
        if let Some((field, why)) = limits.fault() {
            return Err(Error::bad_file(path, at(field), why));
        }
        tenants.push(TenantKeys { name: name.into(), keys, limits });
    }
    match seen.len() {
        0 => Err(Error::bad_file(path, "tenant", "is missing: nobody could call")),
        number if number > MAX_KEYS => {
            Err(Error::bad_file(path, "tenant", format!("have {number} keys, at most {MAX_KEYS} are allowed")))
        }
        _ => Ok(tenants),
    }
}

/// Colons are left to the tenants of the command line.
fn is_of_a_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-_.".contains(&byte)
}

fn hash_of_hex(hex: &str) -> Option<KeyHash> {
    let digits: Option<Vec<u8>> =
        hex.chars().map(|c| c.to_digit(16).and_then(|digit| u8::try_from(digit).ok())).collect();
    let bytes: Vec<u8> = digits?.chunks(2).map(|pair| pair.iter().fold(0, |byte, digit| byte << 4 | digit)).collect();
    (hex.len() == 64).then(|| bytes.try_into().ok()).flatten()
}

/// What the TOML reader says, with its line and column, and without the file's text: that may hold what is secret.
pub(super) fn one_line(error: &toml::de::Error) -> String {
    error.message().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<TenantKeys>> {
        parse(Path::new("keys.toml"), text)
    }

    fn hex(key: &str) -> String {
        key_hash(key).iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn tenants_have_keys_and_limits() {
        let text = format!(
            "[tenant.alice]\nkeys = [{:?}, {:?}]\ntokens-per-minute = 1000\nweight = 3\n[tenant.bob]\nkeys = [{:?}]\nadmin = true\n",
            hex("one"),
            hex("two").to_uppercase(),
            hex("three"),
        );
        let tenants = read(&text).unwrap();
        let limits = TenantLimits { tokens_per_minute: Some(1000), weight: 3, ..TenantLimits::default() };
        assert_eq!((&*tenants[0].name, tenants[0].limits), ("alice", limits));
        assert_eq!(tenants[0].keys, [key_hash("one"), key_hash("two")]);
        assert!(tenants[1].limits.admin);
    }

    #[test]
    fn a_wrong_file_is_refused_by_the_field_and_shows_no_key() {
        let good = hex("k");
        let cases = [
            (String::new(), "tenant: is missing"),
            ("tenant = 7".into(), "file: "),
            ("[tenant.a]".into(), "tenant.a.keys: must list"),
            ("[tenant.a]\nkeys = 'plain-secret'".into(), "tenant.a.keys: must be a list"),
            ("[tenant.a]\nkeys = ['plain-secret']".into(), "tenant.a.keys[0]: must be the SHA-256"),
            (format!("[tenant.a]\nkeys = ['{good}f']"), "tenant.a.keys[0]"),
            (format!("[tenant.a]\nkeys = ['{good}', '{good}']"), "tenant.a.keys[1]: is listed twice"),
            (format!("[tenant.a]\nkeys = ['{good}']\n[tenant.b]\nkeys = ['{good}']"), "tenant.b.keys[0]"),
            (format!("[tenant.'a b']\nkeys = ['{good}']"), "letters, digits"),
            (format!("[tenant.'key:00']\nkeys = ['{good}']"), "letters, digits"),
            (format!("[tenant.a]\nkeys = ['{good}']\nweight = 0"), "tenant.a.weight: must be at least 1"),
            (format!("[tenant.a]\nkeys = ['{good}']\ntokens-per-minute = -5"), "tenant.a"),
            (format!("[tenant.a]\nkeys = ['{good}']\ntoken-per-minute = 5"), "unknown field `token-per-minute`"),
            ("keys = ['plain-secret']".into(), "unknown field `keys`"),
            ("plain-secret".into(), "file: "),
        ];
        for (text, says) in cases {
            let error = read(&text).unwrap_err();
            assert!(error.message.starts_with("keys.toml: ") && error.message.contains(says), "{text}: {error}");
            assert!(!error.message.contains("plain-secret"), "{error}");
        }
    }

    #[test]
    fn a_file_that_is_not_there_or_too_large_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("keys.toml");
        assert!(read_keys_file(&path).unwrap_err().message.contains("keys.toml"));
        std::fs::write(&path, "#".repeat(MAX_FILE_BYTES as usize + 1)).unwrap();
        assert!(read_keys_file(&path).unwrap_err().message.contains("larger than"));
    }
}
