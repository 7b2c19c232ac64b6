//! Parse, run, exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    candlewick::cli::run()
}
