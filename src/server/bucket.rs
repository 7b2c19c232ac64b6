//! A token bucket: so much in a while, and no more than a burst at once.

use std::time::Duration;

use tokio::time::Instant;

/// How fast a bucket fills, and how much it holds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Rate {
    pub(crate) burst: f64,
    pub(crate) per_second: f64,
}

/// See the [module](self). What was taken beyond what there was is a debt, which is paid before anything more is given.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bucket {
    level: f64,
    at: Instant,
}

impl Rate {
    /// So many a minute, all of them at once if need be.
    pub(crate) fn a_minute(number: u32) -> Self {
        Self { burst: number.into(), per_second: f64::from(number) / 60.0 }
    }
}

impl Bucket {
    /// A full one.
    pub(crate) fn full(rate: Rate, now: Instant) -> Self {
        Self { level: rate.burst, at: now }
    }

    /// How long until there are so many to take; none where there are now. `now` may not go back.
    pub(crate) fn wait(&mut self, number: u32, rate: Rate, now: Instant) -> Option<Duration> {
        let elapsed = now.saturating_duration_since(self.at).as_secs_f64();
        self.level = (self.level + elapsed * rate.per_second).min(rate.burst);
        self.at = now;
        // What is a rounding short of it is enough.
        let short = f64::from(number) - self.level;
        (short > 1e-6).then(|| Duration::try_from_secs_f64(short / rate.per_second).unwrap_or(Duration::MAX))
    }

    /// Puts so many in, as far as they fit.
    pub(crate) fn give(&mut self, number: u64, rate: Rate) {
        self.level = (self.level + number as f64).min(rate.burst);
    }

    /// Takes so many, whether there are as many or not.
    pub(crate) fn take(&mut self, number: u64) {
        self.level -= number as f64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Waits in whole milliseconds: what is computed in floating point is not exact.
    fn wait(bucket: &mut Bucket, per_minute: u32, now: Instant) -> Option<u128> {
        bucket.wait(1, Rate::a_minute(per_minute), now).map(|wait| (wait.as_micros() + 500) / 1000)
    }

    #[test]
    fn a_minutes_worth_can_be_had_at_once_and_then_one_after_the_other() {
        let now = Instant::now();
        let mut bucket = Bucket::full(Rate::a_minute(60), now);
        for _ in 0..60 {
            assert_eq!(wait(&mut bucket, 60, now), None);
            bucket.take(1);
        }
        assert_eq!(wait(&mut bucket, 60, now), Some(1000));
        assert_eq!(wait(&mut bucket, 60, now + SECOND), None);
        bucket.take(1);
        assert_eq!(wait(&mut bucket, 60, now + SECOND + SECOND / 2), Some(500));
    }

    #[test]
    fn a_debt_is_paid_first_and_idleness_is_not_saved_up() {
        let now = Instant::now();
        let mut bucket = Bucket::full(Rate::a_minute(60), now);
        bucket.take(120);
        assert_eq!(wait(&mut bucket, 60, now), Some(61_000));
        assert_eq!(wait(&mut bucket, 60, now + 61 * SECOND), None);
        let later = now + 10_000 * SECOND;
        assert_eq!(wait(&mut bucket, 60, later), None);
        bucket.take(60);
        assert_eq!(wait(&mut bucket, 60, later), Some(1000));
    }

    #[test]
    fn a_limit_that_was_lowered_holds_at_once() {
        let now = Instant::now();
        let mut bucket = Bucket::full(Rate::a_minute(1000), now);
        assert_eq!(wait(&mut bucket, 6, now), None);
        bucket.take(6);
        assert_eq!(wait(&mut bucket, 6, now), Some(10_000));
    }
}
