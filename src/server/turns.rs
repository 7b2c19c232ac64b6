//! Work on text beside the streams (tokenizing, counting, quoting): it takes a core each, and generation needs them. A few run
//! at once, in the order in which they came, and nobody has more than a line of bounded length.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::{sync::Semaphore, task::spawn_blocking};

use super::access::{Caller, Owner};
use crate::error::{Code, Error, Result};

/// Calls that are worked on at once.
const AT_ONCE: usize = 2;
/// Calls of one tenant that wait or are worked on; of everybody together where no keys are asked for.
const LINE: usize = 16;
const LINE_OF_ALL: usize = 64;

/// See the [module](self). Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Turns {
    running: Arc<Semaphore>,
    lines: Lines,
}

type Lines = Arc<Mutex<HashMap<Owner, usize>>>;

/// A call's place in its tenant's line.
#[derive(Debug)]
pub(crate) struct InLine {
    lines: Lines,
    owner: Owner,
}

impl Default for Turns {
    fn default() -> Self {
        Self { running: Arc::new(Semaphore::new(AT_ONCE)), lines: Lines::default() }
    }
}

impl Turns {
    /// Has a call stand in line.
    ///
    /// # Errors
    /// `ResourceExhausted` where as many of this tenant do.
    pub(crate) fn line_up(&self, caller: &Caller) -> Result<InLine> {
        let (owner, most) = (caller.owner(), if caller.has_key() { LINE } else { LINE_OF_ALL });
        let mut lines = locked(&self.lines);
        let length = lines.entry(owner.clone()).or_default();
        if *length >= most {
            let why = format!("{most} such calls wait or are worked on already: try again later");
            return Err(Error::new(Code::ResourceExhausted, why));
        }
        *length += 1;
        Ok(InLine { lines: self.lines.clone(), owner })
    }

    /// Works, in its turn, beside the tasks that stream.
    ///
    /// # Errors
    /// The work's.
    pub(crate) async fn work<T: Send + 'static>(
        &self,
        place: InLine,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let failed = |error: &dyn std::fmt::Display| Error::internal(format!("work on text: {error}"));
        let turn = self.running.clone().acquire_owned().await.map_err(|error| failed(&error))?;
        // Both go along with the work, which goes on where the caller goes away.
        let work = spawn_blocking(move || {
            let _until_done = (turn, place);
            work()
        });
        work.await.map_err(|error| failed(&error))?
    }
}

impl Drop for InLine {
    fn drop(&mut self) {
        let mut lines = locked(&self.lines);
        if let Some(length) = lines.get_mut(&self.owner) {
            *length -= 1;
            if *length == 0 {
                lines.remove(&self.owner);
            }
        }
    }
}

fn locked(lines: &Lines) -> MutexGuard<'_, HashMap<Owner, usize>> {
    // Plain numbers: valid between any two statements.
    lines.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_line_has_an_end_and_moves_on() {
        let turns = Turns::default();
        let everybody = Caller::anybody();
        let waiting: Vec<_> = (0..LINE_OF_ALL).map(|_| turns.line_up(&everybody).unwrap()).collect();
        assert_eq!(turns.line_up(&everybody).unwrap_err().code, Code::ResourceExhausted);
        for place in waiting {
            assert_eq!(turns.work(place, || Ok(7)).await.unwrap(), 7);
            drop(turns.line_up(&everybody).unwrap());
        }
        assert!(locked(&turns.lines).is_empty(), "who is gone is not remembered");
    }
}
