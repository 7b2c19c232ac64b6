//! `candlewick pull MODEL`: downloads a model of the hub into the cache that `serve`, `generate` and others look in.

use std::io::{self, Write};

use clap::Args;
use serde_json::json;

use super::{Stop, say, start::LoadBar};
use crate::{config::HubArgs, engine::load::fetch, error::Result, weights::hub::Found};

/// What `pull` takes.
#[derive(Args, Clone, Debug)]
pub(super) struct PullArgs {
    /// Hugging Face repository: org/name[:file-or-quantization][@revision], as in org/name:Q4_K_M@main.
    model: String,
    #[command(flatten)]
    hub: HubArgs,
    /// Check the sums of what was downloaded before too, and download again what is wrong.
    #[arg(long)]
    verify: bool,
    /// Print one JSON object instead of the path.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &PullArgs) -> Result<(), Stop> {
    let bar = LoadBar::new();
    let found = fetch(&args.model, &args.hub, args.verify, &mut |progress| bar.show(progress));
    bar.clear();
    let Found { path, why } = found?;
    say(&why);
    let path = path.display().to_string();
    if args.json {
        writeln!(io::stdout(), "{}", json!({ "model": args.model, "path": path }))?;
    } else {
        writeln!(io::stdout(), "{path}")?;
    }
    Ok(())
}
