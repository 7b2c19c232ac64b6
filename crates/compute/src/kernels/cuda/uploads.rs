//! What the host tells the kernels of a step: positions, slots, bounds, block tables. All layers are told the same, so that
//! each thread remembers the newest arrays that it has sent, and where they are.

use std::{cell::RefCell, collections::VecDeque};

use candle_core::{Device, Tensor};

use crate::error::Result;

/// More arrays than a step has: those of eight groups of layers, and a few more.
const MOST: usize = 64;
/// Longer ones are sent each time: comparing would cost what sending costs.
const MOST_NUMBERS: usize = 1 << 16;

struct Upload {
    numbers: Vec<u32>,
    tensor: Tensor,
}

thread_local! {
    static UPLOADS: RefCell<VecDeque<Upload>> = const { RefCell::new(VecDeque::new()) };
}

/// These numbers on the device, `[numbers.len()]`. Nobody may write there.
///
/// # Errors
/// `Internal` where the device has no room.
pub(super) fn uploaded(device: &Device, numbers: &[u32]) -> Result<Tensor> {
    let send = || Ok(Tensor::from_slice(numbers, numbers.len(), device)?);
    if numbers.len() > MOST_NUMBERS {
        return send();
    }
    UPLOADS.with_borrow_mut(|uploads| {
        let is_it = |upload: &Upload| upload.numbers == numbers && upload.tensor.device().same_device(device);
        let upload = match uploads.iter().position(is_it).and_then(|at| uploads.remove(at)) {
            Some(upload) => upload,
            None => Upload { numbers: numbers.to_vec(), tensor: send()? },
        };
        let tensor = upload.tensor.clone();
        // The newest first: a layer asks for what the layer before it has just asked for.
        uploads.push_front(upload);
        uploads.truncate(MOST);
        Ok(tensor)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(numbers: &[u32]) -> Tensor {
        let tensor = uploaded(&Device::Cpu, numbers).unwrap();
        assert_eq!(tensor.to_vec1::<u32>().unwrap(), numbers);
        tensor
    }

    #[test]
    fn the_layers_of_a_step_find_what_the_first_has_sent() {
        let (positions, slots) = (sent(&[4, 5, 6]), sent(&[68, 69, 70]));
        for _ in 0..3 {
            assert_eq!(sent(&[4, 5, 6]).id(), positions.id());
            assert_eq!(sent(&[68, 69, 70]).id(), slots.id());
        }
        assert_ne!(sent(&[4, 5, 7]).id(), positions.id(), "the next step's are others");
    }

    #[test]
    fn only_the_newest_are_remembered_and_none_that_are_long() {
        let first = sent(&[7]);
        (0..MOST as u32 - 1).for_each(|k| drop(sent(&[k, k])));
        assert_eq!(sent(&[7]).id(), first.id());
        (0..MOST as u32).for_each(|k| drop(sent(&[k, k, k])));
        assert_ne!(sent(&[7]).id(), first.id());
        assert_eq!(UPLOADS.with_borrow(VecDeque::len), MOST);
        let long = vec![1; MOST_NUMBERS + 1];
        assert_ne!(sent(&long).id(), sent(&long).id());
    }
}
