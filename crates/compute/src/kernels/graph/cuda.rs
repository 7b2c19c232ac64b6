//! Launches on an NVIDIA card, recorded as CUDA graphs.
//!
//! What a step allocates on its way becomes part of the graph: the stream's pool is recorded too, and all graphs of a stream, which run
//! one after another, share the memory behind theirs.

use std::{ffi::c_void, sync::Arc};

use candle_core::{
    CudaDevice, Device,
    cuda_backend::cudarc::{
        cublas::{result::set_stream, sys::cublasSetWorkspace_v2},
        driver::{
            CudaGraph, CudaSlice, DevicePtr, DriverError,
            sys::{CUgraphInstantiate_flags, CUstreamCaptureMode},
        },
    },
};

use crate::{
    error::{Error, Result},
    kernels::cuda::Arrays,
};

/// What NVIDIA recommends for cuBLAS on cards of 9.0, and more than the older ones want.
const WORKSPACE_BYTES: usize = 32 << 20;

/// As [`Recorder`](super::Recorder).
pub(super) struct Recorder {
    card: CudaDevice,
    workspace: Arc<Workspace>,
}

/// Memory for cuBLAS that stays where it is: what it takes by itself while a step is recorded would be that graph's alone, and
/// its algorithms would be chosen by other room than those of steps that are not recorded.
struct Workspace {
    card: CudaDevice,
    _memory: CudaSlice<u8>,
}

impl Workspace {
    fn new(card: &CudaDevice) -> Result<Self> {
        // SAFETY: only cuBLAS reads it, what it has written before.
        let memory: CudaSlice<u8> = unsafe { card.alloc(WORKSPACE_BYTES) }?;
        let stream = card.cuda_stream();
        let (at, _synced) = memory.device_ptr(&stream);
        let handle = *card.cublas_handle().handle();
        // SAFETY: the memory has that many bytes, and goes after `drop` has taken it from cuBLAS.
        unsafe { cublasSetWorkspace_v2(handle, at as *mut c_void, WORKSPACE_BYTES) }
            .result()
            .map_err(|error| Error::internal(format!("cuBLAS: {error:?}")))?;
        drop(_synced);
        Ok(Self { card: card.clone(), _memory: memory })
    }
}

impl Drop for Workspace {
    fn drop(&mut self) {
        let (blas, stream) = (self.card.cublas_handle(), self.card.cuda_stream());
        // SAFETY: both live. Setting the stream gives cuBLAS its own workspace back; where it fails, the card is gone.
        let _gone = unsafe { set_stream(*blas.handle(), stream.cu_stream().cast()) };
    }
}

/// As [`Recording`](super::Recording).
pub(super) struct Recording {
    graph: CudaGraph,
    arrays: Arrays,
    /// Which the graph reads and writes.
    _workspace: Arc<Workspace>,
}

// SAFETY: what is not `Send` are the driver's handles of the graph, which any thread may use, one at a time: `&self` is never shared,
// since this is not `Sync`.
unsafe impl Send for Recording {}

impl Recorder {
    pub(super) fn of(card: &CudaDevice) -> Result<Self> {
        Ok(Self { card: card.clone(), workspace: Arc::new(Workspace::new(card)?) })
    }

    pub(super) fn record(&self, step: &mut dyn FnMut() -> Result<()>) -> Result<Recording> {
        // candle sends the shapes of some operations; those stay where they are too.
        let _shapes_stay = self.card.enable_cuda_graph_htod_cache();
        let stream = self.card.cuda_stream();
        let mut arrays = Arrays::on(&Device::Cuda(self.card.clone()));
        arrays.record(&mut *step)?;
        arrays.seal()?;
        stream.synchronize().map_err(error)?;
        // What other threads do with other streams is none of this one's.
        stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).map_err(error)?;
        let queued = arrays.record(step);
        let graph = stream.end_capture(CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH);
        if queued.is_err() || graph.is_err() {
            // What was freed while the recording was broken left an error behind, which is nobody else's.
            let _noted = stream.context().check_err();
        }
        queued?;
        let graph =
            graph.map_err(error)?.ok_or_else(|| Error::internal("the step that was to be recorded was none"))?;
        graph.upload().map_err(error)?;
        Ok(Recording { graph, arrays, _workspace: Arc::clone(&self.workspace) })
    }
}

impl Recording {
    pub(super) fn write(&mut self, was: &[u32], now: &[u32]) -> Result<()> {
        self.arrays.write(was, now)
    }

    pub(super) fn replay(&self) -> Result<()> {
        self.graph.launch().map_err(error)
    }
}

fn error(error: DriverError) -> Error {
    Error::internal(format!("a graph: {error}"))
}
