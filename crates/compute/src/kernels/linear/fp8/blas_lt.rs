//! Products of eight-bit floats by cuBLASLt, one handle, one workspace and one table of algorithms a card.
//!
//! To cuBLASLt, which counts columns first, `y = x Wᵀ` is `yᵀ = (Wᵀ)ᵀ xᵀ`: the weight is what is transposed and the inputs are not,
//! which is the one form that cards of compute capability 8.9 and 9.0 have for these numbers. Sums are float32, and so is what is
//! written; "fast accumulation", which keeps fewer bits of a sum, is off. Which algorithm is taken is asked once a shape.
//!
//! Queueing a product neither waits nor takes memory: the workspace is the same for all, as they follow each other on one
//! stream.

use std::{
    ffi::c_void,
    ptr,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use candle_core::{
    CudaDevice,
    cuda_backend::{
        DeviceId,
        cudarc::{
            cublaslt::{
                result::{
                    self, CublasError, create_handle, create_matmul_desc, create_matmul_pref, create_matrix_layout,
                    destroy_handle, destroy_matmul_desc, destroy_matmul_pref, destroy_matrix_layout,
                    get_matmul_algo_heuristic, set_matmul_desc_attribute, set_matmul_pref_attribute,
                },
                sys::{
                    cublasComputeType_t, cublasLtHandle_t, cublasLtMatmulAlgo_t, cublasLtMatmulDesc_t,
                    cublasLtMatmulDescAttributes_t, cublasLtMatmulPreference_t, cublasLtMatmulPreferenceAttributes_t,
                    cublasLtMatrixLayout_t, cudaDataType,
                },
            },
            driver::{CudaSlice, CudaStream, DevicePtr},
        },
    },
};

use super::{refused, remembered::Remembered};
use crate::error::{Error, Result};

/// What NVIDIA advises for Hopper; no algorithm that wants more is taken.
const WORKSPACE_BYTES: usize = 32 << 20;
/// Shapes whose algorithms are remembered: a model's weights have a handful, prompts a few hundred numbers of rows.
const MOST_PLANS: usize = 4096;
/// What every address is a multiple of, unless cuBLASLt is told otherwise.
const ALIGNMENT: u64 = 256;
/// cuBLAS's name of a matrix that is transposed.
const TRANSPOSED: i32 = 1;

/// The sides of a product `[rows, inputs] × [outputs, inputs]ᵀ`, all multiples of 16.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Shape {
    pub(super) outputs: usize,
    pub(super) inputs: usize,
    pub(super) rows: usize,
}

/// What multiplies on a card.
pub(super) struct Products {
    plans: Mutex<Remembered<Shape, Plan>>,
    description: Description,
    handle: Handle,
    workspace: CudaSlice<u8>,
}

/// Of the cards that have weights of this kind.
static CARDS: Mutex<Vec<(DeviceId, Weak<Products>)>> = Mutex::new(Vec::new());

impl Products {
    /// Those of a card, made with the first weight and gone with the last.
    ///
    /// # Errors
    /// `FailedPrecondition` where cuBLASLt cannot be started, `Internal` where the card has no room.
    pub(super) fn of(card: &CudaDevice) -> Result<Arc<Self>> {
        // What is in there is whole or not there, so a lock that a panic left behind is as good as any.
        let mut cards = CARDS.lock().unwrap_or_else(PoisonError::into_inner);
        cards.retain(|(_, products)| products.strong_count() > 0);
        if let Some(known) = cards.iter().find(|(id, _)| *id == card.id()).and_then(|(_, products)| products.upgrade())
        {
            return Ok(known);
        }
        let made = Arc::new(Self::new(card)?);
        cards.push((card.id(), Arc::downgrade(&made)));
        Ok(made)
    }

    fn new(card: &CudaDevice) -> Result<Self> {
        let failed = |error| refused(format!("cuBLASLt: {error}"));
        let handle = Handle::new(card.cuda_stream())?;
        let description = Description::new().map_err(failed)?;
        // SAFETY: products write what they read of it.
        let workspace = unsafe { card.alloc(WORKSPACE_BYTES)? };
        Ok(Self { plans: Mutex::new(Remembered::new(MOST_PLANS)), description, handle, workspace })
    }

    /// Finds out how products of a shape are made.
    ///
    /// # Errors
    /// `FailedPrecondition` where the card or cuBLASLt has no way.
    pub(super) fn prepare(&self, shape: Shape) -> Result<()> {
        self.handle.bind()?;
        let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        plans.get_or_make(shape, |shape| self.plan(*shape)).map(drop)
    }

    /// Queues `x Wᵀ`.
    ///
    /// # Errors
    /// As [`prepare`](Self::prepare); `Internal` where cuBLASLt refuses.
    ///
    /// # Safety
    /// The addresses, multiples of 256, must be of contiguous `weight` `[outputs, inputs]` and `x` `[rows, inputs]` in E4M3, and of
    /// float32 `y` `[rows, outputs]`, until all that was queued so far has run.
    pub(super) unsafe fn queue(&self, shape: Shape, weight: u64, x: u64, y: u64) -> Result<()> {
        debug_assert!([weight, x, y].iter().all(|address| address.is_multiple_of(ALIGNMENT)), "{shape:?}");
        self.handle.bind()?;
        let stream = &self.handle.stream;
        let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        let plan = plans.get_or_make(shape, |shape| self.plan(*shape))?;
        let (workspace, _synced) = self.workspace.device_ptr(stream);
        let (alpha, beta) = (1.0f32, 0.0f32);
        // SAFETY: the caller's promise; the workspace has as many bytes as is said, and only this stream uses it; the scalars are
        // float32, as the description has it, and outlive the call.
        unsafe {
            result::matmul(
                self.handle.raw,
                self.description.0,
                address_of(&alpha),
                address_of(&beta),
                weight as *const c_void,
                plan.weight.0,
                x as *const c_void,
                plan.x.0,
                y as *const c_void,
                plan.y.0,
                y as *mut c_void,
                plan.y.0,
                ptr::from_ref(&plan.algorithm),
                workspace as *mut c_void,
                WORKSPACE_BYTES,
                stream.cu_stream().cast(),
            )
        }
        .map_err(|error| Error::internal(format!("cuBLASLt, {shape:?}: {error}")))
    }

    fn plan(&self, shape: Shape) -> Result<Plan> {
        self.try_plan(shape).map_err(|error| {
            let Shape { outputs, inputs, rows } = shape;
            refused(format!(
                "cuBLASLt has no product of eight-bit floats [{rows}, {inputs}] × [{inputs}, {outputs}] for this card: {error}"
            ))
        })
    }

    fn try_plan(&self, Shape { outputs, inputs, rows }: Shape) -> Result<Plan, CublasError> {
        let eight_bits = cudaDataType::CUDA_R_8F_E4M3;
        let weight = MatrixLayout::new(eight_bits, inputs, outputs)?;
        let x = MatrixLayout::new(eight_bits, inputs, rows)?;
        let y = MatrixLayout::new(cudaDataType::CUDA_R_32F, outputs, rows)?;
        let preference = Preference::new()?;
        // SAFETY: all were made above or with `self`, and none is destroyed yet.
        let found = unsafe {
            get_matmul_algo_heuristic(self.handle.raw, self.description.0, weight.0, x.0, y.0, y.0, preference.0)
        }?;
        Ok(Plan { weight, x, y, algorithm: found.algo })
    }
}

/// How products of one shape are made.
struct Plan {
    weight: MatrixLayout,
    x: MatrixLayout,
    y: MatrixLayout,
    algorithm: cublasLtMatmulAlgo_t,
}

struct Handle {
    raw: cublasLtHandle_t,
    stream: Arc<CudaStream>,
}

// SAFETY: any thread may use a handle of cuBLASLt, several at once too.
unsafe impl Send for Handle {}
// SAFETY: as above.
unsafe impl Sync for Handle {}

impl Handle {
    fn new(stream: Arc<CudaStream>) -> Result<Self> {
        bind(&stream)?;
        let raw = create_handle().map_err(|error| refused(format!("cuBLASLt cannot be started: {error}")))?;
        Ok(Self { raw, stream })
    }

    /// Makes the card this thread's: cuBLASLt asks for the thread's own.
    fn bind(&self) -> Result<()> {
        bind(&self.stream)
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // Nobody could do anything about a failure.
        let _ = self.bind();
        // SAFETY: it was made by `new`, and nobody has it any more.
        let _ = unsafe { destroy_handle(self.raw) };
    }
}

/// What is multiplied with what, apart from its shape.
struct Description(cublasLtMatmulDesc_t);

// SAFETY: a description on the host, which nobody changes once it is made.
unsafe impl Send for Description {}
// SAFETY: as above.
unsafe impl Sync for Description {}

impl Description {
    fn new() -> Result<Self, CublasError> {
        let sums = cublasComputeType_t::CUBLAS_COMPUTE_32F;
        let made = Self(create_matmul_desc(sums, cudaDataType::CUDA_R_32F)?);
        let attribute = cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSA;
        // SAFETY: it was just made; the attribute is an int32_t.
        unsafe { set_matmul_desc_attribute(made.0, attribute, address_of(&TRANSPOSED), size_of::<i32>()) }?;
        Ok(made)
    }
}

impl Drop for Description {
    fn drop(&mut self) {
        // SAFETY: it was made by `new`, and nobody has it any more.
        let _ = unsafe { destroy_matmul_desc(self.0) };
    }
}

/// A matrix of so many rows and columns, one column after another.
struct MatrixLayout(cublasLtMatrixLayout_t);

// SAFETY: a description on the host, which nobody changes once it is made.
unsafe impl Send for MatrixLayout {}

impl MatrixLayout {
    fn new(dtype: cudaDataType, rows: usize, columns: usize) -> Result<Self, CublasError> {
        create_matrix_layout(dtype, rows as u64, columns as u64, rows as i64).map(Self)
    }
}

impl Drop for MatrixLayout {
    fn drop(&mut self) {
        // SAFETY: it was made by `new`, and nobody has it any more.
        let _ = unsafe { destroy_matrix_layout(self.0) };
    }
}

/// What an algorithm may take.
struct Preference(cublasLtMatmulPreference_t);

impl Preference {
    fn new() -> Result<Self, CublasError> {
        let made = Self(create_matmul_pref()?);
        let attribute = cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
        let bytes = WORKSPACE_BYTES as u64;
        // SAFETY: it was just made; the attribute is a uint64_t.
        unsafe { set_matmul_pref_attribute(made.0, attribute, address_of(&bytes), size_of::<u64>()) }?;
        Ok(made)
    }
}

impl Drop for Preference {
    fn drop(&mut self) {
        // SAFETY: it was made by `new`, and nobody has it any more.
        let _ = unsafe { destroy_matmul_pref(self.0) };
    }
}

fn bind(stream: &CudaStream) -> Result<()> {
    stream.context().bind_to_thread().map_err(|error| Error::internal(error.to_string()))
}

fn address_of<T>(value: &T) -> *const c_void {
    ptr::from_ref(value).cast()
}
