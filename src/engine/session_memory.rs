//! The bytes that all conversations together may hold. What several of them share, as forks do, counts once: each piece
//! carries its own [`Room`] along, which is given back with the last of those who hold it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::portions::{Full, Portions};
use crate::error::{Code, Error, Result};

/// See the [module](self); each tenant has its [share](super::portions) of it. Cheap to clone.
#[derive(Clone, Debug)]
pub struct SessionMemory {
    all: Arc<Mutex<Portions<Arc<str>>>>,
    /// Whose share is taken of.
    tenant: Option<Arc<str>>,
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
        Self { all: Arc::new(Mutex::new(Portions::new(most))), tenant: None }
    }

    /// The same, for what a tenant keeps; none is everybody.
    #[must_use]
    pub fn of(&self, tenant: Option<Arc<str>>) -> Self {
        Self { all: self.all.clone(), tenant }
    }

    fn all(&self) -> MutexGuard<'_, Portions<Arc<str>>> {
        // Plain numbers: valid between any two statements.
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes that are held.
    #[must_use]
    pub fn used(&self) -> usize {
        self.all().used()
    }

    /// Room for something new.
    ///
    /// # Errors
    /// `ResourceExhausted` where there is not as much, or what there is is for other tenants.
    pub(super) fn take(&self, bytes: usize) -> Result<Room> {
        let mut all = self.all();
        all.take(self.tenant.as_ref(), bytes).map_err(|full| {
            let (used, most) = (all.used(), all.total());
            let why = match full {
                Full::Everybody => format!("all sessions together hold {used} bytes, may hold {most}"),
                Full::Tenant(held) => {
                    format!("this tenant's sessions hold {held} bytes of {most}, and what is left is for others")
                }
            };
            let why = format!(
                "{why} (--session-memory-bytes), and this asks for {bytes} more: close some, or try again later"
            );
            Error::new(Code::ResourceExhausted, why)
        })?;
        drop(all);
        Ok(Room { memory: self.clone(), bytes })
    }

    /// Room for what is there already, such as an answer, whether or not there is as much: then nothing new gets any.
    pub(super) fn overdraw(&self, bytes: usize) -> Room {
        self.all().overdraw(self.tenant.as_ref(), bytes);
        Room { memory: self.clone(), bytes }
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.memory.all().give(self.memory.tenant.as_ref(), self.bytes);
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

    #[test]
    fn a_tenant_that_asks_for_all_leaves_some_to_whoever_comes() {
        let memory = SessionMemory::new(1700);
        let [a, b] = ["a", "b"].map(|tenant| memory.of(Some(tenant.into())));
        let mut held: Vec<_> = std::iter::from_fn(|| a.take(10).ok()).collect();
        assert_eq!(memory.used(), 1600);
        let refused = a.take(10).unwrap_err();
        assert!(refused.code == Code::ResourceExhausted && refused.message.contains("is for others"), "{refused}");
        let few = b.take(90).unwrap();
        held.push(a.overdraw(500));
        assert!(b.take(1).is_err(), "nothing is left");
        held.truncate(50);
        assert_eq!(memory.used(), 590);
        drop((few, held));
        assert!(memory.used() == 0 && memory.take(1700).is_ok());
    }
}
