//! `candlewick bench serve`: a load on a running server, ours or any that speaks OpenAI's API, and how long its answers
//! took.
//!
//! Open loop: requests are sent when they are due, whatever the server does, as people do; `--max-concurrency` alone
//! holds them back. Flags, metrics and the keys of `--json` are those of `vllm bench serve` where it has the same thing.
//! Nobody is contacted but the server that is named.

mod arrivals;
mod client;
mod load;
mod plot;
mod report;
mod server_events;
mod trace;
mod workload;

use std::{
    io::{self, IsTerminal, Write},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use self::{client::Client, load::Load, report::Report, workload::Workload};
use super::{Stop, block_on};
use crate::{
    config::Secret,
    error::{Error, Result},
};

/// Exit code of a run that Ctrl-C cuts short.
const INTERRUPTED: u8 = 130;

/// How the server is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum BackendKind {
    /// `/v1/completions` with prompts as token ids.
    #[value(name = "openai")]
    OpenAi,
    /// `/v1/chat/completions` with prompts of words, about one token each.
    #[value(name = "openai-chat")]
    OpenAiChat,
    /// candlewick's own `Generation.GenerateStream`.
    #[value(name = "grpc")]
    Grpc,
}

/// What `bench serve` takes.
#[derive(Args, Clone, Debug)]
pub(super) struct BenchServeArgs {
    /// How the server is spoken to.
    #[arg(long, value_enum, default_value = "openai")]
    backend: BackendKind,
    /// The server.
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:50051")]
    base_url: String,
    /// Name of the model in requests; the first that the server lists if left out.
    #[arg(long, value_name = "NAME", id = "served_model")]
    model: Option<String>,
    /// Sent as `Authorization: Bearer KEY`.
    #[arg(long, value_name = "KEY")]
    api_key: Option<Secret>,
    /// Arrivals and lengths to replay: a CSV file with the columns TIMESTAMP, ContextTokens and GeneratedTokens, or
    /// JSON lines with timestamp (ms), input_length, output_length and hash_ids. Without it, random prompts.
    #[arg(long, value_name = "FILE")]
    dataset_path: Option<PathBuf>,
    /// Requests to send; the first so many of a file.
    #[arg(long, value_name = "N", default_value = "1000", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    num_prompts: u32,
    /// Requests a second, or `inf` for all at once; a file's arrivals are stretched to this mean. A file's own times, or
    /// `inf`, if left out.
    #[arg(long, value_name = "RATE", value_parser = rate)]
    request_rate: Option<f64>,
    /// Shape of the gamma distribution of gaps: 1 is a Poisson process, less comes in bursts, more evenly.
    #[arg(long, value_name = "SHAPE", default_value = "1", value_parser = positive)]
    burstiness: f64,
    /// Requests under way at once; what is due beyond that waits, and is counted.
    #[arg(long, value_name = "N", default_value = "4096", value_parser = clap::value_parser!(u32).range(1..=65_536))]
    max_concurrency: u32,
    /// Seed of arrivals and prompts.
    #[arg(long, value_name = "N", default_value = "0")]
    seed: u64,
    /// Tokens of a random prompt.
    #[arg(long, value_name = "TOKENS", default_value = "1024", value_parser = clap::value_parser!(u32).range(1..=1 << 24))]
    random_input_len: u32,
    /// Tokens to generate after a random prompt.
    #[arg(long, value_name = "TOKENS", default_value = "128", value_parser = clap::value_parser!(u32).range(1..=1 << 24))]
    random_output_len: u32,
    /// Random lengths are drawn between `1 - R` and `1 + R` times those; 0 to 1.
    #[arg(long, value_name = "R", default_value = "0", value_parser = ratio)]
    random_range_ratio: f64,
    /// Tokens that all random prompts begin with, beside their own.
    #[arg(long, value_name = "TOKENS", default_value = "0", value_parser = clap::value_parser!(u32).range(0..=1 << 24))]
    random_prefix_len: u32,
    /// No prompt longer than this: the rest is cut off.
    #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(1..))]
    max_input_len: Option<u32>,
    /// No answer longer than this.
    #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(1..))]
    max_output_len: Option<u32>,
    /// Random ids are below this; what the server says over gRPC, else 256, if left out.
    #[arg(long, value_name = "IDS", value_parser = clap::value_parser!(u32).range(4..))]
    vocab_size: Option<u32>,
    /// Let answers end where the model ends them; without this, each has the length that was asked for.
    #[arg(long)]
    stop_at_eos: bool,
    /// Requests before the measurement, one after the other.
    #[arg(long, value_name = "N", default_value = "0", value_parser = clap::value_parser!(u32).range(0..=1000))]
    num_warmups: u32,
    /// A request that takes longer has failed.
    #[arg(long, value_name = "SECONDS", default_value = "3600", value_parser = seconds)]
    request_timeout: Duration,
    /// Percentiles to report.
    #[arg(long, value_name = "P", value_delimiter = ',', default_value = "90,99", value_parser = percentile)]
    metric_percentiles: Vec<f64>,
    /// Write the distributions as an SVG picture.
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Print one JSON object instead of a table.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: BenchServeArgs) -> Result<(), Stop> {
    block_on(async move {
        let client = Client::connect(&args).await?;
        // Before anything is sent, so that a wrong file is said at once.
        let workload = Workload::plan(&args, client.vocab_size())?;
        let bar = progress(workload.requests.len());
        let load = Load::new(Arc::new(client), &args);
        let measured = load.run(&workload, &bar).await?;
        bar.finish_and_clear();
        let report = Report::new(&args, load.model(), measured);
        if args.json {
            writeln!(io::stdout(), "{}", report.to_json())?;
        } else {
            report.print(&mut io::stdout())?;
            plot::print_histograms(&report, &mut io::stdout())?;
        }
        if let Some(path) = &args.svg {
            let picture = plot::svg(&report)?;
            std::fs::write(path, picture)
                .map_err(|error| Error::invalid("--svg", format!("cannot write {}: {error}", path.display())))?;
        }
        report.outcome()
    })
}

fn progress(requests: usize) -> ProgressBar {
    let bar = ProgressBar::new(requests as u64);
    let style = ProgressStyle::with_template("requests {bar:40} {pos}/{len} {elapsed} {msg}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    if !io::stderr().is_terminal() {
        bar.set_draw_target(ProgressDrawTarget::hidden());
    }
    bar
}

fn number(text: &str) -> Result<f64, String> {
    text.parse().map_err(|_| "must be a number".to_owned())
}

fn rate(text: &str) -> Result<f64, String> {
    // Beyond this many a second, nanoseconds do not tell them apart.
    match number(text)? {
        rate if rate == f64::INFINITY || (1e-6..=1e9).contains(&rate) => Ok(rate),
        _ => Err("must be between 0.000001 and 1000000000 requests a second, or inf".to_owned()),
    }
}

fn positive(text: &str) -> Result<f64, String> {
    Some(number(text)?).filter(|x| (1e-3..=1e6).contains(x)).ok_or_else(|| "must be from 0.001 to 1000000".to_owned())
}

fn ratio(text: &str) -> Result<f64, String> {
    Some(number(text)?).filter(|x| (0.0..=1.0).contains(x)).ok_or_else(|| "must be from 0 to 1".to_owned())
}

fn percentile(text: &str) -> Result<f64, String> {
    Some(number(text)?).filter(|x| (0.0..=100.0).contains(x)).ok_or_else(|| "must be from 0 to 100".to_owned())
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = number(text)?;
    if (0.001..=1e9).contains(&seconds) {
        return Ok(Duration::from_secs_f64(seconds));
    }
    Err("must be between 0.001 and 1000000000 seconds".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_a_number_above_zero_or_endless() {
        assert_eq!((rate("2.5"), rate("inf")), (Ok(2.5), Ok(f64::INFINITY)));
        for wrong in ["0", "-1", "nan", "-inf", "", "fast", "1e300"] {
            assert!(rate(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn shapes_ratios_percentiles_and_seconds_have_bounds() {
        assert!(["0", "nan", "inf", "-1", "x"].iter().all(|wrong| positive(wrong).is_err()));
        assert!(["1.1", "nan", "-0.1", "x"].iter().all(|wrong| ratio(wrong).is_err()));
        assert!(["101", "nan", "-1", "x"].iter().all(|wrong| percentile(wrong).is_err()));
        assert!(["0", "nan", "inf", "1e300", "x"].iter().all(|wrong| seconds(wrong).is_err()));
        assert_eq!((positive("0.5"), ratio("1"), percentile("99.9")), (Ok(0.5), Ok(1.0), Ok(99.9)));
    }
}
