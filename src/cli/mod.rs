//! The command line: one file a subcommand, and what an exit code means.
//!
//! 0: done; 1: an error, said in one line on standard error; 2: the command line is wrong; 130: ended by a signal
//! before it was done (for `serve`, the second one). A reader of our output that goes away (`| head`) ends the program
//! quietly with 0.

mod backend;
mod bench;
mod chat;
mod completions;
mod connect;
mod convert;
mod doctor;
mod generate;
mod inspect;
mod machine;
mod quantize;
mod sampling_args;
mod serve;
mod start;
mod structured_args;
mod tokenize;
mod transcript;

use std::{
    fmt::Display,
    io::{self, IsTerminal, Write},
    process::ExitCode,
};

use clap::{Command, CommandFactory, FromArgMatches, Parser, Subcommand};
use tracing_subscriber::EnvFilter;

use crate::{
    config::{LogArgs, ServeArgs, with_environment},
    error::{Error, Result},
    kernels::machine::keep_freed_memory,
};

/// A streaming LLM token server with native inference.
#[derive(Debug, Parser)]
#[command(name = "candlewick", version, arg_required_else_help = true, max_term_width = 110)]
#[command(after_help = "Every option can be given as an environment variable: --block-size as CANDLEWICK_BLOCK_SIZE.")]
struct Cli {
    #[command(subcommand)]
    command: Subcommands,
    #[command(flatten)]
    log: LogArgs,
}

/// The subcommands. To add one, add a file and a row here and in [`dispatch`].
#[derive(Debug, Subcommand)]
enum Subcommands {
    /// Serve a model over gRPC.
    Serve(Box<ServeArgs>),
    /// Continue one prompt and print what comes.
    Generate(Box<generate::GenerateArgs>),
    /// Talk to a model in the terminal.
    Chat(Box<chat::ChatArgs>),
    /// Measure tokens a second, beside the machine's own limits.
    Bench(Box<bench::BenchArgs>),
    /// Say what this machine has, which kernels it gets and how fast they are.
    Doctor(doctor::DoctorArgs),
    /// Write a GGUF file of a directory as the hub lays it out.
    Convert(convert::ConvertArgs),
    /// Write a GGUF file with its weights quantized.
    Quantize(quantize::QuantizeArgs),
    /// Say what a model file is, what it takes in memory and which kernels it gets.
    Inspect(inspect::InspectArgs),
    /// Turn text into token ids and back, a line at a time.
    Tokenize(tokenize::TokenizeArgs),
    /// Print completions for a shell.
    Completions(completions::CompletionsArgs),
}

/// Runs the subcommand; an `Err` is why the program ends before its work is done.
fn dispatch(cli: Cli) -> Result<(), Stop> {
    let default_level = if matches!(cli.command, Subcommands::Serve(_)) { "info" } else { "warn" };
    init_log(&cli.log, default_level)?;
    match cli.command {
        Subcommands::Serve(args) => serve::run(*args),
        Subcommands::Generate(args) => generate::run(*args),
        Subcommands::Chat(args) => chat::run(*args),
        Subcommands::Bench(args) => bench::run(*args),
        Subcommands::Doctor(args) => doctor::run(args),
        Subcommands::Convert(args) => convert::run(args),
        Subcommands::Quantize(args) => quantize::run(args),
        Subcommands::Inspect(args) => inspect::run(args),
        Subcommands::Tokenize(args) => tokenize::run(args),
        Subcommands::Completions(args) => completions::run(args),
    }
}

/// Why the program ends before its work is done.
#[derive(Debug)]
enum Stop {
    /// Something went wrong.
    Error(Error),
    /// Whoever read our output no longer does, and needs no more of it.
    ClosedPipe,
    /// A signal asked for it: this exit code.
    Signal(u8),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

impl From<io::Error> for Stop {
    /// Of standard input and output; whatever else fails says what it is.
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::ClosedPipe,
            _ => Self::Error(Error::internal(format!("standard input or output: {error}"))),
        }
    }
}

/// The program.
#[must_use]
pub fn run() -> ExitCode {
    keep_freed_memory();
    // Wrong arguments, `--help` and `--version` end here, with 2 and 0.
    let matches = command().get_matches();
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    match dispatch(cli) {
        Ok(()) | Err(Stop::ClosedPipe) => ExitCode::SUCCESS,
        Err(Stop::Signal(code)) => ExitCode::from(code),
        Err(Stop::Error(error)) => {
            say(format_args!("error: {error}"));
            ExitCode::FAILURE
        }
    }
}

fn command() -> Command {
    with_environment(Cli::command())
}

/// Writes one line to standard error, whatever is in it; there is nobody to tell where that fails.
fn say(line: impl Display) {
    let line = line.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
    let _unheard = writeln!(io::stderr(), "{line}");
}

fn init_log(args: &LogArgs, default_level: &str) -> Result<()> {
    let directives = args.log.as_deref().unwrap_or(default_level);
    let filter = EnvFilter::try_new(directives).map_err(|error| Error::invalid("--log-level", error.to_string()))?;
    let ansi = io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).with_ansi(ansi).init();
    Ok(())
}

/// Runs a subcommand's task on a runtime of its own. Threads that still load a model are left behind, so that a signal
/// ends the program at once.
fn block_on<T>(task: impl Future<Output = Result<T, Stop>>) -> Result<T, Stop> {
    let runtime = runtime()?;
    let outcome = runtime.block_on(task);
    runtime.shutdown_background();
    outcome
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    let built = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    built.map_err(|error| Error::internal(format!("cannot start the runtime: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        let matches = command().try_get_matches_from(line.split_whitespace())?;
        Cli::from_arg_matches(&matches)
    }

    #[test]
    fn the_commands_are_consistent() {
        command().debug_assert();
    }

    #[test]
    fn every_subcommand_takes_its_flags() {
        for line in [
            "candlewick serve",
            "candlewick serve models/x.gguf --listen 0.0.0.0:1 --dtype float32 --block-size 16 --log-level debug",
            "candlewick serve --num-gpu-blocks-override 24 --max-num-batched-tokens 21 --max-num-seqs 16",
            "candlewick --log-level trace serve --served-model-name demo --max-model-len 512 --drain-timeout 5",
            "candlewick generate --prompt hello --temperature 0 --max-tokens 5 --json",
            "candlewick generate models/x --prompt-token-ids 1,2,3 --frequency-penalty -0.5 --logit-bias 5:-100,6:1.5",
            "candlewick generate --connect http://127.0.0.1:50051 --stop a --stop b --ignore-eos",
            "candlewick generate --prompt x --json -n 2 --best-of 3 --prompt-logprobs 1",
            "candlewick chat --system be-brief --seed 7",
            "candlewick chat --connect 127.0.0.1:50051",
            "candlewick completions zsh",
            "candlewick bench models/x --prompt 512 --gen 32 --batch 1,8,32 --threads 2 --json -q q4_k",
            "candlewick bench models/x --load-format dummy",
            "candlewick convert models/x x.gguf --force --json",
            "candlewick quantize models/x x.gguf -q q4_k_m --threads 2",
            "candlewick quantize x.gguf y.gguf --quantization Q8_0 --json",
            "candlewick inspect models/x --context 4096 --json",
            "candlewick tokenize models/x --text hello --add-special-tokens",
            "candlewick tokenize --json --skip-special-tokens",
            "candlewick doctor --threads 2 --instruction-set avx2 --json",
        ] {
            parse(line).unwrap_or_else(|error| panic!("{line}: {error}"));
        }
    }

    #[test]
    fn contradictions_are_usage_errors() {
        for line in [
            "candlewick",
            "candlewick frobnicate",
            "candlewick serve --prompt x",
            "candlewick generate --prompt x --prompt-token-ids 1",
            "candlewick generate models/x --connect 127.0.0.1:50051 --prompt x",
            "candlewick generate --prompt-token-ids 1,x",
            "candlewick generate --prompt x --logit-bias 5",
            "candlewick chat -n 2",
            "candlewick chat models/x --connect 127.0.0.1:50051",
            "candlewick completions",
            "candlewick quantize x.gguf y.gguf",
            "candlewick quantize x.gguf y.gguf -q q9_9",
            "candlewick convert x",
            "candlewick tokenize --json --text x",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }

    #[test]
    fn a_closed_pipe_is_no_error() {
        let broken = Stop::from(io::Error::from(io::ErrorKind::BrokenPipe));
        assert!(matches!(broken, Stop::ClosedPipe));
        assert!(matches!(Stop::from(io::Error::from(io::ErrorKind::StorageFull)), Stop::Error(_)));
    }
}
