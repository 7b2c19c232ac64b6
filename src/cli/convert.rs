//! `candlewick convert`: a directory as the hub lays it out, as a GGUF file.

use std::{
    io::{self, IsTerminal, Write},
    path::{Path, PathBuf},
};

use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;

use super::{Stop, say, start::find_model};
use crate::{
    config::HubArgs,
    convert::{Draft, Mixture, Written},
    engine::load::Wanted,
    error::{Error, Result},
    kernels::pool::Pool,
    weights::{
        files::{ModelFiles, model_files},
        gguf::Gguf,
        safetensors::SafetensorsSource,
    },
};

/// What `convert` takes.
#[derive(Args, Clone, Debug)]
pub(super) struct ConvertArgs {
    #[command(flatten)]
    pub(super) input: Input,
    /// File to write.
    output: PathBuf,
    #[command(flatten)]
    output_args: Output,
}

/// Which model is written anew.
#[derive(Args, Clone, Debug)]
pub(super) struct Input {
    /// Directory, GGUF file (any part of a split one, which is merged) or Hugging Face repository,
    /// org/name[:file-or-quantization][@revision].
    #[arg(id = "input", value_name = "MODEL")]
    pub(super) model: String,
    #[command(flatten)]
    hub: HubArgs,
}

/// How writing a file goes.
#[derive(Args, Clone, Debug)]
pub(super) struct Output {
    /// Replace the file where there is one.
    #[arg(long)]
    force: bool,
    /// Print one JSON object instead of a line.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: ConvertArgs) -> Result<(), Stop> {
    write(&args.input, &args.output, None, 0, &args.output_args)
}

/// Writes the model to `output` and says so.
pub(super) fn write(
    input: &Input,
    output: &Path,
    mixture: Option<Mixture>,
    threads: usize,
    args: &Output,
) -> Result<(), Stop> {
    if output.exists() && !args.force {
        let why = format!("{} is there already; --force replaces it", output.display());
        return Err(Error::invalid("output", why).into());
    }
    let input = &find_model(&input.model, &input.hub, Wanted::Model)?;
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    let style = ProgressStyle::with_template("writing {bar:40} {pos}/{len} tensors {eta}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    if !io::stderr().is_terminal() {
        bar.set_draw_target(ProgressDrawTarget::hidden());
    }
    let mut progress = |done: usize, total: usize| {
        bar.set_length(total as u64);
        bar.set_position(done as u64);
    };
    let written = Pool::new(threads)?.install(|| draft_and_write(input, output, mixture, &mut progress));
    bar.finish_and_clear();
    let Written { tensors, bytes_before, bytes } = written?;
    if args.json {
        let kind = mixture.map(Mixture::name);
        let output = output.display().to_string();
        let report = json!({
            "output": output, "quantization": kind, "tensors": tensors, "bytes_before": bytes_before, "bytes": bytes,
        });
        writeln!(io::stdout(), "{report}")?;
    } else {
        let megabytes = |bytes: u64| bytes as f64 / 1e6;
        let (before, after) = (megabytes(bytes_before), megabytes(bytes));
        say(format_args!("{}: {tensors} tensors, {after:.1} MB of {before:.1} MB", output.display()));
    }
    Ok(())
}

fn draft_and_write(
    input: &Path,
    output: &Path,
    mixture: Option<Mixture>,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Written> {
    match model_files(input)? {
        ModelFiles::Gguf(path) => {
            let gguf = Gguf::open(&path)?;
            Draft::from_gguf(&gguf)?.write(output, mixture, progress)
        }
        ModelFiles::Directory(files) => {
            let source = SafetensorsSource::open(&files.path)?;
            Draft::from_directory(&files, &source)?.write(output, mixture, progress)
        }
    }
}
