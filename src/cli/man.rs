//! `candlewick man DIR`: a manual page for the program and one for each command, made of what `--help` says.

use std::{fs, path::PathBuf};

use clap::Args;

use super::{Stop, command, say};
use crate::error::Error;

/// Where to.
#[derive(Args, Debug)]
pub(super) struct ManArgs {
    /// Folder to write the pages to; made where there is none.
    directory: PathBuf,
}

pub(super) fn run(args: &ManArgs) -> Result<(), Stop> {
    let fails = |error: std::io::Error| Error::invalid("DIRECTORY", format!("{}: {error}", args.directory.display()));
    fs::create_dir_all(&args.directory).map_err(fails)?;
    clap_mangen::generate_to(command(), &args.directory).map_err(fails)?;
    say(format_args!("The pages are in {}; candlewick.1 is the first.", args.directory.display()));
    Ok(())
}
