//! How fast the engine works, measured: what deadlines, quotes and hints when to come back are reckoned from.
//!
//! Averages that forget: each new measurement counts an eighth. Nothing is guessed: before the first measurement there
//! is no estimate, and nobody is refused for want of one.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// What a new measurement counts against all before it.
const WEIGHT: f64 = 1.0 / 8.0;
/// Shortest and longest hint when to come back.
const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(30));

/// An average in nanoseconds; zero before the first measurement. Written by one thread.
#[derive(Debug, Default)]
struct Average(AtomicU64);

impl Average {
    fn record(&self, nanos: f64) {
        let before = f64::from_bits(self.0.load(Ordering::Relaxed));
        let now = if before > 0.0 { before + WEIGHT * (nanos - before) } else { nanos };
        self.0.store(now.max(1.0).to_bits(), Ordering::Relaxed);
    }

    fn nanos(&self) -> Option<f64> {
        Some(f64::from_bits(self.0.load(Ordering::Relaxed))).filter(|&nanos| nanos > 0.0)
    }
}

/// The measured rates of one engine, over all its lives.
#[derive(Debug, Default)]
pub struct Rates {
    /// A token of a prompt, decodes of the same step included.
    prefill_token: Average,
    /// A step that only decodes: the time between two tokens of a stream.
    decode_step: Average,
    /// The time between the ends of two requests, while others wait.
    request: Average,
}

/// What stands before a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ahead {
    /// Requests in line before it.
    pub requests: usize,
    /// Tokens of their prompts, which nobody has computed, and of those under way.
    pub tokens: usize,
    /// Requests that must end before it has a row.
    pub rows: usize,
}

impl Rates {
    /// A step took `elapsed` for this many tokens of prompts and rows that decode.
    pub fn record_step(&self, elapsed: Duration, prefill_tokens: usize, decode_rows: usize) {
        let nanos = elapsed.as_nanos() as f64;
        if prefill_tokens > 0 {
            self.prefill_token.record(nanos / prefill_tokens as f64);
        } else if decode_rows > 0 {
            self.decode_step.record(nanos);
        }
    }

    /// So many requests have ended, `elapsed` after the last that did, while others were waiting.
    pub fn record_ends(&self, elapsed: Duration, requests: usize) {
        if requests > 0 {
            self.request.record(elapsed.as_nanos() as f64 / requests as f64);
        }
    }

    /// Tokens of prompts a second.
    #[must_use]
    pub fn prefill_tokens_per_second(&self) -> Option<f64> {
        self.prefill_token.nanos().map(|nanos| 1e9 / nanos)
    }

    /// Tokens a second of one stream.
    #[must_use]
    pub fn decode_tokens_per_second(&self) -> Option<f64> {
        self.decode_step.nanos().map(|nanos| 1e9 / nanos)
    }

    /// How long a request waits until those before it have prefilled, and a row is free.
    #[must_use]
    pub fn queue_time(&self, ahead: Ahead) -> Option<Duration> {
        let prefill = if ahead.tokens > 0 { self.prefill_token.nanos()? * ahead.tokens as f64 } else { 0.0 };
        let rows = if ahead.rows > 0 { self.request.nanos()? * ahead.rows as f64 } else { 0.0 };
        Some(duration(prefill.max(rows)))
    }

    /// The same, and its own prefill.
    #[must_use]
    pub fn time_to_first_token(&self, ahead: Ahead, uncached_tokens: usize) -> Option<Duration> {
        Some(self.queue_time(ahead)? + duration(self.prefill_token.nanos()? * uncached_tokens as f64))
    }

    /// How long it takes to generate so many tokens after the first.
    #[must_use]
    pub fn decode_time(&self, tokens: usize) -> Option<Duration> {
        if tokens == 0 { Some(Duration::ZERO) } else { Some(duration(self.decode_step.nanos()? * tokens as f64)) }
    }

    /// When a place in a full queue should be free.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        self.request.nanos().map(|nanos| duration(nanos).clamp(RETRY.0, RETRY.1))
    }
}

fn duration(nanos: f64) -> Duration {
    Duration::from_nanos(nanos.min(1e18) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn nothing_is_estimated_before_it_was_measured() {
        let rates = Rates::default();
        let ahead = Ahead { requests: 1, tokens: 10, rows: 1 };
        assert_eq!(rates.time_to_first_token(ahead, 10), None);
        assert_eq!(rates.time_to_first_token(Ahead::default(), 10), None);
        assert_eq!((rates.retry_after(), rates.decode_time(1)), (None, None));
        assert_eq!(rates.queue_time(Ahead::default()), Some(Duration::ZERO));
    }

    #[test]
    fn a_first_token_waits_for_those_before_it_and_for_its_own_prompt() {
        let rates = Rates::default();
        rates.record_step(100 * MS, 100, 4);
        rates.record_step(7 * MS, 0, 4);
        rates.record_ends(500 * MS, 1);
        assert_eq!(rates.time_to_first_token(Ahead::default(), 50), Some(50 * MS));
        assert_eq!(rates.time_to_first_token(Ahead { requests: 1, tokens: 30, rows: 0 }, 50), Some(80 * MS));
        assert_eq!(rates.time_to_first_token(Ahead { requests: 1, tokens: 30, rows: 2 }, 50), Some(1050 * MS));
        assert_eq!(rates.decode_time(3), Some(21 * MS));
        assert_eq!(rates.retry_after(), Some(500 * MS));
    }

    #[test]
    fn old_measurements_are_forgotten() {
        let rates = Rates::default();
        rates.record_step(1000 * MS, 1, 0);
        (0..100).for_each(|_| rates.record_step(MS, 1, 0));
        let measured = rates.prefill_tokens_per_second().unwrap();
        assert!((900.0..=1000.0).contains(&measured), "{measured}");
    }
}
