//! Variables that look like settings and are none: a misspelt one would change nothing, without a word.

use std::ffi::OsString;

use clap::Command;

use super::suggest::nearest;

/// What all our variables begin with.
pub const PREFIX: &str = "CANDLEWICK_";
/// What begins the same and is somebody else's: Kubernetes tells every program of a service called candlewick so, and our own
/// tests take some.
const OTHERS: [&str; 6] = ["PORT", "SERVICE_", "SHARED", "TEST_", "RANDOM_SCHEMAS", "BINARY"];

/// The variables among these that no argument of the command or its subcommands takes, each with the one that was probably
/// meant.
#[must_use]
pub fn unknown_variables(command: &Command, set: impl IntoIterator<Item = OsString>) -> Vec<(String, Option<String>)> {
    let mut known = Vec::new();
    add_names(command, &mut known);
    let unknown = |name: OsString| {
        let name = name.into_string().ok()?;
        let rest = name.strip_prefix(PREFIX)?;
        if known.iter().any(|known| known == rest) || OTHERS.iter().any(|other| rest.starts_with(other)) {
            return None;
        }
        let meant = nearest(rest, known.iter().map(String::as_str)).map(|meant| format!("{PREFIX}{meant}"));
        Some((name, meant))
    };
    set.into_iter().filter_map(unknown).collect()
}

/// The variables of a command and its subcommands, without what they begin with.
fn add_names(command: &Command, names: &mut Vec<String>) {
    let own = command.get_arguments().filter_map(|arg| arg.get_env()?.to_str()?.strip_prefix(PREFIX));
    names.extend(own.map(str::to_owned));
    command.get_subcommands().for_each(|subcommand| add_names(subcommand, names));
}

#[cfg(test)]
mod tests {
    use clap::Arg;

    use super::*;
    use crate::config::with_environment;

    #[test]
    fn a_misspelt_variable_is_found_with_the_one_that_was_meant() {
        let flag = |name: &'static str| Arg::new(name).long(name);
        let serve = Command::new("serve").arg(flag("max_num_seqs")).arg(flag("listen"));
        let command = with_environment(Command::new("candlewick").arg(flag("log")).subcommand(serve));
        let unknown = |name: &str| unknown_variables(&command, [OsString::from(name)]);
        let found = |name: &str, meant: Option<&str>| vec![(name.to_owned(), meant.map(str::to_owned))];
        let meant = Some("CANDLEWICK_MAX_NUM_SEQS");
        assert_eq!(unknown("CANDLEWICK_MAX_NUM_SEQZ"), found("CANDLEWICK_MAX_NUM_SEQZ", meant));
        assert_eq!(unknown("CANDLEWICK_XYZZY"), found("CANDLEWICK_XYZZY", None));
        for known in ["CANDLEWICK_MAX_NUM_SEQS", "CANDLEWICK_LOG", "CANDLEWICK_PORT_50051_TCP", "PATH"] {
            assert_eq!(unknown(known), [], "{known}");
        }
    }
}
