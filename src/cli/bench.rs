//! `candlewick bench`: tokens a second through the whole engine (admission, scheduler, model, sampler, streams), beside
//! what the machine can do at most, measured in the same run.

use std::{
    io::{self, Write},
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use clap::{Args, Subcommand};
use futures::{StreamExt, stream::SelectAll};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Map, Value, json};

use super::{Stop, bench_serve, block_on, start::start_engine};
use crate::{
    config::{EngineArgs, ModelArgs, resident_bytes},
    engine::{Engine, Event, Prompt, Request},
    error::{Error, Result},
    ids::TokenId,
    kernels::{
        machine::{Arithmetic, Limits, limits},
        pool::Pool,
    },
    params::SamplingParams,
};

/// Tokens of each stream's prompt before its decoding is measured.
const DECODE_PROMPT: usize = 128;
/// The `--itl-target-ms` that cuts no prompt.
const NO_TARGET: usize = 0;
/// Tokens of the prompt whose first token is timed from the program's start.
const FIRST_PROMPT: usize = 16;
/// Times that the prefill is measured; the median counts.
const PREFILLS: usize = 5;
/// Tokens that streams generate beyond what is measured, so that none ends before its time.
const SLACK: usize = 4;

/// What `bench` takes.
#[derive(Args, Clone, Debug)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct BenchArgs {
    #[command(subcommand)]
    command: Option<BenchCommands>,
    #[command(flatten)]
    pub(super) model: ModelArgs,
    /// Tokens of the prompt whose prefill is measured.
    #[arg(long, value_name = "TOKENS", default_value = "512", value_parser = clap::value_parser!(u32).range(1..))]
    prompt: u32,
    /// Tokens that each stream decodes while it is measured.
    #[arg(long, value_name = "TOKENS", default_value = "32", value_parser = clap::value_parser!(u32).range(1..))]
    r#gen: u32,
    /// Numbers of streams that decode at once.
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "1,8,32", value_parser = clap::value_parser!(u32).range(1..))]
    batch: Vec<u32>,
    /// Tokens that the prompts of streams that decode at once have in common, before 128 of their own.
    #[arg(long, value_name = "TOKENS", default_value = "0", value_parser = clap::value_parser!(u32).range(..=1 << 24))]
    random_prefix_len: u32,
    /// Print one JSON object instead of a table.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    engine: EngineArgs,
}

/// What else can be measured.
#[derive(Clone, Debug, Subcommand)]
enum BenchCommands {
    /// Load a running server and measure how long its answers take.
    Serve(Box<bench_serve::BenchServeArgs>),
}

pub(super) fn run(mut args: BenchArgs) -> Result<(), Stop> {
    if let Some(BenchCommands::Serve(args)) = args.command {
        return bench_serve::run(*args);
    }
    // Prompts that are cut for the sake of those who stream already would let the first streams of a batch run far ahead of the
    // last, which then would end the measurement before it has begun.
    args.engine.itl_target_ms.get_or_insert(NO_TARGET);
    let started = Instant::now();
    block_on(async move {
        let widest = args.batch.iter().copied().max().unwrap_or(1) as usize;
        if widest > args.engine.max_num_seqs {
            let why = format!("is {widest}, more than the {} of --max-num-seqs", args.engine.max_num_seqs);
            return Err(Error::invalid("--batch", why).into());
        }
        let engine = start_engine(&args.model, &args.engine).await?;
        let progress = progress(args.batch.len());
        let bench = Bench { engine, threads: args.model.threads, progress, salts: AtomicU64::new(0) };
        let report = bench.run(&args, started).await?;
        bench.progress.finish_and_clear();
        if args.json {
            writeln!(io::stdout(), "{}", report.to_json())?
        } else {
            report.print(&mut io::stdout())?
        }
        Ok(())
    })
}

fn progress(batches: usize) -> ProgressBar {
    let bar = ProgressBar::new(batches as u64 + 3);
    let style = ProgressStyle::with_template("measuring {bar:40} {pos}/{len} {msg}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    if !io::IsTerminal::is_terminal(&io::stderr()) {
        bar.set_draw_target(ProgressDrawTarget::hidden());
    }
    bar
}

/// Everything measured.
struct Report {
    model: String,
    dtype: String,
    prompt: usize,
    /// Tokens that streams that decode at once have in common.
    prefix: usize,
    load: Duration,
    first_token: Duration,
    /// Tokens a second.
    prefill: f64,
    batches: Vec<Batch>,
    limits: Limits,
    weight_bytes: u64,
    kv_bytes_per_token: u64,
    block_parameters: u64,
    /// Resident bytes when the model was loaded, and at the end.
    resident: [Option<u64>; 2],
}

/// Streams that decoded together.
struct Batch {
    streams: usize,
    /// Tokens a second, all streams together.
    rate: f64,
    /// Tokens of its own a stream, on the average.
    context: f64,
    /// Of the first stream's ids.
    hash: String,
}

struct Bench {
    engine: Engine,
    threads: Option<usize>,
    progress: ProgressBar,
    /// Given so far.
    salts: AtomicU64,
}

impl Bench {
    async fn run(&self, args: &BenchArgs, started: Instant) -> Result<Report> {
        let (load, resident) = (started.elapsed(), resident_bytes());
        self.prefill(FIRST_PROMPT, 0).await?;
        let first_token = started.elapsed();

        let before = self.limits().await?;
        let prompt = args.prompt as usize;
        let mut prefills = Vec::new();
        self.step("prefill");
        for round in 1..=PREFILLS {
            prefills.push(prompt as f64 / self.prefill(prompt, round).await?.as_secs_f64());
        }
        prefills.sort_by(f64::total_cmp);
        let mut batches = Vec::new();
        for &streams in &args.batch {
            self.step(&format!("{streams} streams"));
            batches.push(self.decode(streams as usize, args).await?);
        }
        // The best of both: whatever else the machine does only makes it slower.
        let limits = before.best(self.limits().await?);
        let info = self.engine.info();
        Ok(Report {
            model: info.name.clone(),
            dtype: info.dtype.clone(),
            prompt,
            prefix: args.random_prefix_len as usize,
            load,
            first_token,
            prefill: prefills[prefills.len() / 2],
            batches,
            limits,
            weight_bytes: info.weight_bytes,
            kv_bytes_per_token: info.kv_bytes_per_token,
            block_parameters: info.block_parameters,
            resident: [resident, resident_bytes()],
        })
    }

    fn step(&self, what: &str) {
        self.progress.set_message(what.to_owned());
        self.progress.inc(1);
    }

    async fn limits(&self) -> Result<Limits> {
        self.step("the machine");
        let threads = self.threads;
        let measured = tokio::task::spawn_blocking(move || Ok(Pool::new(threads.unwrap_or(0))?.install(limits))).await;
        measured.map_err(|error| Error::internal(format!("measuring the machine panicked: {error}")))?
    }

    /// The time from asking to the first token after a prompt.
    async fn prefill(&self, tokens: usize, round: usize) -> Result<Duration> {
        let asked = Instant::now();
        self.first_token(self.request(self.drawn(tokens, round, 0), 1, self.salt())).await?;
        Ok(asked.elapsed())
    }

    /// Waits for a request's first token.
    async fn first_token(&self, request: Request) -> Result<()> {
        let mut events = self.engine.generate(request).await?;
        while let Some(event) = events.next().await {
            if let Event::Delta(_) = event? {
                return Ok(());
            }
        }
        Err(Error::internal("a stream ended without a token"))
    }

    /// Measures from when all streams have their first token until each has `steps` more.
    async fn decode(&self, streams: usize, args: &BenchArgs) -> Result<Batch> {
        let (steps, step_tokens) = (args.r#gen as usize, args.engine.max_num_batched_tokens);
        let (prefix, salt) = (self.drawn(args.random_prefix_len as usize, 1, 0), self.salt());
        // While the last prompts are prefilled, the first streams decode already.
        let prompts = streams * (prefix.len() + DECODE_PROMPT);
        let ahead = prompts.div_ceil(step_tokens.saturating_sub(streams).max(1)) + SLACK;
        let most = steps + ahead;
        if !prefix.is_empty() {
            // The streams find it where this leaves it.
            self.first_token(self.request(prefix.clone(), 1, salt)).await?;
        }
        let mut all = SelectAll::new();
        for stream in 0..streams {
            let prompt = [prefix.as_slice(), &self.drawn(DECODE_PROMPT, 0, stream)].concat();
            let salt = if prefix.is_empty() { self.salt() } else { salt };
            let events = self.engine.generate(self.request(prompt, most, salt)).await?;
            all.push(events.map(move |event| (stream, event)));
        }
        let mut counts = vec![0usize; streams];
        let mut first_ids = Vec::new();
        let (mut since, mut until, mut measured) = (None, None, 0);
        while let Some((stream, event)) = all.next().await {
            let Event::Delta(delta) = event? else { continue };
            if stream == 0 {
                first_ids.extend(delta.tokens.iter().map(|token| token.id.0));
            }
            counts[stream] += delta.tokens.len();
            let now = Instant::now();
            match since {
                None if counts.iter().all(|&count| count > 0) => since = Some(now),
                Some(_) if until.is_none() => {
                    measured += delta.tokens.len();
                    // The first stream of all is about to end: from here on the batch shrinks.
                    if counts[stream] >= most {
                        until = Some(now);
                    }
                }
                _ => {}
            }
        }
        let (Some(since), Some(until)) = (since, until) else {
            return Err(Error::internal("streams ended before they were measured"));
        };
        first_ids.truncate(steps);
        let bytes = first_ids.iter().flat_map(|id| id.to_le_bytes()).collect::<Vec<_>>();
        Ok(Batch {
            streams,
            rate: measured as f64 / until.duration_since(since).as_secs_f64(),
            context: (DECODE_PROMPT + most / 2) as f64,
            hash: blake3::hash(&bytes).to_hex()[..16].to_owned(),
        })
    }

    /// Drawn tokens, the same for the same round and stream.
    fn drawn(&self, tokens: usize, round: usize, stream: usize) -> Vec<TokenId> {
        let vocab = self.engine.info().vocab_size.max(1);
        let id = |k: usize| TokenId(((round * 15_485_863 + stream * 7919 + k * 104_729 + 1) % vocab) as u32);
        (0..tokens).map(id).collect()
    }

    /// What keeps requests from finding in the prefix cache what those of another salt left there.
    fn salt(&self) -> u64 {
        self.salts.fetch_add(1, Ordering::Relaxed)
    }

    fn request(&self, prompt: Vec<TokenId>, max_tokens: usize, salt: u64) -> Request {
        let params = SamplingParams {
            temperature: 0.0,
            ignore_eos: true,
            max_tokens: Some(u32::try_from(max_tokens).unwrap_or(u32::MAX)),
            ..SamplingParams::default()
        };
        Request { params, cache_salt: Some(format!("bench {salt}")), ..Request::new(Prompt::Tokens(prompt)) }
    }
}

impl Report {
    /// The share of the machine's products of a kind that prefill reaches.
    fn prefill_share(&self, arithmetic: Arithmetic) -> f64 {
        2.0 * self.block_parameters as f64 * self.prefill / self.limits.operations_per_second(arithmetic)
    }

    /// Bytes a second that a batch has to read: each step all weights, each stream's keys and values, and once those that
    /// they have in common.
    fn read_per_second(&self, batch: &Batch) -> f64 {
        let kv = (batch.streams as f64 * batch.context + self.prefix as f64) * self.kv_bytes_per_token as f64;
        (self.weight_bytes as f64 + kv) * batch.rate / batch.streams as f64
    }

    fn to_json(&self) -> Value {
        let round = |x: f64, digits: i32| (x * 10f64.powi(digits)).round() / 10f64.powi(digits);
        let of = |value: &dyn Fn(&Batch) -> Value| {
            self.batches.iter().map(|b| (b.streams.to_string(), value(b))).collect::<Map<_, _>>()
        };
        let megabytes = |bytes: f64| round(bytes / 1e6, 1);
        let [loaded, end] = self.resident;
        json!({
            "model": self.model,
            "dtype": self.dtype,
            "prompt": self.prompt,
            "prefix": self.prefix,
            "prefill_tok_s": round(self.prefill, 1),
            "prefill_share": round(self.prefill_share(Arithmetic::Bfloat16), 3),
            "prefill_int8_share": round(self.prefill_share(Arithmetic::Bytes), 3),
            "decode_tok_s": of(&|b| json!(round(b.rate, 2))),
            "decode_share": of(&|b| json!(round(self.read_per_second(b) / self.limits.read_bytes_per_second, 3))),
            "load_s": round(self.load.as_secs_f64(), 3),
            "first_token_s": round(self.first_token.as_secs_f64(), 3),
            "weights_mb": megabytes(self.weight_bytes as f64),
            "rss_over_weights_mb": loaded.map(|bytes| megabytes(bytes as f64 - self.weight_bytes as f64)),
            "rss_mb": end.map(|bytes| megabytes(bytes as f64)),
            "output_hash": of(&|b| json!(b.hash)),
            "limits": {
                "read_gb_s": round(self.limits.read_bytes_per_second / 1e9, 2),
                "matmul_tflops": round(self.limits.operations_per_second(Arithmetic::Bfloat16) / 1e12, 3),
                "int8_tops": round(self.limits.operations_per_second(Arithmetic::Bytes) / 1e12, 3),
            },
        })
    }

    fn print(&self, out: &mut impl Write) -> io::Result<()> {
        let read = self.limits.read_bytes_per_second;
        let [bfloat16, bytes] =
            [Arithmetic::Bfloat16, Arithmetic::Bytes].map(|kind| self.limits.operations_per_second(kind) / 1e12);
        writeln!(out, "{} ({}, {:.0} MB)", self.model, self.dtype, self.weight_bytes as f64 / 1e6)?;
        writeln!(
            out,
            "machine: reads {:.1} GB/s, multiplies bfloat16 at {bfloat16:.2} TFLOP/s, bytes at {bytes:.2}\n",
            read / 1e9
        )?;
        writeln!(out, "{:>12} {:>10}   of the machine's limit", "", "tok/s")?;
        let prefill = format!("prefill {}", self.prompt);
        let [of_bfloat16, of_bytes] =
            [Arithmetic::Bfloat16, Arithmetic::Bytes].map(|kind| self.prefill_share(kind) * 100.0);
        let share = format!("{of_bfloat16:3.0} % of multiplying bfloat16, {of_bytes:.0} % of bytes");
        writeln!(out, "{prefill:>12} {:>10.1}   {share}", self.prefill)?;
        if self.prefix > 0 {
            writeln!(out, "{:>12} {:>10}   {} tokens in common", "", "", self.prefix)?;
        }
        for batch in &self.batches {
            let share = self.read_per_second(batch) / read * 100.0;
            let name = format!("decode × {}", batch.streams);
            writeln!(out, "{name:>12} {:>10.1}   {share:3.0} % of reading", batch.rate)?;
        }
        writeln!(
            out,
            "\nloaded after {:.2} s, first token after {:.2} s",
            self.load.as_secs_f64(),
            self.first_token.as_secs_f64()
        )?;
        if let [Some(loaded), Some(end)] = self.resident.map(|bytes| bytes.map(|bytes| bytes as f64 / 1e6)) {
            writeln!(out, "memory {loaded:.0} MB when loaded, {end:.0} MB at the end")?;
        }
        let first = self.batches.first().map(|batch| &batch.hash);
        let same = self.batches.iter().all(|batch| Some(&batch.hash) == first);
        let verdict = if same { "the same tokens at every batch size" } else { "TOKENS DIFFER between batch sizes" };
        writeln!(out, "{verdict}")
    }
}
