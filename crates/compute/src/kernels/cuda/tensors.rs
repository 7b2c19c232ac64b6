//! Tensors on a card as the kernels see them: addresses, and rows.

use candle_core::{
    CudaDevice, CudaStorage, DType, Shape, Storage, Tensor,
    cuda_backend::{
        CudaStorageSlice,
        cudarc::driver::{DevicePtr, result::memcpy_htod_async},
    },
    op::BackpropOp,
};

use crate::{
    error::{Error, Result},
    kernels::cpu_tensor::with_contiguous_rows,
};

/// The card that a tensor is on.
///
/// # Errors
/// `Internal` where it is on none.
pub(crate) fn card(tensor: &Tensor) -> Result<&CudaDevice> {
    Ok(tensor.device().as_cuda_device()?)
}

/// The address of a tensor's first element. The tensor must live until what reads or writes there was queued. Kernels write
/// in place through it, which candle does not see: nobody may read meanwhile, which the one stream's order takes care of.
///
/// # Errors
/// `Internal` where the tensor is on no card or of another type.
pub(crate) fn pointer(tensor: &Tensor, dtype: DType) -> Result<u64> {
    let (storage, layout) = tensor.storage_and_layout();
    let Storage::Cuda(storage) = &*storage else {
        return Err(Error::internal("expected a tensor on a card"));
    };
    if tensor.dtype() != dtype {
        return Err(Error::internal(format!("expected a tensor of {dtype:?}, not {:?}", tensor.dtype())));
    }
    let stream = storage.device.cuda_stream();
    let (base, _synced) = match &storage.slice {
        CudaStorageSlice::F32(slice) => slice.device_ptr(&stream),
        CudaStorageSlice::BF16(slice) => slice.device_ptr(&stream),
        CudaStorageSlice::F16(slice) => slice.device_ptr(&stream),
        CudaStorageSlice::F8E4M3(slice) => slice.device_ptr(&stream),
        CudaStorageSlice::U32(slice) => slice.device_ptr(&stream),
        CudaStorageSlice::I64(slice) => slice.device_ptr(&stream),
        _ => return Err(Error::internal(format!("no kernel takes {dtype:?}"))),
    };
    Ok(base + (layout.start_offset() * dtype.size_in_bytes()) as u64)
}

/// A float32 tensor as rows: the first dimension counts them, all others are one contiguous row.
pub(crate) struct CardRows {
    /// What the address is of: the tensor itself, or a copy whose rows are contiguous. It is kept, and nobody asks for it.
    _tensor: Tensor,
    /// Of the first row.
    pub(crate) address: u64,
    /// Floats from a row to the next.
    pub(crate) stride: usize,
    /// How many.
    pub(crate) count: usize,
    /// Floats a row.
    pub(crate) width: usize,
}

/// The rows of a tensor.
///
/// # Errors
/// `Internal` where it is no float32 on a card.
pub(crate) fn rows(x: &Tensor) -> Result<CardRows> {
    let tensor = with_contiguous_rows(x)?;
    let address = pointer(&tensor, DType::F32)?;
    let dims = tensor.dims();
    let count = dims.first().copied().unwrap_or(0);
    let width = dims.iter().skip(1).product();
    let stride = if count > 1 { tensor.stride()[0] } else { width };
    Ok(CardRows { address, stride, count, width, _tensor: tensor })
}

/// A tensor that nobody has written yet: whoever makes one queues what writes all of it.
///
/// # Errors
/// `Internal` where the card has no room or the type is none of a kernel's.
pub(crate) fn empty(card: &CudaDevice, shape: impl Into<Shape>, dtype: DType) -> Result<Tensor> {
    let shape = shape.into();
    // The driver has nothing of no bytes.
    let len = shape.elem_count().max(1);
    // SAFETY: the caller's promise: what is read of it was written by a kernel that was queued before.
    let slice = unsafe {
        match dtype {
            DType::F32 => CudaStorageSlice::F32(card.alloc(len)?),
            DType::BF16 => CudaStorageSlice::BF16(card.alloc(len)?),
            DType::F16 => CudaStorageSlice::F16(card.alloc(len)?),
            DType::F8E4M3 => CudaStorageSlice::F8E4M3(card.alloc(len)?),
            DType::U32 => CudaStorageSlice::U32(card.alloc(len)?),
            _ => return Err(Error::internal(format!("no kernel makes {dtype:?}"))),
        }
    };
    let storage = Storage::Cuda(CudaStorage { slice, device: card.clone() });
    Ok(Tensor::from_storage(storage, shape, BackpropOp::none(), false))
}

/// Queues a write of `numbers` at the beginning of a tensor of u32.
///
/// # Errors
/// `Internal` where the tensor has no room for them, or the driver refuses.
pub(super) fn send(card: &CudaDevice, numbers: &[u32], to: &Tensor) -> Result<()> {
    let at = pointer(to, DType::U32)?;
    if !to.is_contiguous() || to.elem_count() < numbers.len() {
        return Err(Error::internal(format!("{} numbers do not fit into {:?}", numbers.len(), to.dims())));
    }
    let stream = card.cuda_stream();
    let failed = |error| Error::internal(format!("the card: {error}"));
    stream.context().bind_to_thread().map_err(failed)?;
    // SAFETY: there is room for the numbers; the driver has read memory that is not pinned when it returns.
    unsafe { memcpy_htod_async(at, numbers, stream.cu_stream()) }.map_err(failed)
}
