//! Room for the bodies of requests that are being read, over all calls of all faces. It is taken as bytes come, not as they
//! are announced: who sends nothing takes nothing.

use std::sync::Arc;

use tokio::sync::Semaphore;

use crate::error::{Code, Error, Result};

/// KiB of bodies that are being read and understood at once.
const ROOM_KIB: usize = 128 << 10;

/// See the [module](self). Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Bodies(Arc<Semaphore>);

impl Default for Bodies {
    fn default() -> Self {
        Self::of(ROOM_KIB)
    }
}

impl Bodies {
    /// Room for so many KiB.
    pub(crate) fn of(kib: usize) -> Self {
        Self(Arc::new(Semaphore::new(kib)))
    }

    /// For one body that has yet to come.
    pub(crate) fn begin(&self) -> BodyRoom {
        BodyRoom { all: self.0.clone(), kib: 0 }
    }
}

/// What one body takes; given back when it is dropped.
#[derive(Debug)]
pub(crate) struct BodyRoom {
    all: Arc<Semaphore>,
    kib: usize,
}

impl BodyRoom {
    /// Takes more, or gives back, so that there is room for so many bytes.
    ///
    /// # Errors
    /// `ResourceExhausted` where others have it all.
    pub(crate) fn resize(&mut self, bytes: usize) -> Result<()> {
        let needed = bytes.div_ceil(1024);
        if let Some(more) = needed.checked_sub(self.kib) {
            let full =
                || Error::new(Code::ResourceExhausted, "too many request bodies are being read: try again later");
            let more = u32::try_from(more).map_err(|_| full())?;
            // Given back below.
            self.all.try_acquire_many(more).map_err(|_| full())?.forget();
        } else {
            self.all.add_permits(self.kib - needed);
        }
        self.kib = needed;
        Ok(())
    }
}

impl Drop for BodyRoom {
    fn drop(&mut self) {
        self.all.add_permits(self.kib);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_share_their_room_as_they_grow_and_give_it_back() {
        let bodies = Bodies::of(4);
        let (mut one, mut other) = (bodies.begin(), bodies.begin());
        one.resize(3000).unwrap();
        other.resize(1024).unwrap();
        assert_eq!(other.resize(1025).unwrap_err().code, Code::ResourceExhausted);
        one.resize(10).unwrap();
        other.resize(3 * 1024).unwrap();
        assert_eq!(bodies.0.available_permits(), 0);
        drop((one, other));
        assert_eq!(bodies.0.available_permits(), 4);
    }
}
