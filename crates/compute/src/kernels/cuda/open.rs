//! From a card's number to a device: what must be installed, what is set once, how much memory there is.

use std::ffi::{CStr, c_char, c_int, c_void};

use candle_core::{
    CudaDevice, Device,
    cuda_backend::cudarc::driver::{
        CudaContext, DriverError, result,
        sys::{CUmemPool_attribute, CUmemoryPool, cuDriverGetVersion},
    },
};

use crate::{
    error::{Code, Error, Result},
    kernels::device::CardFacts,
};

/// What a program with cards opens when it is told to use one, and who brings it.
const LIBRARIES: [(&CStr, &str); 4] = [
    (c"libcuda.so.1", "NVIDIA's driver"),
    (c"libcublas.so.13", "CUDA 13's cuBLAS (the PyPI package nvidia-cublas)"),
    (c"libcublasLt.so.13", "CUDA 13's cuBLAS (the PyPI package nvidia-cublas)"),
    (c"libcurand.so.10", "CUDA 13's cuRAND (the PyPI package nvidia-curand)"),
];
/// The CUDA version that the kernels are compiled for, as drivers number them: a driver of an older one runs none of them.
const CUDA_VERSION: c_int = 13_000;
/// The oldest compute capability that the kernels are compiled for.
const OLDEST: (i32, i32) = (8, 0);

fn failed(why: impl Into<String>) -> Error {
    Error::new(Code::FailedPrecondition, why)
}

fn of_driver(what: &str) -> impl Fn(DriverError) -> Error + '_ {
    move |error| failed(format!("the CUDA driver: {what}: {error}"))
}

/// Opens the card with this number, with a stream of its own.
///
/// # Errors
/// `FailedPrecondition` that names the library, the driver or the card that is missing or too old.
pub(in crate::kernels) fn open(ordinal: usize) -> Result<Device> {
    let count = ready()?;
    if ordinal >= count {
        let last = count.saturating_sub(1);
        return Err(failed(format!("there is no card {ordinal}: this machine has {count}, numbered 0 to {last}")));
    }
    let context = CudaContext::new(ordinal).map_err(of_driver("opening the card"))?;
    let capability = context.compute_capability().map_err(of_driver("asking the card's compute capability"))?;
    if capability < OLDEST {
        let (name, (major, minor)) = (context.name().unwrap_or_default(), capability);
        return Err(failed(format!(
            "card {ordinal}, {name}, has compute capability {major}.{minor}; the kernels need 8.0 or later"
        )));
    }
    let device = Device::new_cuda_with_stream(ordinal)
        .map_err(|error| failed(format!("card {ordinal} cannot be opened: {error}")))?;
    let card = device.as_cuda_device()?;
    // SAFETY: all work of this device is queued on its one stream, whichever thread does it: what is freed, read or written is
    // in that order.
    unsafe { card.disable_event_tracking() };
    keep_freed_memory(card).map_err(of_driver("setting up the memory pool"))?;
    Ok(device)
}

/// All cards, as far as the driver tells.
///
/// # Errors
/// `FailedPrecondition` that names what is missing.
pub(in crate::kernels) fn cards() -> Result<Vec<CardFacts>> {
    (0..ready()?)
        .map(|ordinal| {
            let told = || -> Result<_, DriverError> {
                let context = CudaContext::new(ordinal)?;
                let (free, total) = context.mem_get_info()?;
                let (major, minor) = context.compute_capability()?;
                let name = context.name()?;
                Ok(CardFacts {
                    ordinal,
                    name,
                    compute_capability: (major, minor),
                    free_bytes: free,
                    total_bytes: total,
                })
            };
            told().map_err(of_driver("asking about a card"))
        })
        .collect()
}

/// Bytes of a card's memory that are free, and all.
///
/// # Errors
/// `FailedPrecondition` where the driver does not say.
pub(in crate::kernels) fn free_memory(card: &CudaDevice) -> Result<(usize, usize)> {
    card.cuda_stream().context().mem_get_info().map_err(of_driver("asking the card's memory"))
}

/// Gives back what was freed of a card's memory.
///
/// # Errors
/// `FailedPrecondition` where the driver refuses.
pub(in crate::kernels) fn give_back_memory(card: &CudaDevice) -> Result<()> {
    let stream = card.cuda_stream();
    let trim = || -> Result<(), DriverError> {
        stream.synchronize()?;
        let pool = pool(card)?;
        // SAFETY: the card's own pool, which lives as long as its context does.
        unsafe { result::mem_pool::trim_to(pool, 0) }
    };
    trim().map_err(of_driver("giving memory back"))
}

/// Freed memory stays with the process: without this every wait for the card gives it back, and every step asks for it anew.
fn keep_freed_memory(card: &CudaDevice) -> Result<(), DriverError> {
    let mut kept = u64::MAX;
    let threshold = CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
    let pool = pool(card)?;
    // SAFETY: the card's own pool; the attribute is a cuuint64_t, which outlives the call.
    unsafe { result::mem_pool::set_attribute(pool, threshold, (&raw mut kept).cast()) }
}

fn pool(card: &CudaDevice) -> Result<CUmemoryPool, DriverError> {
    let stream = card.cuda_stream();
    stream.context().bind_to_thread()?;
    // SAFETY: a device that the driver has given.
    unsafe { result::device::get_default_mem_pool(stream.context().cu_device()) }
}

/// How many cards there are, once everything is known to be there that using one takes: what is missing would be a panic in
/// those who use it.
fn ready() -> Result<usize> {
    if let Some((library, from)) = LIBRARIES.iter().find(|(library, _)| !can_be_opened(library)) {
        let library = library.to_string_lossy();
        return Err(failed(format!("{library} is not on this machine (see LD_LIBRARY_PATH); it comes with {from}")));
    }
    result::init().map_err(of_driver("starting it (is there a card?)"))?;
    let mut version = 0;
    // SAFETY: writes one int.
    unsafe { cuDriverGetVersion(&raw mut version) }.result().map_err(of_driver("asking its version"))?;
    if version < CUDA_VERSION {
        return Err(failed(format!(
            "the NVIDIA driver runs CUDA {}.{}, this program needs 13.0: install driver 580 or later",
            version / 1000,
            version % 1000 / 10
        )));
    }
    let count = CudaContext::device_count().map_err(of_driver("counting cards"))?;
    usize::try_from(count).ok().filter(|&count| count > 0).ok_or_else(|| failed("this machine has no NVIDIA card"))
}

/// Whether the dynamic loader finds a library. It stays open, for those who open it next.
fn can_be_opened(library: &CStr) -> bool {
    unsafe extern "C" {
        fn dlopen(file: *const c_char, flags: c_int) -> *mut c_void;
    }
    const LAZY: c_int = 1;
    // SAFETY: a name that ends; loading NVIDIA's libraries runs nothing but their own initialization.
    !unsafe { dlopen(library.as_ptr(), LAZY) }.is_null()
}
