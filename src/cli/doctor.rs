//! `candlewick doctor`: what this machine has, which kernels it gets, and how far each is from the machine's limit.

use std::{
    fs,
    io::{self, Write},
    thread::available_parallelism,
};

use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Value, json};

use super::Stop;
use crate::{
    config::{self, MachineFacts},
    error::Result,
    kernels::{
        device::{CardFacts, cuda_cards},
        linear::format::WeightFormat,
        machine::{Arithmetic, InstructionSet, Limits, instruction_set, instruction_sets, limits, use_instructions},
        pool::Pool,
        probe::{LinearRates, linear_rates},
    },
};

/// What `doctor` takes.
#[derive(Args, Clone, Debug)]
pub(super) struct DoctorArgs {
    /// Threads to compute with; all cores if left out.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    threads: Option<u32>,
    /// Instructions to compute with; the best that the CPU has if left out.
    #[arg(long, value_name = "SET", value_parser = config::instruction_set())]
    instruction_set: Option<InstructionSet>,
    /// Print one JSON object instead of a table.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: DoctorArgs) -> Result<(), Stop> {
    if let Some(set) = args.instruction_set {
        use_instructions(set)?;
    }
    let report = Report::measure(args.threads.map(|threads| threads as usize))?;
    if args.json {
        writeln!(io::stdout(), "{}", report.to_json())?
    } else {
        report.print(&mut io::stdout())?
    }
    Ok(())
}

struct Report {
    threads: usize,
    limits: Limits,
    kernels: Vec<(WeightFormat, LinearRates)>,
    /// NVIDIA's, or why they cannot be used.
    cards: Result<Vec<CardFacts>>,
}

impl Report {
    fn measure(threads: Option<usize>) -> Result<Self> {
        let bar = ProgressBar::new(WeightFormat::ALL.len() as u64 + 1);
        let style = ProgressStyle::with_template("measuring {bar:40} {pos}/{len} {msg}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        if !io::IsTerminal::is_terminal(&io::stderr()) {
            bar.set_draw_target(ProgressDrawTarget::hidden());
        }
        let pool = Pool::new(threads.unwrap_or(0))?;
        let limits = pool.install(limits);
        let kernels = WeightFormat::ALL.iter().map(|&format| {
            bar.set_message(format.to_string());
            bar.inc(1);
            Ok((format, pool.install(|| linear_rates(format))?))
        });
        let kernels = kernels.collect::<Result<_>>()?;
        bar.finish_and_clear();
        let all = available_parallelism().map_or(1, usize::from);
        Ok(Self { threads: threads.unwrap_or(all), limits, kernels, cards: cuda_cards() })
    }

    fn to_json(&self) -> Value {
        let round = |x: f64| (x * 1e3).round() / 1e3;
        let read = self.limits.read_bytes_per_second;
        let multiplies = |arithmetic| self.limits.operations_per_second(arithmetic);
        let kernels = self.kernels.iter().map(|(format, rates)| {
            json!({
                "kernel": format!("linear {format}"),
                "read_gb_s": round(rates.read_bytes_per_second / 1e9),
                "read_share": round(rates.read_bytes_per_second / read),
                "matmul_tflops": round(rates.operations_per_second / 1e12),
                "matmul_share": round(rates.operations_per_second / multiplies(format.arithmetic())),
            })
        });
        let card = |card: &CardFacts| {
            let CardFacts { ordinal, name, compute_capability: (major, minor), free_bytes, total_bytes } = card;
            json!({
                "device": format!("cuda:{ordinal}"),
                "name": name,
                "compute_capability": format!("{major}.{minor}"),
                "free_memory_bytes": free_bytes,
                "total_memory_bytes": total_bytes,
            })
        };
        let cards = self.cards.iter().flatten().map(card).collect::<Vec<_>>();
        json!({
            "cpu": cpu_name(),
            "cuda_cards": cards,
            "cuda_error": self.cards.as_ref().err().map(|error| &error.message),
            "threads": self.threads,
            "available_memory_bytes": MachineFacts::here().available_memory_bytes,
            "instruction_set": instruction_set(),
            "instruction_sets": instruction_sets(),
            "features": features(),
            "limits": {
                "read_gb_s": round(read / 1e9),
                "float32_tflops": round(multiplies(Arithmetic::Float32) / 1e12),
                "matmul_tflops": round(multiplies(Arithmetic::Bfloat16) / 1e12),
                "int8_tops": round(multiplies(Arithmetic::Bytes) / 1e12),
            },
            "kernels": kernels.collect::<Vec<_>>(),
        })
    }

    fn print(&self, out: &mut impl Write) -> io::Result<()> {
        let read = self.limits.read_bytes_per_second;
        let multiplies = |arithmetic| self.limits.operations_per_second(arithmetic);
        writeln!(out, "CPU           {}", cpu_name().as_deref().unwrap_or("unknown"))?;
        writeln!(out, "threads       {}", self.threads)?;
        if let Some(bytes) = MachineFacts::here().available_memory_bytes {
            writeln!(out, "free memory   {:.1} GB", bytes as f64 / 1e9)?;
        }
        writeln!(out, "instructions  {} (of {})", instruction_set(), instruction_sets().join(", "))?;
        writeln!(out, "features      {}", features().join(", "))?;
        match &self.cards {
            Err(error) => writeln!(out, "cuda          none: {error}")?,
            Ok(cards) => cards.iter().try_for_each(|card| {
                let (free, total) = (card.free_bytes as f64 / 1e9, card.total_bytes as f64 / 1e9);
                let (name, (major, minor)) = (&card.name, card.compute_capability);
                writeln!(out, "cuda:{:<8} {name}, {major}.{minor}, {free:.1} of {total:.1} GB free", card.ordinal)
            })?,
        }
        writeln!(out, "reads         {:.1} GB/s", read / 1e9)?;
        let [float32, bfloat16, bytes] =
            [Arithmetic::Float32, Arithmetic::Bfloat16, Arithmetic::Bytes].map(|kind| multiplies(kind) / 1e12);
        writeln!(
            out,
            "multiplies    {float32:.2} TFLOP/s in float32, {bfloat16:.2} in bfloat16, {bytes:.2} TOP/s in bytes\n"
        )?;
        writeln!(out, "{:16} {:>24} {:>28}", "", "one row (decoding)", "512 rows (prompts)")?;
        for (format, rates) in &self.kernels {
            let LinearRates { read_bytes_per_second, operations_per_second } = rates;
            writeln!(
                out,
                "linear {:9} {:>11.1} GB/s {:>4.0} % {:>16.2} TFLOP/s {:>4.0} %",
                format.to_string(),
                read_bytes_per_second / 1e9,
                read_bytes_per_second / read * 100.0,
                operations_per_second / 1e12,
                operations_per_second / multiplies(format.arithmetic()) * 100.0
            )?;
        }
        writeln!(
            out,
            "\nShares are of what the machine reads, and multiplies of the kind, at most, measured in the same run."
        )
    }
}

/// On Linux, the CPU's name for itself.
fn cpu_name() -> Option<String> {
    let text = fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("model name"))?;
    Some(line.trim_start_matches([' ', '\t', ':']).to_owned())
}

/// What this program was built with.
fn features() -> Vec<&'static str> {
    let all = [("demo", cfg!(feature = "demo")), ("cuda", cfg!(feature = "cuda")), ("metal", cfg!(feature = "metal"))];
    all.into_iter().filter_map(|(name, has)| has.then_some(name)).collect()
}
