//! When requests are sent: gaps drawn from a gamma distribution, or the times of a trace, stretched to a rate.

use std::time::Duration;

use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, Gamma};

use crate::error::{Error, Result};

/// Longest time from the first request to the last: thirty days.
const LONGEST: f64 = 30.0 * 86_400.0;

/// The times of `n` requests, `rate` a second on the average, with gaps of a gamma distribution of the shape
/// `burstiness` (1: a Poisson process). As in `vllm bench serve` they are then stretched so that the last comes at
/// exactly `n / rate`: a short run has the rate that it names.
///
/// # Errors
/// `InvalidArgument` where the last would come after a month.
pub(super) fn drawn(n: usize, rate: f64, burstiness: f64, random: &mut ChaCha8Rng) -> Result<Vec<Duration>> {
    if rate.is_infinite() {
        return Ok(vec![Duration::ZERO; n]);
    }
    let gaps =
        Gamma::new(burstiness, 1.0 / burstiness).map_err(|error| Error::invalid("--burstiness", error.to_string()))?;
    let mut at = 0.0;
    let mut times: Vec<f64> = Vec::with_capacity(n);
    for _ in 0..n {
        at += gaps.sample(random);
        times.push(at);
    }
    let target = n as f64 / rate;
    let scale = if at > 0.0 { target / at } else { 0.0 };
    durations(&times, scale)
}

/// The times of a trace in seconds from its first, as they are or stretched so that `rate` come a second on the average.
///
/// # Errors
/// `InvalidArgument` where the last would come after a month.
pub(super) fn replayed(seconds: &[f64], rate: Option<f64>) -> Result<Vec<Duration>> {
    let last = seconds.last().copied().unwrap_or(0.0);
    let scale = match rate {
        None => 1.0,
        Some(rate) if rate.is_infinite() || last <= 0.0 => 0.0,
        Some(rate) => (seconds.len() - 1) as f64 / rate / last,
    };
    durations(seconds, scale)
}

fn durations(seconds: &[f64], scale: f64) -> Result<Vec<Duration>> {
    let last = seconds.last().copied().unwrap_or(0.0) * scale;
    if !(0.0..=LONGEST).contains(&last) {
        let why = format!("the last request would come after {last:.0} seconds, and {LONGEST:.0} is the most");
        return Err(Error::invalid("--request-rate", why));
    }
    Ok(seconds.iter().map(|&at| Duration::from_secs_f64((at * scale).clamp(0.0, LONGEST))).collect())
}

#[cfg(test)]
mod tests {
    use rand_chacha::rand_core::SeedableRng;

    use super::*;

    fn gaps(burstiness: f64) -> Vec<f64> {
        let times = drawn(4000, 10.0, burstiness, &mut ChaCha8Rng::seed_from_u64(5)).unwrap();
        assert!((times[3999].as_secs_f64() - 400.0).abs() < 1e-3, "the rate is the one that was asked for");
        times.windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f64()).collect()
    }

    /// Standard deviation over mean: 1 / sqrt(shape) of a gamma distribution.
    fn variation(gaps: &[f64]) -> f64 {
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
        variance.sqrt() / mean
    }

    #[test]
    fn gaps_vary_as_the_shape_says() {
        for (shape, expected) in [(1.0, 1.0), (4.0, 0.5), (0.25, 2.0)] {
            let found = variation(&gaps(shape));
            assert!((found / expected - 1.0).abs() < 0.15, "{shape}: {found}");
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_times() {
        assert_eq!(gaps(1.0), gaps(1.0));
    }

    #[test]
    fn a_trace_keeps_its_times_or_is_stretched_to_a_rate() {
        let trace = [0.0, 1.0, 5.0];
        let seconds = |rate| replayed(&trace, rate).unwrap().iter().map(Duration::as_secs_f64).collect::<Vec<_>>();
        assert_eq!(seconds(None), trace);
        assert_eq!(seconds(Some(4.0)), [0.0, 0.1, 0.5]);
        assert_eq!(seconds(Some(f64::INFINITY)), [0.0; 3]);
        assert!(replayed(&[], Some(1.0)).unwrap().is_empty());
        assert_eq!(replayed(&[0.0, 0.0], Some(1.0)).unwrap(), [Duration::ZERO; 2]);
    }

    #[test]
    fn a_run_that_would_never_end_is_refused() {
        let error = drawn(1000, 1e-6, 1.0, &mut ChaCha8Rng::seed_from_u64(0)).unwrap_err();
        assert!(error.message.contains("seconds"), "{error}");
        assert!(replayed(&[0.0, 1e12], None).is_err());
    }
}
