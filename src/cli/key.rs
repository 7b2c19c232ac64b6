//! `candlewick key new`: draws an API key, and writes down its hash as the file of keys has it.

use std::io::{self, Write};

use clap::{Args, Subcommand};
use serde_json::json;

use super::{Stop, say};
use crate::{config::key_hash, error::Error};

/// Bytes of a key: nobody tries them all.
const KEY_BYTES: usize = 32;

/// What to do with keys.
#[derive(Args, Clone, Debug)]
pub(super) struct KeyArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Clone, Debug, Subcommand)]
enum Action {
    /// Draw a key: it is said once, on standard error; standard output gets the lines for --api-keys-file.
    New {
        /// Who gets it.
        #[arg(long, value_name = "NAME")]
        tenant: String,
        /// Print both as JSON.
        #[arg(long)]
        json: bool,
    },
}

pub(super) fn run(args: &KeyArgs) -> Result<(), Stop> {
    let Action::New { tenant, json } = &args.action;
    let mut drawn = [0; KEY_BYTES];
    getrandom::fill(&mut drawn).map_err(|error| Error::internal(format!("the system gives no chance: {error}")))?;
    let key = format!("cw-{}", hex(&drawn));
    let hash = hex(&key_hash(&key));
    if *json {
        writeln!(io::stdout(), "{}", json!({"tenant": tenant, "key": key, "sha256": hash}))?;
        return Ok(());
    }
    writeln!(io::stdout(), "[tenant.{}]\nkeys = [\"{hash}\"]", toml_key(tenant))?;
    say(format_args!("The key of {tenant}, said this once and kept nowhere: {key}"));
    Ok(())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Dots would be tables within tables.
fn toml_key(name: &str) -> String {
    let is_bare = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
    if is_bare { name.to_owned() } else { format!("{:?}", name) }
}
