//! Chosen tokens on an NVIDIA card: copied to the host without a wait, and put among the next step's ids.

use std::cell::RefCell;

use candle_core::{
    DType, Tensor,
    cuda_backend::cudarc::driver::{CudaEvent, CudaStream, DriverError, PinnedHostSlice, result::memcpy_dtoh_async},
};

use super::launches;
use crate::{
    error::{Error, Result},
    kernels::cuda::{Module, card, empty, module, pointer, uploaded},
};

static MODULE: Module = module!("follow");

/// Buffers of pinned memory that are kept: a step's while it is read, and the next one's.
const SPARE: usize = 2;
/// Numbers that a buffer has room for at the least.
const FEWEST: usize = 1024;

thread_local! {
    static PINNED: RefCell<Vec<Pinned>> = const { RefCell::new(Vec::new()) };
}

/// Memory of the host that a card writes by itself.
struct Pinned {
    memory: PinnedHostSlice<u32>,
    /// Has passed when what was queued to write there has.
    written: CudaEvent,
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // The card may still be writing. Where it cannot say so any more, it writes no more either.
        let _gone = self.written.synchronize();
    }
}

/// Numbers on their way to the host.
pub(super) struct Fetched {
    pinned: Pinned,
    len: usize,
}

/// Queues a copy of u32 `[len]` to the host.
pub(super) fn fetch(numbers: &Tensor) -> Result<Fetched> {
    let (stream, len) = (card(numbers)?.cuda_stream(), numbers.dims1()?);
    let from = pointer(numbers, DType::U32)?;
    let mut pinned = taken(&stream, len)?;
    let to = pinned.memory.as_mut_slice().map_err(error)?;
    // SAFETY: there are `len` numbers at `from`, which the order of the stream keeps until they were copied; nobody reads or frees
    // `to` before the event behind the copy has passed.
    unsafe { memcpy_dtoh_async(&mut to[..len], from, stream.cu_stream()) }.map_err(error)?;
    pinned.written.record(&stream).map_err(error)?;
    Ok(Fetched { pinned, len })
}

/// A buffer that nobody writes or reads, with room for so many numbers.
fn taken(stream: &CudaStream, len: usize) -> Result<Pinned> {
    let context = stream.context();
    let kept = PINNED.with_borrow_mut(|kept| {
        let fits = |pinned: &Pinned| pinned.memory.len() >= len && pinned.memory.context() == context;
        kept.iter().position(fits).map(|at| kept.swap_remove(at))
    });
    if let Some(pinned) = kept {
        return Ok(pinned);
    }
    // SAFETY: what is in the memory is written before anybody reads it. Without flags the host reads it through its caches.
    let mut memory =
        unsafe { context.alloc_pinned_with_flags(len.next_power_of_two().max(FEWEST), 0) }.map_err(error)?;
    memory.as_mut_slice().map_err(error)?.fill(0);
    Ok(Pinned { memory, written: context.new_event(None).map_err(error)? })
}

impl Fetched {
    /// Waits for them.
    pub(super) fn wait(self) -> Result<Vec<u32>> {
        let Self { pinned, len } = self;
        pinned.written.synchronize().map_err(error)?;
        let numbers = pinned.memory.as_slice().map_err(error)?[..len].to_vec();
        PINNED.with_borrow_mut(|kept| {
            kept.push(pinned);
            if kept.len() > SPARE {
                kept.remove(0);
            }
        });
        Ok(numbers)
    }
}

/// As [`follow`](super::follow), of as many places as ids, each among the chosen.
pub(super) fn follow(ids: &[u32], places: &[u32], chosen: &Tensor) -> Result<Tensor> {
    let card = card(chosen)?;
    let out = empty(card, ids.len(), DType::U32)?;
    if ids.is_empty() {
        return Ok(out);
    }
    let (known, places) = (uploaded(card, ids)?, uploaded(card, places)?);
    let [known, places] = [pointer(&known, DType::U32)?, pointer(&places, DType::U32)?];
    let call = launches::follow([known, places, pointer(chosen, DType::U32)?, pointer(&out, DType::U32)?], ids.len());
    // SAFETY: the kernel's arguments, each with a number an id; every place is one of the chosen.
    unsafe { MODULE.launch(card, &call) }?;
    Ok(out)
}

fn error(error: DriverError) -> Error {
    Error::internal(format!("the card: {error}"))
}
