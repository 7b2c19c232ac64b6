//! The bytes that all conversations together may hold. What several of them share, as forks do, counts once: each piece
//! carries its own [`Room`] along, which is given back with the last of those who hold it.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use crate::error::{Code, Error, Result};

/// See the [module](self). Cheap to clone.
#[derive(Clone, Debug)]
pub struct SessionMemory {
    used: Arc<AtomicUsize>,
    most: usize,
}

/// Some bytes of it, given back when dropped.
#[derive(Debug)]
pub(super) struct Room {
    memory: SessionMemory,
    bytes: usize,
}

impl SessionMemory {
    /// So many bytes.
    #[must_use]
    pub fn new(most: usize) -> Self {
        Self { used: Arc::default(), most }
    }

    /// Bytes that are held.
    #[must_use]
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// Room for something new.
    ///
    /// # Errors
    /// `ResourceExhausted` where there is not as much.
    pub(super) fn take(&self, bytes: usize) -> Result<Room> {
        let more = |used: usize| used.checked_add(bytes).filter(|&total| total <= self.most);
        self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).map_err(|used| {
            let why = format!(
                "all sessions together hold {used} bytes, may hold {} (--session-memory-bytes), and this asks for {bytes} \
                 more: close some, or try again later",
                self.most
            );
            Error::new(Code::ResourceExhausted, why)
        })?;
        Ok(Room { memory: self.clone(), bytes })
    }

    /// Room for what is there already, such as an answer, whether or not there is as much: then nothing new gets any.
    pub(super) fn overdraw(&self, bytes: usize) -> Room {
        self.used.fetch_add(bytes, Ordering::Relaxed);
        Room { memory: self.clone(), bytes }
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.memory.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_an_end_to_it_and_what_is_there_already_may_go_beyond() {
        let memory = SessionMemory::new(100);
        let (first, second) = (memory.take(60).unwrap(), memory.take(40).unwrap());
        let refused = memory.take(1).unwrap_err();
        assert!(refused.code == Code::ResourceExhausted && refused.message.contains("--session-memory-bytes"));
        let beyond = memory.overdraw(50);
        drop(first);
        assert_eq!((memory.used(), memory.take(11).is_err()), (90, true));
        drop((second, beyond));
        assert_eq!(memory.take(100).map(|_| memory.used()).unwrap(), 100);
        assert!(memory.take(usize::MAX).is_err() && memory.used() == 0);
    }
}
