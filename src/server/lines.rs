//! Lines of bounded length, one a tenant: whatever many calls wait for, nobody fills the places of others.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use super::access::{Caller, Owner};
use crate::engine::rates::Stays;

/// Calls of one tenant in line; of everybody together where no keys are asked for.
const LINE: usize = 16;
const LINE_OF_ALL: usize = 64;

/// See the [module](self). Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Lines(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    /// Of those who have one.
    lengths: HashMap<Owner, usize>,
    stays: Stays,
}

/// What a call hears that finds the end of its line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LineFull {
    /// As many stand in it as may.
    pub(crate) most: usize,
    /// When one of them should be gone, once that was measured.
    pub(crate) free_after: Option<Duration>,
}

/// A call's place in its tenant's line; free again when it is dropped.
#[derive(Debug)]
pub(crate) struct InLine {
    lines: Lines,
    owner: Owner,
    since: Instant,
}

impl Lines {
    fn state(&self) -> MutexGuard<'_, State> {
        // Plain numbers: valid between any two statements.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has a call stand in line.
    ///
    /// # Errors
    /// Where as many of its tenant do as may.
    pub(crate) fn enter(&self, caller: &Caller) -> Result<InLine, LineFull> {
        let (owner, most) = (caller.owner(), if caller.has_key() { LINE } else { LINE_OF_ALL });
        let State { lengths, stays } = &mut *self.state();
        let length = lengths.entry(owner.clone()).or_default();
        if *length >= most {
            return Err(LineFull { most, free_after: stays.free_after(1, most) });
        }
        *length += 1;
        Ok(InLine { lines: self.clone(), owner, since: Instant::now() })
    }
}

impl Drop for InLine {
    fn drop(&mut self) {
        let State { lengths, stays } = &mut *self.lines.state();
        stays.record(self.since.elapsed(), 1);
        if let Some(length) = lengths.get_mut(&self.owner) {
            *length -= 1;
            if *length == 0 {
                lengths.remove(&self.owner);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenants_line_has_an_end_and_is_nobody_elses() {
        let lines = Lines::default();
        let [one, other] = ["one", "other"].map(Caller::of_tenant);
        let mut all = Vec::new();
        for (caller, most) in [(&one, LINE), (&other, LINE), (&Caller::anybody(), LINE_OF_ALL)] {
            // Those of the others before it are full.
            all.extend((0..most).map(|_| lines.enter(caller).unwrap()));
            assert_eq!(lines.enter(caller).unwrap_err(), LineFull { most, free_after: None });
        }
        drop(all.remove(0));
        assert_eq!(lines.enter(&other).unwrap_err().most, LINE, "another's place is free");
        lines.enter(&one).unwrap();
    }

    #[test]
    fn who_is_gone_is_not_remembered() {
        let lines = Lines::default();
        drop([lines.enter(&Caller::anybody()), lines.enter(&Caller::anybody())]);
        assert!(lines.state().lengths.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn who_finds_the_end_of_a_line_is_told_how_fast_it_moves() {
        let (lines, caller) = (Lines::default(), Caller::of_tenant("one"));
        let mut all: Vec<_> = (0..LINE).map(|_| lines.enter(&caller).unwrap()).collect();
        tokio::time::advance(Duration::from_secs(32)).await;
        drop(all.pop());
        all.push(lines.enter(&caller).unwrap());
        // Each stands in it for 32 seconds, so one of sixteen goes every other second.
        assert_eq!(lines.enter(&caller).unwrap_err().free_after, Some(Duration::from_secs(2)));
    }
}
