//! The buffers of results that nobody reads any more, kept for the next results: a step's tensors are as large as the
//! last step's, so that steady decoding asks the allocator for nothing large.
//!
//! Each thread that runs operations keeps its own, at most [`MOST_BUFFERS`] of at most [`MOST_BYTES`] together.

use std::cell::RefCell;

use candle_core::{CpuStorage, InplaceOp1, Layout, Tensor};

/// More than a step has sizes.
const MOST_BUFFERS: usize = 16;
/// A few times the largest result of a step of 2,048 tokens of a small model; what is larger goes back to the allocator,
/// which is nothing beside computing it.
const MOST_BYTES: usize = 256 << 20;

thread_local! {
    static SPARE: RefCell<Vec<Vec<f32>>> = const { RefCell::new(Vec::new()) };
}

/// An empty vector with room for `len` floats: the smallest spare one that has it and is not much too large, or else a
/// new one.
pub(crate) fn with_room_for(len: usize) -> Vec<f32> {
    let fits = |buffer: &Vec<f32>| (len..=len.saturating_mul(4)).contains(&buffer.capacity());
    SPARE.with_borrow_mut(|spare| {
        let best = (0..spare.len()).filter(|&at| fits(&spare[at])).min_by_key(|&at| spare[at].capacity());
        best.map_or_else(|| Vec::with_capacity(len), |at| spare.remove(at))
    })
}

/// Keeps a buffer for [`with_room_for`]; those that waited longest make room for it.
pub fn keep(mut buffer: Vec<f32>) {
    let bytes = |buffer: &Vec<f32>| buffer.capacity() * size_of::<f32>();
    if bytes(&buffer) > MOST_BYTES {
        return;
    }
    buffer.clear();
    SPARE.with_borrow_mut(|spare| {
        spare.push(buffer);
        while spare.len() > MOST_BUFFERS || spare.iter().map(bytes).sum::<usize>() > MOST_BYTES {
            spare.remove(0);
        }
    });
}

/// The numbers of a float32 tensor on the CPU: its own buffer where the tensor is the whole of it, which is then empty for
/// every view of it too, so that nobody may read one any more.
///
/// # Errors
/// candle's, where the tensor is something else.
pub fn take(tensor: &Tensor) -> candle_core::Result<Vec<f32>> {
    struct Take(RefCell<Vec<f32>>);
    impl InplaceOp1 for Take {
        fn name(&self) -> &'static str {
            "take"
        }
        fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
            let CpuStorage::F32(numbers) = storage else { candle_core::bail!("the numbers are not float32") };
            match layout.contiguous_offsets() {
                Some((0, end)) if end == numbers.len() => self.0.replace(std::mem::take(numbers)),
                Some((start, end)) => self.0.replace(numbers[start..end].to_vec()),
                None => candle_core::bail!("the numbers do not lie in one piece"),
            };
            Ok(())
        }
    }
    let take = Take(RefCell::default());
    tensor.inplace_op1(&take)?;
    Ok(take.0.into_inner())
}

/// Takes back a result that nobody reads any more, nor any view of it: reading one afterwards is an error. Tensors that
/// are no whole buffer of float32 on the CPU are merely dropped.
pub fn give_back(tensor: Tensor) {
    let is_float32 = tensor.device().is_cpu() && tensor.dtype() == candle_core::DType::F32;
    let starts = tensor.layout().contiguous_offsets().is_some_and(|(start, _)| start == 0);
    if is_float32
        && starts
        && owns_all(&tensor)
        && let Ok(buffer) = take(&tensor)
    {
        keep(buffer);
    }
}

/// Whether the tensor is all that its storage has.
fn owns_all(tensor: &Tensor) -> bool {
    let (storage, layout) = tensor.storage_and_layout();
    let candle_core::Storage::Cpu(CpuStorage::F32(numbers)) = &*storage else { return false };
    layout.shape().elem_count() == numbers.len()
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn capacities() -> Vec<usize> {
        SPARE.with_borrow(|spare| spare.iter().map(Vec::capacity).collect())
    }

    #[test]
    fn a_result_given_back_is_the_next_result_of_its_size() {
        let data = vec![1.0f32; 1000];
        let address = data.as_ptr();
        give_back(Tensor::from_vec(data, (10, 100), &Device::Cpu).unwrap());
        assert_eq!(capacities(), [1000]);
        let small = with_room_for(100);
        assert!(small.as_ptr() != address, "far too large a buffer is not taken");
        let again = with_room_for(900);
        assert!(again.is_empty() && again.as_ptr() == address);
        assert_eq!(capacities(), [0usize; 0]);
    }

    #[test]
    fn views_and_other_numbers_are_not_kept() {
        let whole = Tensor::from_vec(vec![1.0f32; 1000], (10, 100), &Device::Cpu).unwrap();
        give_back(whole.narrow(0, 0, 5).unwrap());
        give_back(Tensor::from_vec(vec![1u32; 1000], 1000, &Device::Cpu).unwrap());
        assert_eq!(capacities(), [0usize; 0]);
        assert_eq!(
            whole.sum_all().unwrap().to_scalar::<f32>().unwrap(),
            1000.0,
            "the view's owner still has its numbers"
        );
    }

    #[test]
    fn what_is_kept_has_a_bound_in_number_and_in_bytes() {
        for len in 1..=2 * MOST_BUFFERS {
            keep(Vec::with_capacity(len));
        }
        assert_eq!(capacities(), (MOST_BUFFERS + 1..=2 * MOST_BUFFERS).collect::<Vec<_>>(), "the newest stay");
        keep(Vec::with_capacity(MOST_BYTES / 4));
        assert_eq!(capacities(), [MOST_BYTES / 4]);
        keep(Vec::with_capacity(MOST_BYTES / 4 + 1));
        assert_eq!(capacities(), [MOST_BYTES / 4], "what is larger than all that may be kept is not");
    }
}
