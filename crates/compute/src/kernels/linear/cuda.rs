//! Linear on NVIDIA cards over a weight of plain numbers: cuBLAS, with inputs in the weight's type and float32 sums, which
//! adds to what the result begins with. What inputs are made of is computed by a kernel that rounds them as well.
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
    ids::TokenId,
    kernels::{
        cuda::{Arg, Call, Launch, Module, card, empty, module, pointer, rows, uploaded},
        device::is_batch_invariant,
    },
};

/// Rows of every product where results may not depend on the batch. Reading a weight of two bytes a number for 64 rows takes
/// longer than multiplying with it on every card that this is compiled for, so decoding pays nothing; prompts read it again
/// for every 64 tokens.
pub(super) const INVARIANT_ROWS: usize = 64;

pub(super) static MODULE: Module = module!("linear");

/// Threads that share a row.
const THREADS: u32 = 256;
/// Blocks of a launch; each takes every so many rows.
const MOST_BLOCKS: usize = 32_768;

/// `x Wᵀ + bias + onto`, float32 in and out; `weight` is `[out, in]`.
pub(super) fn linear(x: Inputs<'_>, weight: &Tensor, bias: Option<&Tensor>, onto: Option<&Tensor>) -> Result<Tensor> {
    let ((m, k), n) = (x.dims()?, weight.dims()[0]);
    let card = card(weight)?;
    if m == 0 || n == 0 {
        return empty(card, (m, n), DType::F32);
    }
    if k == 0 {
        return match begin(card, (m, n), bias, onto)? {
            Some(begun) => Ok(begun),
            None => Ok(Tensor::zeros((m, n), DType::F32, weight.device())?),
        };
    }
    let x = x.on_card(weight.dtype())?;
    if !is_batch_invariant() {
        let begun = begin(card, (m, n), bias, onto)?;
        return multiply(&x, weight, begun, m);
    }
    let filled = m.next_multiple_of(INVARIANT_ROWS);
    let fill = |rows: &Tensor| rows.pad_with_zeros(0, 0, filled - m);
    let onto = onto.map(fill).transpose()?;
    let begun = begin(card, (filled, n), bias, onto.as_ref())?;
    Ok(multiply(&fill(&x)?, weight, begun, INVARIANT_ROWS)?.narrow(0, 0, m)?)
}

/// Rows of float32 in a weight's type, one after another.
pub(super) fn rounded(x: &Tensor, dtype: DType) -> Result<Tensor> {
    let kernel = match dtype {
        DType::BF16 => "candlewick_linear_round_bf16",
        DType::F16 => "candlewick_linear_round_f16",
        _ => return Ok(x.to_dtype(dtype)?.contiguous()?),
    };
    let (card, rows) = (card(x)?, rows(x)?);
    let out = empty(card, x.shape(), dtype)?;
    let args = [
        Arg::Ptr(rows.address),
        Arg::U64(rows.stride as u64),
        Arg::Ptr(pointer(&out, dtype)?),
        Arg::U64(rows.count as u64),
        Arg::U64(rows.width as u64),
    ];
    // SAFETY: the kernel's arguments; `rows` and `out` have these sizes.
    unsafe { MODULE.launch(card, &Call { kernel, launch: launch(rows.count), args }) }?;
    Ok(out)
}

/// The rows of these tokens, u32 `[n]` on the weight's card, widened; every id has one.
pub(super) fn gather_rows(weight: &Tensor, ids: &Tensor) -> Result<Tensor> {
    let kernel = match weight.dtype() {
        DType::F32 => "candlewick_linear_gather_f32",
        DType::F16 => "candlewick_linear_gather_f16",
        DType::BF16 => "candlewick_linear_gather_bf16",
        other => return Err(Error::internal(format!("an embedding of {other:?} on a card"))),
    };
    let (card, count, width) = (card(weight)?, ids.dims1()?, weight.dims()[1]);
    let out = empty(card, (count, width), DType::F32)?;
    if count == 0 {
        return Ok(out);
    }
    let args = [
        Arg::Ptr(pointer(weight, weight.dtype())?),
        Arg::Ptr(pointer(ids, DType::U32)?),
        Arg::Ptr(pointer(&out, DType::F32)?),
        Arg::U64(count as u64),
        Arg::U64(width as u64),
    ];
    // SAFETY: the kernel's arguments; every id is a row of the weight, and `out` has a row for each.
    unsafe { MODULE.launch(card, &Call { kernel, launch: launch(count), args }) }?;
    Ok(out)
}

/// These ids where the weight is.
pub(super) fn ids_beside(weight: &Tensor, ids: &[TokenId]) -> Result<Tensor> {
    uploaded(card(weight)?, bytemuck::cast_slice(ids))
}

/// What the product is added to, in a tensor of its own; none is zeros.
fn begin(
    card: &CudaDevice,
    (m, n): (usize, usize),
    bias: Option<&Tensor>,
    onto: Option<&Tensor>,
) -> Result<Option<Tensor>> {
    if bias.is_none() && onto.is_none() {
        return Ok(None);
    }
    let (bias, onto) = (bias.map(Tensor::contiguous).transpose()?, onto.map(rows).transpose()?);
    let out = empty(card, (m, n), DType::F32)?;
    let args = [
        Arg::Ptr(onto.as_ref().map_or(0, |onto| onto.address)),
        Arg::U64(onto.as_ref().map_or(n, |onto| onto.stride) as u64),
        Arg::Ptr(bias.as_ref().map_or(Ok(0), |bias| pointer(bias, DType::F32))?),
        Arg::Ptr(pointer(&out, DType::F32)?),
        Arg::U64(m as u64),
        Arg::U64(n as u64),
    ];
    let call = Call { kernel: "candlewick_linear_begin", launch: launch(m), args };
    // SAFETY: the kernel's arguments; `onto` and `out` are `[m, n]`, `bias` is `[n]`.
    unsafe { MODULE.launch(card, &call) }?;
    Ok(Some(out))
}

fn launch(rows: usize) -> Launch {
    Launch { grid: [rows.clamp(1, MOST_BLOCKS) as u32, 1, 1], block: [THREADS, 1, 1], shared_bytes: 0 }
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
