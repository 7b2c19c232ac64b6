//! Work on text beside the streams (tokenizing, counting, quoting): it takes a core each, and generation needs them. A few run
//! at once, in the order in which they came, and nobody has more than a line of bounded length.

use std::sync::Arc;

use tokio::{sync::Semaphore, task::spawn_blocking};

use super::{
    access::Caller,
    lines::{InLine, LineFull, Lines},
};
use crate::error::{Code, Error, Result};

/// Calls that are worked on at once.
const AT_ONCE: usize = 2;

/// See the [module](self). Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Turns {
    running: Arc<Semaphore>,
    lines: Lines,
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
        self.lines.enter(caller).map_err(|LineFull { most, free_after }| {
            let why = format!("{most} such calls wait or are worked on already: try again later");
            Error { retry_after: free_after, ..Error::new(Code::ResourceExhausted, why) }
        })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_line_has_an_end_and_moves_on() {
        let turns = Turns::default();
        let everybody = Caller::anybody();
        let waiting: Vec<_> = std::iter::from_fn(|| turns.line_up(&everybody).ok()).collect();
        assert_eq!(turns.line_up(&everybody).unwrap_err().code, Code::ResourceExhausted);
        assert!(!waiting.is_empty());
        for place in waiting {
            assert_eq!(turns.work(place, || Ok(7)).await.unwrap(), 7);
            drop(turns.line_up(&everybody).unwrap());
        }
    }
}
