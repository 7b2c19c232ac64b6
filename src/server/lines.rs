//! Lines of bounded length, one a tenant: whatever many calls wait for, nobody fills the places of others.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::access::{Caller, Owner};

/// Calls of one tenant in line; of everybody together where no keys are asked for.
const LINE: usize = 16;
const LINE_OF_ALL: usize = 64;

/// See the [module](self). Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Lines(Arc<Mutex<HashMap<Owner, usize>>>);

/// A call's place in its tenant's line; free again when it is dropped.
#[derive(Debug)]
pub(crate) struct InLine {
    lines: Lines,
    owner: Owner,
}

impl Lines {
    fn lengths(&self) -> MutexGuard<'_, HashMap<Owner, usize>> {
        // Plain numbers: valid between any two statements.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has a call stand in line.
    ///
    /// # Errors
    /// How many of its tenant do, where those are as many as may.
    pub(crate) fn enter(&self, caller: &Caller) -> Result<InLine, usize> {
        let (owner, most) = (caller.owner(), if caller.has_key() { LINE } else { LINE_OF_ALL });
        let mut lengths = self.lengths();
        let length = lengths.entry(owner.clone()).or_default();
        if *length >= most {
            return Err(most);
        }
        *length += 1;
        Ok(InLine { lines: self.clone(), owner })
    }
}

impl Drop for InLine {
    fn drop(&mut self) {
        let mut lengths = self.lines.lengths();
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
            assert_eq!(lines.enter(caller).unwrap_err(), most);
        }
        drop(all.remove(0));
        assert_eq!(lines.enter(&other).unwrap_err(), LINE, "another's place is free");
        lines.enter(&one).unwrap();
    }

    #[test]
    fn who_is_gone_is_not_remembered() {
        let lines = Lines::default();
        drop([lines.enter(&Caller::anybody()), lines.enter(&Caller::anybody())]);
        assert!(lines.lengths().is_empty());
    }
}
