//! What the host tells the kernels of a step: positions, slots, bounds, block tables. All layers are told the same, so that
//! each thread remembers the newest arrays that it has sent, and where they are.
//!
//! What is [recorded](Arrays) reads the same places every time. Its arrays have places of their own, found by what was in them
//! when they were recorded, where later steps write theirs.

use std::{cell::RefCell, collections::VecDeque};

use candle_core::{DType, Device, Tensor};

use crate::error::{Error, Result};

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
    /// Those of what is being recorded.
    static RECORDED: RefCell<Option<Arrays>> = const { RefCell::new(None) };
}

/// These numbers on the device, `[numbers.len()]`. Nobody may write there.
///
/// # Errors
/// `Internal` where the device has no room.
pub(super) fn uploaded(device: &Device, numbers: &[u32]) -> Result<Tensor> {
    if let Some(place) = RECORDED.with_borrow_mut(|recorded| recorded.as_mut().map(|arrays| arrays.place(numbers))) {
        return place;
    }
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

/// The arrays of launches that are recorded.
pub(in crate::kernels) struct Arrays {
    device: Device,
    arrays: Vec<Array>,
    /// Whether all of them are known.
    sealed: bool,
}

struct Array {
    /// What it was when it was recorded.
    was: Vec<u32>,
    /// What was written there last.
    is: Vec<u32>,
    /// u32 `[was.len()]`, or of one number where there are none.
    tensor: Tensor,
}

impl Arrays {
    /// None yet.
    pub(in crate::kernels) fn on(device: &Device) -> Self {
        Self { device: device.clone(), arrays: Vec::new(), sealed: false }
    }

    /// Runs what sends arrays, on this thread: each new one gets a place that holds zeros.
    pub(in crate::kernels) fn record<T>(&mut self, run: impl FnOnce() -> Result<T>) -> Result<T> {
        /// Nobody goes on recording where `run` panics.
        struct Ends;
        impl Drop for Ends {
            fn drop(&mut self) {
                RECORDED.set(None);
            }
        }
        let fresh = Self::on(&self.device);
        RECORDED.set(Some(std::mem::replace(self, fresh)));
        let ends = Ends;
        let result = run();
        if let Some(arrays) = RECORDED.take() {
            *self = arrays;
        }
        drop(ends);
        result
    }

    /// Writes all arrays, of which there will be no others.
    pub(in crate::kernels) fn seal(&mut self) -> Result<()> {
        self.sealed = true;
        for Array { was, is, tensor } in &mut self.arrays {
            overwrite(tensor, was)?;
            is.clone_from(was);
        }
        Ok(())
    }

    /// Writes `now` where that array is which `was` so when it was recorded, and at least as long.
    ///
    /// # Errors
    /// `Internal` where there is no such array, or the device refuses.
    pub(in crate::kernels) fn write(&mut self, was: &[u32], now: &[u32]) -> Result<()> {
        let array = self.arrays.iter_mut().find(|array| array.was == was && now.len() <= was.len());
        let array = array.ok_or_else(|| Error::internal("what was recorded has no such array"))?;
        // What is behind the new numbers is read by nobody.
        if array.is.get(..now.len()) == Some(now) {
            return Ok(());
        }
        overwrite(&array.tensor, now)?;
        array.is[..now.len()].copy_from_slice(now);
        Ok(())
    }

    fn place(&mut self, numbers: &[u32]) -> Result<Tensor> {
        let tensor = match self.arrays.iter().find(|array| array.was == numbers) {
            Some(array) => array.tensor.clone(),
            None if self.sealed => {
                let why = format!(
                    "a step sent {} numbers while it was recorded, which it had not sent before",
                    numbers.len()
                );
                return Err(Error::internal(why));
            }
            None => {
                let tensor = Tensor::zeros(numbers.len().max(1), DType::U32, &self.device)?;
                let is = vec![0; numbers.len()];
                self.arrays.push(Array { was: numbers.to_vec(), is, tensor: tensor.clone() });
                tensor
            }
        };
        Ok(tensor.narrow(0, 0, numbers.len())?)
    }
}

/// Queues a write of `numbers` at the beginning of a tensor that has room for them.
fn overwrite(tensor: &Tensor, numbers: &[u32]) -> Result<()> {
    if numbers.is_empty() {
        return Ok(());
    }
    #[cfg(feature = "cuda")]
    if let Device::Cuda(card) = tensor.device() {
        return super::tensors::send(card, numbers, tensor);
    }
    Ok(tensor.slice_set(&Tensor::from_slice(numbers, numbers.len(), tensor.device())?, 0, 0)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(tensor: &Tensor) -> Vec<u32> {
        tensor.to_vec1().unwrap()
    }

    #[test]
    fn recorded_arrays_keep_their_places_and_get_what_later_steps_write() {
        let mut arrays = Arrays::on(&Device::Cpu);
        let (positions, tables) = ([9, 9], [7, 6, 5, 4]);
        let step = |arrays: &mut Arrays| {
            arrays.record(|| Ok([&positions[..], &tables[..]].map(|array| uploaded(&Device::Cpu, array).unwrap())))
        };
        let [first, second] = step(&mut arrays).unwrap();
        assert_eq!((read(&first), read(&second)), (vec![0; 2], vec![0; 4]), "nothing is written before all is known");
        arrays.seal().unwrap();
        assert_eq!((read(&first), read(&second)), (positions.to_vec(), tables.to_vec()));
        let again = step(&mut arrays).unwrap();
        arrays.write(&tables, &[1, 2, 3]).unwrap();
        arrays.write(&positions, &[5, 6]).unwrap();
        arrays.write(&positions, &[5, 7]).unwrap();
        for places in [[first, second], again] {
            assert_eq!(places.map(|place| read(&place)), [vec![5, 7], vec![1, 2, 3, 4]]);
        }
        assert_ne!(read(&sent(&positions)), [5, 7], "what is not recorded is sent as ever");
    }

    #[test]
    fn a_recording_refuses_arrays_that_it_does_not_know() {
        let mut arrays = Arrays::on(&Device::Cpu);
        arrays.record(|| uploaded(&Device::Cpu, &[1, 2])).unwrap();
        arrays.seal().unwrap();
        let error = arrays.record(|| uploaded(&Device::Cpu, &[1, 3])).unwrap_err();
        assert!(error.message.contains("had not sent before"), "{error}");
        assert!(arrays.write(&[1, 3], &[1]).is_err(), "no such array");
        assert!(arrays.write(&[1, 2], &[1, 2, 3]).is_err(), "longer than it was");
        let recorded = std::panic::catch_unwind(|| {
            let _panics = Arrays::on(&Device::Cpu).record(|| -> Result<()> { panic!("a kernel") });
        });
        assert!(recorded.is_err());
        assert_eq!(read(&sent(&[4])), [4], "nobody records any more");
    }

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
