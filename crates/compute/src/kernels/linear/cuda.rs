//! Linear on NVIDIA cards over a weight of plain numbers: cuBLAS, with inputs in the weight's type and float32 sums, which
//! adds to what the result begins with.
//!
//! Which algorithm cuBLAS takes, and so the order of a sum, depends on the number of rows: a row's last bits may depend on its
//! batch. Where that is ruled out ([`is_batch_invariant`]), products are always of [`INVARIANT_ROWS`] rows, filled up with
//! zeros: one algorithm, in which a row's sums do not see the others.

use std::ffi::c_int;

use candle_core::{
    CudaDevice, DType, Tensor,
    cuda_backend::cudarc::cublas::{
        result::gemm_ex,
        sys::{cublasComputeType_t, cublasGemmAlgo_t, cublasOperation_t, cudaDataType},
    },
};

use super::Inputs;
use crate::{
    error::{Error, Result},
    kernels::{
        cuda::{card, empty, pointer},
        device::is_batch_invariant,
    },
};

/// Rows of every product where results may not depend on the batch. Reading a weight of two bytes a number for 64 rows takes
/// longer than multiplying with it on every card that this is compiled for, so decoding pays nothing; prompts read it again
/// for every 64 tokens.
const INVARIANT_ROWS: usize = 64;

/// `x Wᵀ + bias + onto`, float32 in and out; `weight` is `[out, in]`.
pub(super) fn linear(x: Inputs<'_>, weight: &Tensor, bias: Option<&Tensor>, onto: Option<&Tensor>) -> Result<Tensor> {
    let ((m, k), n) = (x.dims()?, weight.dims()[0]);
    let x = x.tensor()?.to_dtype(weight.dtype())?.contiguous()?;
    if m == 0 || n == 0 || k == 0 {
        return match begin(m, n, bias, onto)? {
            Some(begun) => Ok(begun),
            None => Ok(Tensor::zeros((m, n), DType::F32, x.device())?),
        };
    }
    if !is_batch_invariant() {
        let begun = begin(m, n, bias, onto)?;
        return multiply(&x, weight, begun, m);
    }
    let filled = m.next_multiple_of(INVARIANT_ROWS);
    let fill = |rows: &Tensor| rows.pad_with_zeros(0, 0, filled - m);
    let onto = onto.map(fill).transpose()?;
    let begun = begin(filled, n, bias, onto.as_ref())?;
    Ok(multiply(&fill(&x)?, weight, begun, INVARIANT_ROWS)?.narrow(0, 0, m)?)
}

/// What the product is added to, in a tensor of its own; none is zeros.
fn begin(m: usize, n: usize, bias: Option<&Tensor>, onto: Option<&Tensor>) -> Result<Option<Tensor>> {
    Ok(match (bias, onto) {
        (None, None) => None,
        (Some(bias), None) => Some(bias.broadcast_as((m, n))?.contiguous()?),
        (None, Some(onto)) => Some(onto.copy()?),
        (Some(bias), Some(onto)) => Some(onto.broadcast_add(bias)?),
    })
}

/// `x Wᵀ` on top of `begun`, so many rows at a time, which divide all.
fn multiply(x: &Tensor, weight: &Tensor, begun: Option<Tensor>, rows: usize) -> Result<Tensor> {
    let card = card(x)?;
    let ((m, k), n) = (x.dims2()?, weight.dims()[0]);
    let dtype = match weight.dtype() {
        DType::F32 => cudaDataType::CUDA_R_32F,
        DType::F16 => cudaDataType::CUDA_R_16F,
        DType::BF16 => cudaDataType::CUDA_R_16BF,
        other => return Err(Error::internal(format!("linear: a weight of {other:?} on a card"))),
    };
    let (beta, y) = match begun {
        Some(begun) => (1.0, begun),
        None => (0.0, empty(card, (m, n), DType::F32)?),
    };
    let product = Product { dtype, rows: size(rows)?, outputs: size(n)?, inputs: size(k)?, beta };
    let weight_at = pointer(weight, weight.dtype())?;
    let (x_at, y_at) = (pointer(x, weight.dtype())?, pointer(&y, DType::F32)?);
    for first in (0..m).step_by(rows) {
        let x_at = x_at + (first * k * weight.dtype().size_in_bytes()) as u64;
        let y_at = y_at + (first * n * size_of::<f32>()) as u64;
        // SAFETY: `rows` divides `m`, so each product is inside `x` and `y`, which are contiguous, as is every weight.
        unsafe { product.queue(card, x_at, weight_at, y_at)? };
    }
    Ok(y)
}

fn size(value: usize) -> Result<c_int> {
    c_int::try_from(value).map_err(|_| Error::internal(format!("linear: {value} is too large for cuBLAS")))
}

struct Product {
    dtype: cudaDataType,
    rows: c_int,
    outputs: c_int,
    inputs: c_int,
    /// What `y` is multiplied with before the product is added.
    beta: f32,
}

impl Product {
    /// # Safety
    /// The addresses must be of contiguous `x` `[rows, inputs]` and `weight` `[outputs, inputs]` of the type, and of float32 `y`
    /// `[rows, outputs]`.
    unsafe fn queue(&self, card: &CudaDevice, x: u64, weight: u64, y: u64) -> Result<()> {
        let &Self { dtype, rows, outputs, inputs, ref beta } = self;
        let blas = card.cublas_handle();
        let stream = card.cuda_stream();
        stream.context().bind_to_thread().map_err(|error| Error::internal(error.to_string()))?;
        // cuBLAS counts columns first: to it these are the transposes, so yᵀ = W xᵀ, and the weight is what is transposed.
        let (transposed, plain) = (cublasOperation_t::CUBLAS_OP_T, cublasOperation_t::CUBLAS_OP_N);
        let alpha = 1.0f32;
        // SAFETY: the caller's promise; the scalars are float32, as the type of the sums has it, and outlive the call.
        unsafe {
            gemm_ex(
                *blas.handle(),
                transposed,
                plain,
                outputs,
                rows,
                inputs,
                (&raw const alpha).cast(),
                weight as *const _,
                dtype,
                inputs,
                x as *const _,
                dtype,
                inputs,
                std::ptr::from_ref(beta).cast(),
                y as *mut _,
                cudaDataType::CUDA_R_32F,
                outputs,
                cublasComputeType_t::CUBLAS_COMPUTE_32F,
                cublasGemmAlgo_t::CUBLAS_GEMM_DFALT,
            )
        }
        .map_err(|error| Error::internal(format!("cuBLAS: {error:?}")))
    }
}
