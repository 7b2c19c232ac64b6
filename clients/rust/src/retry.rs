//! How often, and after how long, to try again what has not begun or can be gone on with.

use std::{
    hash::{BuildHasher, RandomState},
    time::Duration,
};

use tokio::time::Instant;

use crate::{Code, Error, Result};

/// Attempts, and the time between them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retry {
    /// All of them, the first included.
    pub attempts: u32,
    /// Before the second one; doubled for each further one.
    pub first_delay: Duration,
    /// No delay of our own is longer; the server may ask for more.
    pub max_delay: Duration,
}

impl Default for Retry {
    fn default() -> Self {
        Self { attempts: 5, first_delay: Duration::from_millis(200), max_delay: Duration::from_secs(5) }
    }
}

/// The retries of one call, within its deadline.
#[derive(Debug)]
pub(crate) struct Patience {
    retry: Retry,
    ends: Option<Instant>,
    failures: u32,
}

impl Patience {
    /// `timeout` from now on; none is forever.
    pub(crate) fn new(retry: Retry, timeout: Option<Duration>) -> Self {
        Self { retry, ends: timeout.and_then(|timeout| Instant::now().checked_add(timeout)), failures: 0 }
    }

    /// Until the deadline.
    pub(crate) fn left(&self) -> Option<Duration> {
        self.ends.map(|ends| ends.saturating_duration_since(Instant::now()))
    }

    /// The server answered: the next failure is the first again.
    pub(crate) fn heard(&mut self) {
        self.failures = 0;
    }

    /// How long to wait before another attempt.
    ///
    /// # Errors
    /// The error, where there is to be none.
    pub(crate) fn pause(&mut self, error: Error) -> Result<Duration> {
        self.failures += 1;
        if error.code != Code::Unavailable || self.failures >= self.retry.attempts {
            return Err(error);
        }
        let doublings = (self.failures - 1).min(16);
        let longest = self.retry.first_delay.saturating_mul(1 << doublings).min(self.retry.max_delay);
        let delay =
            longest.mul_f64(0.5 + random() as f64 / u64::MAX as f64 / 2.0).max(error.retry_after().unwrap_or_default());
        match self.left() {
            Some(left) if delay >= left => Err(error),
            _ => Ok(delay),
        }
    }
}

/// A number that nobody foresees, drawn from what keys the standard library's hash maps.
pub(crate) fn random() -> u64 {
    RandomState::new().hash_one(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Details;

    fn gone() -> Error {
        Error::new(Code::Unavailable, "gone")
    }

    #[test]
    fn delays_double_up_to_a_bound_and_attempts_end() {
        let retry =
            Retry { attempts: 5, first_delay: Duration::from_millis(100), max_delay: Duration::from_millis(300) };
        let mut patience = Patience::new(retry, None);
        for longest in [100, 200, 300, 300] {
            let delay = patience.pause(gone()).unwrap();
            assert!((longest / 2..=longest).contains(&(delay.as_millis() as u64)), "{delay:?} of {longest}");
        }
        assert_eq!(patience.pause(gone()).unwrap_err(), gone());
        patience.heard();
        assert!(patience.pause(gone()).is_ok(), "an answer begins anew");
    }

    #[test]
    fn only_what_may_pass_is_tried_again_and_never_past_the_deadline() {
        let mut patience = Patience::new(Retry::default(), Some(Duration::from_secs(60)));
        let wrong = Error::new(Code::InvalidArgument, "wrong");
        assert_eq!(patience.pause(wrong.clone()).unwrap_err(), wrong);
        let after = |seconds| {
            let retry_after = Some(Duration::from_secs(seconds));
            Error { details: Box::new(Details { retry_after, ..Details::default() }), ..gone() }
        };
        assert_eq!(patience.pause(after(20)).unwrap(), Duration::from_secs(20), "the server knows better");
        let too_late = after(61);
        assert_eq!(patience.pause(too_late.clone()).unwrap_err(), too_late);
    }
}
