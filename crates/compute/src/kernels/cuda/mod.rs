//! What the kernels for NVIDIA cards have in common: how a card is opened, how its kernels are found and launched, and how
//! tensors on it are read and made.
//!
//! Everything on a card happens in the order of one stream, which belongs to its [`CudaDevice`](candle_core::CudaDevice): work
//! is queued and not waited for, until the host asks for numbers. So a tensor may be dropped as soon as what reads it was queued.

#[cfg(all(test, unix))]
pub(crate) mod host_twin;
mod launch;
#[cfg(feature = "cuda")]
mod module;
mod norm;
#[cfg(feature = "cuda")]
mod open;
#[cfg(feature = "cuda")]
mod tensors;
#[cfg(any(test, feature = "cuda"))]
mod uploads;

pub(crate) use launch::{Arg, Call, Launch};
#[cfg(feature = "cuda")]
pub(crate) use module::{Module, module};
pub(in crate::kernels) use norm::NormLaunch;
#[cfg(feature = "cuda")]
pub(in crate::kernels) use norm::normed;
#[cfg(feature = "cuda")]
pub(in crate::kernels) use open::{cards, free_memory, give_back_memory, open};
#[cfg(feature = "cuda")]
pub(crate) use tensors::{card, empty, pointer, rows};
#[cfg(feature = "cuda")]
pub(in crate::kernels) use uploads::Arrays;

/// These numbers on the card, `[numbers.len()]`. Nobody may write there.
///
/// # Errors
/// `Internal` where the card has no room.
#[cfg(feature = "cuda")]
pub(crate) fn uploaded(card: &candle_core::CudaDevice, numbers: &[u32]) -> crate::error::Result<candle_core::Tensor> {
    uploads::uploaded(&candle_core::Device::Cuda(card.clone()), numbers)
}
