//! CPU tensors as the kernels see them: rows to read, and columns of one matrix that several threads write.

use std::{marker::PhantomData, mem::MaybeUninit};

use candle_core::{CpuStorage, Layout, Storage, Tensor, bail};

use super::pool::{current_num_threads, for_each_task};

/// A float32 tensor as rows: the first dimension counts them, all others are one contiguous row.
#[derive(Clone, Copy)]
pub(crate) struct Rows<'a> {
    data: &'a [f32],
    stride: usize,
    /// How many.
    pub(crate) count: usize,
    /// Floats a row.
    pub(crate) width: usize,
}

/// Whether the inner dimensions lie contiguously, whatever the distance between rows.
fn rows_are_contiguous(layout: &Layout) -> bool {
    let mut expected = 1;
    layout.dims().iter().zip(layout.stride()).skip(1).rev().all(|(&dim, &stride)| {
        let fits = dim <= 1 || stride == expected;
        expected *= dim;
        fits
    })
}

/// The tensor itself where its rows are contiguous (views along the first dimension, and slices of fused projections),
/// otherwise a contiguous copy.
pub(crate) fn with_contiguous_rows(x: &Tensor) -> candle_core::Result<Tensor> {
    if rows_are_contiguous(x.layout()) { Ok(x.clone()) } else { x.contiguous() }
}

impl<'a> Rows<'a> {
    /// The rows of a tensor that [`with_contiguous_rows`] gave.
    pub(crate) fn new(storage: &'a CpuStorage, layout: &Layout) -> candle_core::Result<Self> {
        let dims = layout.dims();
        if dims.is_empty() || !rows_are_contiguous(layout) {
            bail!("a tensor of shape {dims:?} and strides {:?} has no contiguous rows", layout.stride());
        }
        let (count, width) = (dims[0], dims[1..].iter().product::<usize>());
        let stride = if count > 1 { layout.stride()[0] } else { width };
        let data = storage.as_slice::<f32>()?;
        let end = if count == 0 { 0 } else { (count - 1) * stride + width };
        match data.get(layout.start_offset()..layout.start_offset() + end) {
            Some(data) => Ok(Self { data, stride, count, width }),
            None => bail!("a tensor of shape {dims:?} reaches past its storage"),
        }
    }

    /// One row.
    #[inline(always)]
    pub(crate) fn row(&self, row: usize) -> &'a [f32] {
        &self.data[row * self.stride..][..self.width]
    }

    /// The floats of a one-dimensional tensor.
    pub(crate) fn vector(storage: &'a CpuStorage, layout: &Layout) -> candle_core::Result<&'a [f32]> {
        match (layout.contiguous_offsets(), storage.as_slice::<f32>()) {
            (Some((start, end)), Ok(data)) => Ok(&data[start..end]),
            (None, _) => bail!("a vector of strides {:?} is not contiguous", layout.stride()),
            (_, Err(error)) => Err(error),
        }
    }
}

/// What lies behind a tensor on the CPU.
pub(crate) fn cpu_storage(storage: &Storage) -> candle_core::Result<&CpuStorage> {
    match storage {
        Storage::Cpu(storage) => Ok(storage),
        _ => bail!("expected a tensor on the CPU"),
    }
}

/// A matrix whose parts different threads write at once, each its own.
pub(crate) struct SharedMatrix<'a, T> {
    data: *mut T,
    len: usize,
    borrow: PhantomData<&'a mut [T]>,
}

// SAFETY: all access goes through `slice_mut`, whose callers promise that no two threads touch the same elements.
unsafe impl<T: Send> Sync for SharedMatrix<'_, T> {}

impl<'a, T> SharedMatrix<'a, T> {
    /// Lends `data` out until the value is dropped.
    pub(crate) fn new(data: &'a mut [T]) -> Self {
        Self { data: data.as_mut_ptr(), len: data.len(), borrow: PhantomData }
    }

    /// Where an element is or would be: to be asked for, not read.
    #[inline(always)]
    pub(crate) fn address(&self, at: usize) -> *const T {
        self.data.wrapping_add(at)
    }

    /// `len` elements from `start`.
    ///
    /// # Safety
    /// While the slice lives nobody else may hold a slice that overlaps it.
    #[inline(always)]
    #[expect(clippy::mut_from_ref, reason = "disjointness is the caller's promise")]
    pub(crate) unsafe fn slice_mut(&self, start: usize, len: usize) -> &mut [T] {
        assert!(start <= self.len && len <= self.len - start, "slice {start}+{len} of {}", self.len);
        // SAFETY: inside the borrowed slice by the assertion, unaliased by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(start), len) }
    }
}

impl<T: bytemuck::Zeroable> SharedMatrix<'_, MaybeUninit<T>> {
    /// `len` elements from `start`, set to zero by whoever takes them: in its own cache, while others do the same.
    ///
    /// # Safety
    /// As for [`slice_mut`](Self::slice_mut).
    #[inline(always)]
    #[expect(clippy::mut_from_ref, reason = "disjointness is the caller's promise")]
    pub(crate) unsafe fn cleared_mut(&self, start: usize, len: usize) -> &mut [T] {
        // SAFETY: the caller's promise.
        let slice = unsafe { self.slice_mut(start, len) };
        slice.fill_with(|| MaybeUninit::new(T::zeroed()));
        // SAFETY: every element was just written, and the layouts are the same.
        unsafe { &mut *(std::ptr::from_mut(slice) as *mut [T]) }
    }
}

/// A vector of `len` floats that tasks write, in a [spare](super::spare) buffer where there is one. It is not cleared by
/// one thread while the others wait.
///
/// # Safety
/// `write` must write every element, by way of [`SharedMatrix::cleared_mut`] or element by element.
pub(crate) unsafe fn written(len: usize, write: impl FnOnce(&SharedMatrix<'_, MaybeUninit<f32>>)) -> Vec<f32> {
    let mut out = super::spare::with_room_for(len);
    write(&SharedMatrix::new(&mut out.spare_capacity_mut()[..len]));
    // SAFETY: there is room for `len` elements, and the caller promises that all of them were written.
    unsafe { out.set_len(len) };
    out
}

/// So many zeros, fresh from the operating system where they are many; `None` where there is no memory.
pub(crate) fn try_zeroed<T: bytemuck::Zeroable>(len: usize) -> Option<Vec<T>> {
    let layout = std::alloc::Layout::array::<T>(len).ok()?;
    if layout.size() == 0 {
        return Some(std::iter::repeat_with(T::zeroed).take(len).collect());
    }
    // SAFETY: the layout's size is not zero.
    let data = unsafe { std::alloc::alloc_zeroed(layout) }.cast::<T>();
    // SAFETY: the global allocator gave memory for `len` elements of `T`, for which zeros are a value.
    (!data.is_null()).then(|| unsafe { Vec::from_raw_parts(data, len, len) })
}

/// Splits `count` rows into ranges for the threads of the current pool, one where the work is too small to share;
/// `cost` is roughly the number of elements a row touches.
pub(crate) fn for_each_row_range(count: usize, cost: usize, task: impl Fn(std::ops::Range<usize>) + Sync) {
    const WORTH_SHARING: usize = 32 * 1024;
    let tasks = (count * cost / WORTH_SHARING).clamp(1, current_num_threads() * 2).min(count.max(1));
    for_each_task(tasks, true, |task_index| task(count * task_index / tasks..count * (task_index + 1) / tasks));
}
