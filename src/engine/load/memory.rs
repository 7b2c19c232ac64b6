//! A model's memory, and how it goes back to the operating system once nobody runs the model any more.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use candle_core::Device;

use super::ServedModel;
use crate::{
    error::{Error, Result},
    kernels::device,
};

/// How often is looked whether the last of a model has gone.
const LOOK: Duration = Duration::from_millis(10);

/// A model's memory, held by whoever runs it and not by this: tells whether anybody does.
#[derive(Clone)]
pub struct ModelMemory {
    is_held: Arc<dyn Fn() -> bool + Send + Sync>,
    device: Device,
}

impl ModelMemory {
    /// Of a model.
    #[must_use]
    pub fn of(model: &ServedModel) -> Self {
        match model {
            ServedModel::Paged(shared) => Self::held(Arc::downgrade(shared), shared.adaptable().1),
            ServedModel::Copied(shared) => Self::held(Arc::downgrade(shared), shared.device()),
        }
    }

    fn held<T: ?Sized + Send + Sync + 'static>(model: Weak<T>, device: &Device) -> Self {
        Self { is_held: Arc::new(move || model.strong_count() > 0), device: device.clone() }
    }

    /// Waits until nobody holds it any more, and gives it back.
    ///
    /// # Errors
    /// `Internal` where that panicked, `FailedPrecondition` where a card's driver refuses.
    pub async fn given_back(self) -> Result<()> {
        // The engine's thread is the last to let go, and it tells nobody.
        while (self.is_held)() {
            tokio::time::sleep(LOOK).await;
        }
        let given = tokio::task::spawn_blocking(move || {
            give_back_freed_memory();
            device::give_back_memory(&self.device)
        });
        given.await.map_err(|error| Error::internal(format!("giving memory back panicked: {error}")))?
    }
}

/// Has the allocator give back what was freed, although it was told to keep it for the next step's tensors
/// ([`keep_freed_memory`](crate::kernels::machine::keep_freed_memory)): nobody needs a model's again. It looks at all that
/// was freed, and who allocates meanwhile waits for a part of it, so it is not for an engine's thread.
fn give_back_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        // SAFETY: glibc's own function, safe to call on any thread at any time (malloc_trim(3), ATTRIBUTES).
        let _given = unsafe { libc::malloc_trim(0) };
    }
}
