//! `candlewick completions SHELL`: a script that completes our flags.

use std::io::Write;

use clap::Args;
use clap_complete::{Shell, generate};

use super::{Stop, command};

/// Which shell.
#[derive(Args, Debug)]
pub(super) struct CompletionsArgs {
    /// The shell that will read the script.
    shell: Shell,
}

pub(super) fn run(args: CompletionsArgs) -> Result<(), Stop> {
    // In memory first: the generator panics where it cannot write.
    let mut script = Vec::new();
    generate(args.shell, &mut command(), "candlewick", &mut script);
    Ok(std::io::stdout().write_all(&script)?)
}
