//! How many tokens of prompts a step may compute beside those that streams wait for.
//!
//! A step takes as long as all of its rows, so whoever streams waits for the prompts that are computed beside it. Measured
//! are what a step of decodes takes and what each token of a prompt adds to it; a step gets as many of these as fit into
//! the target: the time that was asked for, or twice what the decodes alone take. It gets a few at the least, so that prompts
//! go on, more the nearer decodes alone come to the target, up to a block's worth where they miss it anyway, and as many as the
//! batch holds where nobody streams or nothing has been measured.
//!
//! Measurements are averages that follow the machine. Each is kept from leaping, because one step during which the machine
//! did something else says little; what fewer tokens than a block add is hardly more than steps differ by chance, and counts
//! for less. While prompts go on and on, nothing would tell what decodes alone take by now: every
//! [`PROBE`]th step therefore takes none. Even a single token behind a long prompt reads all of its keys and values.

use std::time::Duration;

/// Steps with prompts to compute in a row, of which the last one takes nothing of them.
const PROBE: u32 = 32;
/// What is planned for, as a part of the target: steps differ.
const HEADROOM: f64 = 0.9;
/// How much a measurement counts beside those before it.
const GAIN: f64 = 0.3;
/// How many times larger or smaller a measurement may be than the average that it enters.
const LEAP: f64 = 4.0;
/// Fewest tokens that a step gets but for a probe, where decodes are not near the target: with fewer a prompt reads all weights
/// for next to nothing.
const LEAST: usize = 4;

/// What a step held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Mix {
    /// Rows that streams wait for.
    pub(super) decodes: usize,
    /// Tokens of prompts.
    pub(super) prefill_tokens: usize,
}

/// An average of nanoseconds, once there is one.
#[derive(Debug, Default)]
struct Measured(Option<f64>);

impl Measured {
    /// Takes in a measurement, or a `part` of one.
    fn record(&mut self, nanos: f64, part: f64) {
        let nanos = nanos.max(1.0);
        self.0 = Some(match self.0 {
            None => nanos,
            Some(before) => before + GAIN * part * (nanos.clamp(before / LEAP, before * LEAP) - before),
        });
    }
}

/// See the [module](self).
#[derive(Debug)]
pub(super) struct PrefillBudget {
    /// Zero: no limit; none: twice what decodes take.
    target: Option<Duration>,
    block_size: usize,
    /// A step of decodes.
    decode_step: Measured,
    /// What a token of a prompt adds to one.
    prefill_token: Measured,
    /// A token of a prompt in a step without decodes: more than it adds to one, but better than nothing.
    prefill_alone: Measured,
    /// Steps with prompts and decodes since the last without, or the last probe.
    in_a_row: u32,
    /// What the last of them was given.
    last: Option<usize>,
}

impl PrefillBudget {
    pub(super) fn new(target: Option<Duration>, block_size: usize) -> Self {
        Self {
            target,
            block_size: block_size.max(1),
            decode_step: Measured::default(),
            prefill_token: Measured::default(),
            prefill_alone: Measured::default(),
            in_a_row: 0,
            last: None,
        }
    }

    /// Tokens of prompts for the next step, in which so many rows decode. To be asked where there are prompts to compute.
    pub(super) fn tokens(&mut self, decodes: usize) -> usize {
        let no_limit = self.target.is_some_and(|target| target.is_zero());
        let (Some(decode_step), false, false) = (self.decode_step.0, no_limit, decodes == 0) else {
            self.in_a_row = 0;
            self.last = None;
            return usize::MAX;
        };
        self.in_a_row += 1;
        if self.in_a_row >= PROBE {
            self.in_a_row = 0;
            return 0;
        }
        let target = self.target.map_or(2.0 * decode_step, |target| target.as_nanos() as f64);
        let left = (target * HEADROOM - decode_step).max(0.0);
        // Little by little from a few to a block's worth: the averages wander.
        let missed = ((decode_step / target - HEADROOM) / (1.0 - HEADROOM)).clamp(0.0, 1.0);
        let few = self.block_size.min(LEAST);
        let least = few + (missed * (self.block_size - few) as f64) as usize;
        let fits = self.prefill_token.0.or(self.prefill_alone.0).map_or(0, |token| (left / token) as usize);
        // What a token adds was measured with about as many as the last time.
        let most = self.last.map_or(usize::MAX, |last| last.saturating_mul(2));
        let tokens = fits.min(most).max(least);
        self.last = Some(tokens);
        tokens
    }

    /// A step of this mix took so long.
    pub(super) fn record(&mut self, elapsed: Duration, mix: Mix) {
        let nanos = elapsed.as_nanos() as f64;
        let tokens = mix.prefill_tokens as f64;
        match (mix.decodes, mix.prefill_tokens) {
            (0, 0) => {}
            (0, _) => self.prefill_alone.record(nanos / tokens, 1.0),
            (_, 0) => self.decode_step.record(nanos, 1.0),
            (_, few) if few < self.block_size.min(LEAST) => {}
            (decodes, _) => {
                if let Some(decode_step) = self.decode_step.0 {
                    // A token takes no more beside others than alone, or than a row that decodes: the first measurement
                    // corrects that, since by chance it may be next to nothing.
                    let most = self.prefill_alone.0.unwrap_or(decode_step / decodes as f64);
                    self.prefill_token.0.get_or_insert(most);
                    let part = (tokens / self.block_size as f64).min(1.0);
                    self.prefill_token.record((nanos - decode_step) / tokens, part);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const DECODES: Mix = Mix { decodes: 4, prefill_tokens: 0 };

    /// A machine on which a step takes so many microseconds, and so many a token of a prompt more.
    fn step(budget: &mut PrefillBudget, prompt: bool, base_us: u64, token_us: u64) -> (usize, Duration) {
        let prefill_tokens = if prompt { budget.tokens(4).min(512) } else { 0 };
        let elapsed = Duration::from_micros(base_us + token_us * prefill_tokens as u64);
        budget.record(elapsed, Mix { decodes: 4, prefill_tokens });
        (prefill_tokens, elapsed)
    }

    #[test]
    fn nothing_is_limited_where_nobody_streams_where_nothing_was_measured_or_where_it_is_turned_off() {
        let mut budget = PrefillBudget::new(None, 16);
        assert_eq!(budget.tokens(4), usize::MAX, "nothing was measured");
        budget.record(10 * MS, DECODES);
        assert_eq!(budget.tokens(0), usize::MAX, "nobody streams");
        assert_eq!(budget.tokens(4), LEAST, "a few, until it is known what a token takes");
        let mut off = PrefillBudget::new(Some(Duration::ZERO), 16);
        off.record(10 * MS, DECODES);
        assert_eq!(off.tokens(4), usize::MAX);
    }

    #[test]
    fn a_step_comes_near_its_target_and_does_not_pass_it() {
        for (target, most) in [(None, 20 * MS), (Some(50 * MS), 50 * MS), (Some(15 * MS), 15 * MS)] {
            let mut budget = PrefillBudget::new(target, 16);
            budget.record(10 * MS, DECODES);
            budget.record(100 * MS, Mix { decodes: 0, prefill_tokens: 500 });
            let steps: Vec<_> = (0..100).map(|_| step(&mut budget, true, 10_000, 100)).collect();
            assert!(steps.iter().all(|&(_, elapsed)| elapsed <= most), "{target:?}: {steps:?}");
            let longest = steps.iter().map(|&(_, elapsed)| elapsed).max().unwrap();
            assert!(longest * 10 >= most * 8, "{target:?}: {longest:?}");
        }
    }

    #[test]
    fn a_target_that_decodes_alone_miss_leaves_a_block_a_step() {
        let mut budget = PrefillBudget::new(Some(5 * MS), 16);
        budget.record(10 * MS, DECODES);
        let tokens: Vec<_> = (0..64).map(|_| step(&mut budget, true, 10_000, 100).0).collect();
        assert!(tokens.iter().all(|&tokens| tokens == 16 || tokens == 0), "{tokens:?}");
        assert_eq!(tokens.iter().filter(|&&tokens| tokens == 0).count(), 2, "a probe now and then");
    }

    #[test]
    fn averages_that_wander_around_their_target_change_what_a_step_gets_little_by_little() {
        let tokens = |decode_us: u64| {
            let mut budget = PrefillBudget::new(Some(10 * MS), 16);
            budget.record(Duration::from_micros(decode_us), DECODES);
            budget.record(100 * MS, Mix { decodes: 0, prefill_tokens: 1000 });
            budget.tokens(4)
        };
        let tokens: Vec<_> = (8_000..12_000).step_by(50).map(tokens).collect();
        assert!(tokens.windows(2).all(|pair| pair[0].abs_diff(pair[1]) <= 1), "{tokens:?}");
        assert_eq!((tokens.iter().min(), tokens.last()), (Some(&LEAST), Some(&16)), "{tokens:?}");
    }

    #[test]
    fn a_machine_that_slows_down_in_the_middle_of_a_prompt_is_followed() {
        let mut budget = PrefillBudget::new(None, 16);
        (0..8).for_each(|_| {
            step(&mut budget, false, 10_000, 100);
        });
        (0..40).for_each(|_| {
            step(&mut budget, true, 10_000, 100);
        });
        let before = step(&mut budget, true, 10_000, 100).0;
        // Three times slower, and decodes never come alone: the probes tell.
        let slow: Vec<_> = (0..320).map(|_| step(&mut budget, true, 30_000, 300)).collect();
        let (tokens, elapsed) = slow[300];
        assert!(elapsed <= 60 * MS && tokens * 10 >= before * 7, "{tokens} tokens after {before}, {elapsed:?}");
        let late = slow.iter().filter(|(_, elapsed)| *elapsed > 60 * MS).count();
        assert!(late <= 3, "{late} of {} steps took more than twice what decodes do", slow.len());
    }

    #[test]
    fn one_step_in_which_the_machine_did_something_else_changes_little() {
        let mut budget = PrefillBudget::new(None, 16);
        (0..40).for_each(|_| {
            step(&mut budget, true, 10_000, 100);
        });
        (0..8).for_each(|_| {
            step(&mut budget, false, 10_000, 100);
        });
        (0..8).for_each(|_| {
            step(&mut budget, true, 10_000, 100);
        });
        let before = step(&mut budget, true, 10_000, 100).0;
        budget.record(5000 * MS, DECODES);
        budget.record(5000 * MS, Mix { decodes: 4, prefill_tokens: before });
        let after = step(&mut budget, true, 10_000, 100).0;
        assert!(after <= before * 2 && after * 3 >= before, "{after} after {before}");
        (0..8).for_each(|_| {
            step(&mut budget, false, 10_000, 100);
        });
        (0..8).for_each(|_| {
            step(&mut budget, true, 10_000, 100);
        });
        let (tokens, elapsed) = step(&mut budget, true, 10_000, 100);
        assert!(elapsed <= 21 * MS && tokens * 3 >= before * 2, "{tokens} after {before}, {elapsed:?}");
    }
}
