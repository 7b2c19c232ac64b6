//! Launches that are recorded once and then queued with one call. A launch costs the host some microseconds, and a step of a model
//! is hundreds of them.
//!
//! What was recorded reads and writes the same places each time. What the host sends while it is recorded gets a place of its own, in which
//! later steps write theirs ([`Recording::write`]); other inputs and the results stand in tensors that stay ([`copy`]). Only
//! NVIDIA's cards record anything (CUDA graphs).

#[cfg(feature = "cuda")]
mod cuda;

use candle_core::{Device, Tensor};

use crate::error::Result;

/// Records what is queued on one device.
pub struct Recorder {
    #[cfg(feature = "cuda")]
    on_card: cuda::Recorder,
    #[cfg(not(feature = "cuda"))]
    never: std::convert::Infallible,
}

/// What was queued, to be queued again.
pub struct Recording {
    #[cfg(feature = "cuda")]
    on_card: cuda::Recording,
    #[cfg(not(feature = "cuda"))]
    never: std::convert::Infallible,
}

impl Recorder {
    /// Of this device; none where nothing can be recorded.
    ///
    /// # Errors
    /// `Internal` where the device has no room for what libraries work with.
    pub fn of(device: &Device) -> Result<Option<Self>> {
        match device {
            #[cfg(feature = "cuda")]
            Device::Cuda(card) => Ok(Some(Self { on_card: cuda::Recorder::of(card)? })),
            _ => Ok(None),
        }
    }

    /// Records what `step` queues. It runs twice: once for all that happens the first time alone, over arrays that hold zeros, and
    /// once without anything being computed. All that it makes must be gone when it returns; what is to be kept is [copied](copy).
    ///
    /// # Errors
    /// `step`'s; `Internal` where it waits for the device, or sends something else the second time.
    pub fn record(&self, step: &mut dyn FnMut() -> Result<()>) -> Result<Recording> {
        #[cfg(feature = "cuda")]
        {
            Ok(Recording { on_card: self.on_card.record(step)? })
        }
        #[cfg(not(feature = "cuda"))]
        {
            let _unused = step;
            match self.never {}
        }
    }
}

impl Recording {
    /// Writes `now` in the place of what `was` sent when it was recorded. It may be shorter; the rest keeps what was there.
    ///
    /// # Errors
    /// `Internal` where nothing of the kind was sent.
    pub fn write(&mut self, was: &[u32], now: &[u32]) -> Result<()> {
        #[cfg(feature = "cuda")]
        {
            self.on_card.write(was, now)
        }
        #[cfg(not(feature = "cuda"))]
        {
            let _unused = (was, now);
            match self.never {}
        }
    }

    /// Queues all of it behind what was queued before.
    ///
    /// # Errors
    /// `Internal` where the device refuses.
    pub fn replay(&self) -> Result<()> {
        #[cfg(feature = "cuda")]
        {
            self.on_card.replay()
        }
        #[cfg(not(feature = "cuda"))]
        {
            match self.never {}
        }
    }
}

/// Queues a copy of all rows of `from` to the first ones of `to`, which are as wide.
///
/// # Errors
/// `Internal` where they do not fit.
pub fn copy(from: &Tensor, to: &Tensor) -> Result<()> {
    Ok(to.slice_set(&from.contiguous()?, 0, 0)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_records_nothing() {
        assert!(Recorder::of(&Device::Cpu).unwrap().is_none());
    }

    #[test]
    fn a_copy_takes_the_first_rows_and_leaves_the_others() {
        let to = Tensor::new(&[[1u32, 2], [3, 4], [5, 6]], &Device::Cpu).unwrap();
        copy(&Tensor::new(&[[7u32, 8]], &Device::Cpu).unwrap(), &to).unwrap();
        assert_eq!(to.to_vec2::<u32>().unwrap(), [[7, 8], [3, 4], [5, 6]]);
        assert!(copy(&Tensor::zeros((4, 2), candle_core::DType::U32, &Device::Cpu).unwrap(), &to).is_err());
    }
}
