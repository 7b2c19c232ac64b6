//! The devices beside the CPU that this program can compute on: which there are, and how one is opened.
//!
//! Without the features `cuda` and `metal` there are none, and the errors say what to build.

use std::sync::atomic::{AtomicBool, Ordering};

use candle_core::Device;

use crate::error::{Code, Error, Result};

/// An NVIDIA card.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CardFacts {
    /// Its number, from 0.
    pub ordinal: usize,
    /// What it is called.
    pub name: String,
    /// What its instructions are of, `(9, 0)` for an H200.
    pub compute_capability: (i32, i32),
    /// Memory that nobody has taken.
    pub free_bytes: usize,
    /// All memory.
    pub total_bytes: usize,
}

static BATCH_INVARIANT: AtomicBool = AtomicBool::new(false);

/// Has products on cards made so that a row's bits do not depend on what else is computed with it, as they never do on the
/// CPU: cuBLAS chooses an algorithm by the number of rows. Before weights are loaded.
pub fn make_batch_invariant() {
    BATCH_INVARIANT.store(true, Ordering::Relaxed);
}

/// Whether [`make_batch_invariant`] was called.
#[must_use]
pub fn is_batch_invariant() -> bool {
    BATCH_INVARIANT.load(Ordering::Relaxed)
}

#[cfg(not(all(feature = "cuda", feature = "metal")))]
fn not_built(feature: &str) -> Error {
    let why = format!("this program was built without it: build with `--features {feature}` (docs/gpu.md)");
    Error::new(Code::FailedPrecondition, why)
}

/// The NVIDIA cards of this machine.
///
/// # Errors
/// `FailedPrecondition` that names what is missing: the feature, a library, a driver, a card.
pub fn cuda_cards() -> Result<Vec<CardFacts>> {
    #[cfg(feature = "cuda")]
    {
        super::cuda::cards()
    }
    #[cfg(not(feature = "cuda"))]
    {
        Err(not_built("cuda"))
    }
}

/// Opens the NVIDIA card with this number. Everything on it is queued in one order; one thread at a time may use it.
///
/// # Errors
/// As [`cuda_cards`]; `FailedPrecondition` where there is no such card, or one that is too old.
pub fn open_cuda(ordinal: usize) -> Result<Device> {
    #[cfg(feature = "cuda")]
    {
        super::cuda::open(ordinal)
    }
    #[cfg(not(feature = "cuda"))]
    {
        Err(not_built("cuda").context(format_args!("card {ordinal}")))
    }
}

/// Opens Apple's GPU.
///
/// # Errors
/// `FailedPrecondition` where the program was built without it, or there is none.
pub fn open_metal() -> Result<Device> {
    #[cfg(feature = "metal")]
    {
        Device::new_metal(0).map_err(|error| Error::new(Code::FailedPrecondition, error.to_string()))
    }
    #[cfg(not(feature = "metal"))]
    {
        Err(not_built("metal"))
    }
}

/// Free and total bytes of a device's own memory; none of the CPU, or where nobody says.
///
/// # Errors
/// `FailedPrecondition` where the driver does not say.
pub fn memory(device: &Device) -> Result<Option<(usize, usize)>> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(card) => super::cuda::free_memory(card).map(Some),
        _ => Ok(None),
    }
}

/// Gives back what was freed of a device's memory, once nothing on it runs any more.
///
/// # Errors
/// `FailedPrecondition` where the driver refuses.
pub fn give_back_memory(device: &Device) -> Result<()> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(card) => super::cuda::give_back_memory(card),
        _ => Ok(()),
    }
}

#[cfg(all(test, not(any(feature = "cuda", feature = "metal"))))]
mod tests {
    use super::*;

    #[test]
    fn a_program_without_the_features_says_what_to_build() {
        for (error, feature) in [
            (cuda_cards().unwrap_err(), "--features cuda"),
            (open_cuda(0).unwrap_err(), "--features cuda"),
            (open_metal().unwrap_err(), "--features metal"),
        ] {
            assert_eq!(error.code, Code::FailedPrecondition);
            assert!(error.message.contains(feature), "{error}");
        }
        assert_eq!(memory(&Device::Cpu).unwrap(), None);
        give_back_memory(&Device::Cpu).unwrap();
    }
}
