//! The command line: one file a subcommand, and what an exit code means.
//!
//! 0: done; 1: an error, said in one line on standard error; 2: the command line is wrong; 130: ended by a signal
//! before it was done (for `serve`, the second one). A reader of our output that goes away (`| head`) ends the program
//! quietly with 0.

mod backend;
mod bench;
mod bench_serve;
mod chat;
mod completions;
mod connect;
mod convert;
mod doctor;
#[cfg(test)]
mod documented;
mod generate;
mod inspect;
mod key;
mod man;
mod pull;
mod quantize;
mod reload;
mod sampling_args;
mod serve;
mod start;
mod structured_args;
mod tokenize;
mod transcript;

use std::{
    fmt::Display,
    io::{self, IsTerminal, Write},
    path::Path,
    process::ExitCode,
};

use clap::{Command, CommandFactory, FromArgMatches, Parser, Subcommand};
use tracing_subscriber::EnvFilter;

use crate::{
    config::{Effective, LogArgs, ServeArgs, arguments, matches, unknown_variables, variables, with_environment},
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
    /// Download a model of the Hugging Face hub, to serve it later without the network.
    Pull(pull::PullArgs),
    /// Make API keys.
    Key(key::KeyArgs),
    /// Print completions for a shell.
    Completions(completions::CompletionsArgs),
    /// Write the manual pages.
    Man(man::ManArgs),
}

impl Subcommands {
    /// The model that is asked for, where it may be a path.
    fn model(&self) -> Option<&str> {
        match self {
            Self::Serve(args) => args.model.model.as_deref(),
            Self::Generate(args) => args.backend.model(),
            Self::Chat(args) => args.backend.model(),
            Self::Bench(args) => args.model.model.as_deref(),
            Self::Convert(args) => Some(&args.input.model),
            Self::Quantize(args) => Some(&args.input.model),
            Self::Inspect(args) => Some(&args.model),
            Self::Tokenize(args) => args.model.as_deref(),
            Self::Doctor(_) | Self::Pull(_) | Self::Key(_) | Self::Completions(_) | Self::Man(_) => None,
        }
    }
}

/// Runs the subcommand; an `Err` is why the program ends before its work is done.
fn dispatch(cli: Cli, effective: Effective) -> Result<(), Stop> {
    let default_level = if matches!(cli.command, Subcommands::Serve(_)) { "info" } else { "warn" };
    let log = init_log(&cli.log, default_level)?;
    for (name, meant) in unknown_variables(&command(), variables()) {
        let meant = meant.map(|meant| format!(": did you mean {meant}?")).unwrap_or_default();
        tracing::warn!("{name} is no setting, and changes nothing{meant}");
    }
    match cli.command {
        Subcommands::Serve(args) => serve::run(*args, effective, log),
        Subcommands::Generate(args) => generate::run(*args),
        Subcommands::Chat(args) => chat::run(*args),
        Subcommands::Bench(args) => bench::run(*args),
        Subcommands::Doctor(args) => doctor::run(args),
        Subcommands::Convert(args) => convert::run(args),
        Subcommands::Quantize(args) => quantize::run(args),
        Subcommands::Inspect(args) => inspect::run(args),
        Subcommands::Tokenize(args) => tokenize::run(args),
        Subcommands::Pull(args) => pull::run(&args),
        Subcommands::Key(args) => key::run(&args),
        Subcommands::Completions(args) => completions::run(args),
        Subcommands::Man(args) => man::run(&args),
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
    let (cli, effective) = parse_arguments().unwrap_or_else(|error| error.exit());
    let misspelt = cli.command.model().map(Path::new).and_then(crate::config::suggest::nearest_path);
    match dispatch(cli, effective) {
        Ok(()) | Err(Stop::ClosedPipe) => ExitCode::SUCCESS,
        Err(Stop::Signal(code)) => ExitCode::from(code),
        Err(Stop::Error(error)) => {
            let hint = misspelt.map_or_else(String::new, |path| format!("; did you mean {path}?"));
            say(format_args!("error: {error}{hint}"));
            ExitCode::FAILURE
        }
    }
}

/// What this process was called with, over the variables and the file that it names, as they are now.
fn parse_arguments() -> Result<(Cli, Effective), clap::Error> {
    let command = command();
    let (matches, from_file) = matches(&command, arguments())?;
    let effective = Effective::of(&command, &matches, &from_file);
    Ok((Cli::from_arg_matches(&matches)?, effective))
}

fn command() -> Command {
    with_environment(Cli::command())
}

/// Writes one line to standard error, whatever is in it; there is nobody to tell where that fails.
fn say(line: impl Display) {
    let line = line.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
    let _unheard = writeln!(io::stderr(), "{line}");
}

/// Changes what is logged, while the program runs.
type SetLog = Box<dyn Fn(&LogArgs) -> Result<()> + Send>;

fn init_log(args: &LogArgs, default_level: &'static str) -> Result<SetLog> {
    let filter = |args: &LogArgs| {
        let directives = args.log.as_deref().unwrap_or(default_level);
        EnvFilter::try_new(directives).map_err(|error| Error::invalid("--log-level", error.to_string()))
    };
    let ansi = io::stderr().is_terminal();
    let builder = tracing_subscriber::fmt().with_writer(io::stderr).with_ansi(ansi);
    let builder = builder.with_env_filter(filter(args)?).with_filter_reloading();
    let handle = builder.reload_handle();
    builder.init();
    let set = move |args: &LogArgs| {
        handle.reload(filter(args)?).map_err(|error| Error::internal(format!("the log's level: {error}")))
    };
    Ok(Box::new(set))
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
            "candlewick man pages",
            "candlewick pull org/name --revision main --json",
            "candlewick pull org/name:Q4_K_M@main --verify",
            "candlewick inspect org/name --download-dir models",
            "candlewick bench serve --backend grpc --base-url http://127.0.0.1:1 --model x --num-prompts 3 --request-rate inf",
            "candlewick bench serve --dataset-path x.csv --request-rate 2.5 --burstiness 0.5 --max-concurrency 8 --seed 1",
            "candlewick bench serve --max-input-len 1024 --max-output-len 8 --metric-percentiles 50,99.9 --svg x.svg --json",
            "candlewick bench models/x --prompt 512 --gen 32 --batch 1,8,32 --threads 2 --json -q q4_k",
            "candlewick bench models/x --load-format dummy",
            "candlewick convert models/x x.gguf --force --json",
            "candlewick quantize models/x x.gguf -q q4_k_m --threads 2",
            "candlewick quantize x.gguf y.gguf --quantization Q8_0 --json",
            "candlewick inspect models/x --context 4096 --json",
            "candlewick tokenize models/x --text hello --add-special-tokens",
            "candlewick tokenize org/name@v1 --download-dir models --offline",
            "candlewick quantize org/name y.gguf -q q8_0 --revision v1",
            "candlewick tokenize --json --skip-special-tokens",
            "candlewick serve --api-key k --api-key l --api-keys-file keys.toml --insecure --config x.toml --print-config",
            "candlewick serve --ssl-certfile c --ssl-keyfile k --ssl-ca-certs a --ssl-cert-reqs 2",
            "candlewick key new --tenant alice --json",
            "candlewick doctor --threads 2 --instruction-set avx2 --json",
        ] {
            parse(line).unwrap_or_else(|error| panic!("{line}: {error}"));
        }
    }

    #[test]
    fn every_subcommand_with_a_model_says_where_on_the_hub_it_is() {
        let command = command();
        let of_models = command.get_subcommands().filter(|command| {
            let models = ["model", "input"];
            command.get_positionals().any(|argument| models.contains(&argument.get_id().as_str()))
        });
        let of_models: Vec<_> = of_models.collect();
        assert!(of_models.len() >= 8, "{}", of_models.len());
        for command in of_models {
            for flag in ["revision", "download-dir", "offline"] {
                let has = command.get_arguments().any(|argument| argument.get_long() == Some(flag));
                assert!(has, "{} has no --{flag}", command.get_name());
            }
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
            "candlewick bench models/x serve",
            "candlewick bench serve --request-rate 0",
            "candlewick bench serve --num-prompts 0",
            "candlewick pull",
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
