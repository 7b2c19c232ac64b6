//! How fast the engine works, measured: what deadlines, quotes and hints when to come back are reckoned from.
//!
//! Averages that forget, in which a step that prefilled more counts more: a prompt of which one token was left to compute
//! says little about what the tokens of a long one take. Nothing is guessed: before the first measurement there is no
//! estimate, and nobody is refused for want of one.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// Steps, and ends of requests, that count as much as all before them together.
const MEMORY: f64 = 7.0;
/// Tokens of prompts that do.
const TOKEN_MEMORY: f64 = 4096.0;
/// Shortest and longest hint when to come back.
const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(30));

/// An average in nanoseconds; zero before the first measurement. Written by one thread.
#[derive(Debug, Default)]
struct Average {
    nanos: AtomicU64,
    /// What the measurements so far count together, as far as they are not forgotten. Read by the thread that writes.
    weight: AtomicU64,
}

impl Average {
    /// A measurement that counts `weight`, where all before it count `memory` at the most.
    fn record(&self, nanos: f64, weight: f64, memory: f64) {
        let of = |number: &AtomicU64| f64::from_bits(number.load(Ordering::Relaxed));
        let total = of(&self.weight) * memory / (memory + weight) + weight;
        let before = of(&self.nanos);
        let now = before + weight / total * (nanos - before);
        self.weight.store(total.to_bits(), Ordering::Relaxed);
        self.nanos.store(now.max(1.0).to_bits(), Ordering::Relaxed);
    }

    fn nanos(&self) -> Option<f64> {
        Some(f64::from_bits(self.nanos.load(Ordering::Relaxed))).filter(|&nanos| nanos > 0.0)
    }
}

/// The measured rates of one engine, over all its lives.
#[derive(Debug, Default)]
pub struct Rates {
    /// A token of a prompt: of the steps that computed some, the share of these tokens.
    prefill_token: Average,
    /// A step that only decodes: the time between two tokens of a stream.
    decode_step: Average,
    /// The time between the ends of two requests, while others wait.
    request: Average,
}

/// How long places of some kind are held, and so how often one of them becomes free: where many are held for so long each, one
/// is left whenever their number has gone through that time once (Little's law). Stays that have not ended do not count.
#[derive(Debug, Default)]
pub struct Stays(Average);

impl Stays {
    /// So many places were held for so long.
    pub fn record(&mut self, stay: Duration, places: usize) {
        if places > 0 {
            self.0.record(stay.as_nanos() as f64, places as f64, MEMORY);
        }
    }

    /// When so many of those that are held should be free; none before any was left.
    #[must_use]
    pub fn free_after(&self, places: usize, held: usize) -> Option<Duration> {
        self.0.nanos().map(|nanos| hint(nanos * places as f64 / held.max(1) as f64))
    }
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
    /// A step took `elapsed` for this many tokens of prompts and others. One without tokens of prompts counts as one that
    /// decodes.
    pub fn record_step(&self, elapsed: Duration, prefill_tokens: usize, other_tokens: usize) {
        let nanos = elapsed.as_nanos() as f64;
        if prefill_tokens > 0 {
            let all_tokens = (prefill_tokens + other_tokens) as f64;
            self.prefill_token.record(nanos / all_tokens, prefill_tokens as f64, TOKEN_MEMORY);
        } else if other_tokens > 0 {
            self.decode_step.record(nanos, 1.0, MEMORY);
        }
    }

    /// So many requests have ended, `elapsed` after the last that did, while others were waiting.
    pub fn record_ends(&self, elapsed: Duration, requests: usize) {
        if requests > 0 {
            self.request.record(elapsed.as_nanos() as f64 / requests as f64, requests as f64, MEMORY);
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
        self.request.nanos().map(hint)
    }
}

/// When to come back where a place should be free after so long.
fn hint(nanos: f64) -> Duration {
    duration(nanos).clamp(RETRY.0, RETRY.1)
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
        rates.record_step(104 * MS, 100, 4);
        rates.record_step(7 * MS, 0, 4);
        rates.record_ends(500 * MS, 1);
        assert_eq!(rates.time_to_first_token(Ahead::default(), 50), Some(50 * MS));
        assert_eq!(rates.time_to_first_token(Ahead { requests: 1, tokens: 30, rows: 0 }, 50), Some(80 * MS));
        assert_eq!(rates.time_to_first_token(Ahead { requests: 1, tokens: 30, rows: 2 }, 50), Some(1050 * MS));
        assert_eq!(rates.decode_time(3), Some(21 * MS));
        assert_eq!(rates.retry_after(), Some(500 * MS));
    }

    #[test]
    fn a_place_becomes_free_as_often_as_places_are_left() {
        let mut stays = Stays::default();
        assert_eq!(stays.free_after(1, 8), None, "nobody has left one");
        stays.record(8000 * MS, 3);
        assert_eq!([1, 2].map(|places| stays.free_after(places, 8)), [Some(1000 * MS), Some(2000 * MS)]);
        assert_eq!((stays.free_after(1, 0), stays.free_after(1, 4000)), (Some(8000 * MS), Some(RETRY.0)));
        (0..20).for_each(|_| stays.record(400 * MS, 7));
        assert!((100 * MS..110 * MS).contains(&stays.free_after(1, 4).unwrap()), "what was before is forgotten");
        stays.record(3600 * 1000 * MS, 700);
        assert_eq!(stays.free_after(1, 1), Some(RETRY.1));
    }

    #[test]
    fn old_measurements_are_forgotten() {
        let rates = Rates::default();
        rates.record_step(1000 * MS, 0, 1);
        rates.record_step(1_000_000 * MS, 1000, 0);
        (0..100).for_each(|_| rates.record_step(MS, 0, 1));
        (0..100).for_each(|_| rates.record_step(1000 * MS, 1000, 0));
        for measured in [rates.decode_tokens_per_second(), rates.prefill_tokens_per_second()] {
            assert!((900.0..=1000.0).contains(&measured.unwrap()), "{measured:?}");
        }
    }

    #[test]
    fn a_prompt_that_was_all_but_cached_says_little_about_long_ones() {
        let rates = Rates::default();
        rates.record_step(2000 * MS, 2000, 0);
        // Steps that decode for nine, beside which one token of a prompt is computed.
        (0..20).for_each(|_| rates.record_step(50 * MS, 1, 9));
        let measured = rates.prefill_tokens_per_second().unwrap();
        assert!((900.0..=1000.0).contains(&measured), "{measured}");
    }
}
