//! What a run says: how many, how fast, and the distributions of the times, as table or JSON.

use std::{
    io::{self, Write},
    time::Duration,
};

use serde_json::{Map, Value, json};

use super::{BackendKind, BenchServeArgs, INTERRUPTED, load::Measured};
use crate::{
    cli::Stop,
    error::{Code, Error},
};

/// Times of one kind, in milliseconds, smallest first.
pub(super) struct Distribution {
    /// As vLLM spells it in the keys of its JSON.
    pub key: &'static str,
    /// For people.
    pub title: &'static str,
    pub sorted: Vec<f64>,
}

impl Distribution {
    fn new(key: &'static str, title: &'static str, mut times: Vec<f64>) -> Self {
        times.sort_by(f64::total_cmp);
        Self { key, title, sorted: times }
    }

    /// Interpolated between the two nearest, as numpy does; 0 where there is nothing.
    pub(super) fn percentile(&self, percent: f64) -> f64 {
        let Some(last) = self.sorted.len().checked_sub(1) else { return 0.0 };
        let at = percent / 100.0 * last as f64;
        let (low, high) = (self.sorted[(at.floor() as usize).min(last)], self.sorted[(at.ceil() as usize).min(last)]);
        low + (high - low) * at.fract()
    }

    fn mean(&self) -> f64 {
        self.sorted.iter().sum::<f64>() / self.sorted.len().max(1) as f64
    }

    /// Standard deviation.
    fn deviation(&self) -> f64 {
        let mean = self.mean();
        let squares = self.sorted.iter().map(|time| (time - mean).powi(2)).sum::<f64>();
        (squares / self.sorted.len().max(1) as f64).sqrt()
    }
}

/// Everything that a run found.
pub(super) struct Report {
    backend: BackendKind,
    pub(super) model: String,
    rate: Option<f64>,
    burstiness: f64,
    max_concurrency: u32,
    percentiles: Vec<f64>,
    measured: Measured,
    input_tokens: u64,
    output_tokens: u64,
    /// TTFT, TPOT, ITL, E2E.
    pub(super) distributions: [Distribution; 4],
}

fn milliseconds(duration: &Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

impl Report {
    pub(super) fn new(args: &BenchServeArgs, model: &str, measured: Measured) -> Self {
        let answers = &measured.answers;
        let first = answers.iter().filter_map(|(answer, _)| answer.first.as_ref()).map(milliseconds).collect();
        // Of answers of one token nothing can be said.
        let many = answers.iter().filter(|(answer, _)| answer.output_tokens > 1);
        let a_token = many.map(|(answer, _)| {
            let decoding = answer.last.saturating_sub(answer.first.unwrap_or_default());
            milliseconds(&decoding) / (answer.output_tokens - 1) as f64
        });
        let gaps = answers.iter().flat_map(|(answer, _)| &answer.gaps).map(milliseconds);
        let whole = answers.iter().map(|(answer, _)| milliseconds(&answer.last));
        let distributions = [
            Distribution::new("ttft", "time to first token", first),
            Distribution::new("tpot", "time per output token", a_token.collect()),
            Distribution::new("itl", "inter-token latency", gaps.collect()),
            Distribution::new("e2el", "end to end", whole.collect()),
        ];
        let mut percentiles = args.metric_percentiles.clone();
        percentiles.sort_by(f64::total_cmp);
        percentiles.dedup();
        Self {
            backend: args.backend,
            model: model.to_owned(),
            rate: args.request_rate,
            burstiness: args.burstiness,
            max_concurrency: args.max_concurrency,
            percentiles,
            input_tokens: total(answers.iter().map(|(answer, sent)| answer.input_tokens.unwrap_or(*sent))),
            output_tokens: total(answers.iter().map(|(answer, _)| answer.output_tokens)),
            distributions,
            measured,
        }
    }

    fn failed(&self) -> u64 {
        self.measured.complaints.values().sum()
    }

    fn per_second(&self, n: u64) -> f64 {
        n as f64 / self.measured.duration.as_secs_f64().max(1e-9)
    }

    /// The keys are vLLM's.
    pub(super) fn to_json(&self) -> Value {
        let round = |x: f64| (x * 1e3).round() / 1e3;
        let measured = &self.measured;
        let completed = measured.answers.len() as u64;
        let backend = match self.backend {
            BackendKind::OpenAi => "openai",
            BackendKind::OpenAiChat => "openai-chat",
            BackendKind::Grpc => "grpc",
        };
        let rate = match self.rate {
            Some(rate) if rate.is_infinite() => json!("inf"),
            rate => json!(rate),
        };
        let mut object = json!({
            "backend": backend,
            "model_id": self.model,
            "request_rate": rate,
            "burstiness": self.burstiness,
            "max_concurrency": self.max_concurrency,
            "duration": round(measured.duration.as_secs_f64()),
            "completed": completed,
            "failed": self.failed(),
            "errors": measured.complaints,
            "interrupted": measured.interrupted,
            "delayed": measured.delayed,
            "max_concurrent_requests": measured.most_at_once,
            "total_input_tokens": self.input_tokens,
            "total_output_tokens": self.output_tokens,
            "request_throughput": round(self.per_second(completed)),
            "output_throughput": round(self.per_second(self.output_tokens)),
            "total_token_throughput": round(self.per_second(self.input_tokens.saturating_add(self.output_tokens))),
        });
        let mut times = Map::new();
        for distribution in &self.distributions {
            let key = distribution.key;
            times.insert(format!("mean_{key}_ms"), round(distribution.mean()).into());
            times.insert(format!("median_{key}_ms"), round(distribution.percentile(50.0)).into());
            times.insert(format!("std_{key}_ms"), round(distribution.deviation()).into());
            for &percent in &self.percentiles {
                times.insert(format!("p{percent}_{key}_ms"), round(distribution.percentile(percent)).into());
            }
        }
        if let Some(object) = object.as_object_mut() {
            object.extend(times);
        }
        object
    }

    pub(super) fn print(&self, out: &mut impl Write) -> io::Result<()> {
        let measured = &self.measured;
        let completed = measured.answers.len() as u64;
        writeln!(out, "model                 {}", self.model)?;
        writeln!(out, "requests              {completed} answered, {} failed", self.failed())?;
        for (why, n) in &measured.complaints {
            writeln!(out, "                      {n} × {why}")?;
        }
        writeln!(out, "duration              {:.2} s", measured.duration.as_secs_f64())?;
        let most = measured.most_at_once;
        writeln!(out, "under way at once     {most} at the most, {} had to wait to be sent", measured.delayed)?;
        writeln!(
            out,
            "tokens in             {:<10} {:>10.1} /s",
            self.input_tokens,
            self.per_second(self.input_tokens)
        )?;
        writeln!(
            out,
            "tokens out            {:<10} {:>10.1} /s",
            self.output_tokens,
            self.per_second(self.output_tokens)
        )?;
        writeln!(out, "answers               {completed:<10} {:>10.2} /s\n", self.per_second(completed))?;
        write!(out, "{:28}{:>10}{:>10}{:>10}", "milliseconds", "mean", "median", "std")?;
        for percent in &self.percentiles {
            write!(out, "{:>10}", format!("p{percent}"))?;
        }
        writeln!(out)?;
        for distribution in &self.distributions {
            let [mean, median, deviation] =
                [distribution.mean(), distribution.percentile(50.0), distribution.deviation()];
            write!(out, "{:28}{mean:>10.2}{median:>10.2}{deviation:>10.2}", distribution.title)?;
            for &percent in &self.percentiles {
                write!(out, "{:>10.2}", distribution.percentile(percent))?;
            }
            writeln!(out)?;
        }
        Ok(())
    }

    /// A run that was cut short, or in which nothing was answered, is no success.
    pub(super) fn outcome(&self) -> Result<(), Stop> {
        if self.measured.interrupted {
            return Err(Stop::Signal(INTERRUPTED));
        }
        if self.measured.answers.is_empty() {
            return Err(Error::new(Code::Unavailable, "no request was answered").into());
        }
        Ok(())
    }
}

/// What servers report may be anything.
fn total(tokens: impl Iterator<Item = u64>) -> u64 {
    tokens.fold(0, u64::saturating_add)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_lie_between_the_two_nearest() {
        let times = Distribution::new("ttft", "", vec![4.0, 1.0, 3.0, 2.0]);
        assert_eq!([0.0, 50.0, 100.0].map(|percent| times.percentile(percent)), [1.0, 2.5, 4.0]);
        assert!((times.percentile(99.0) - 3.97).abs() < 1e-9);
        assert_eq!((times.mean(), times.deviation()), (2.5, 1.25f64.sqrt()));
        let none = Distribution::new("itl", "", Vec::new());
        assert_eq!((none.percentile(99.0), none.mean(), none.deviation()), (0.0, 0.0, 0.0));
    }
}
