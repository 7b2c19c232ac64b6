//! What kernels that keep a state of each sequence have in common: which rows a step has, and where their states stand.
//!
//! A state is float32 whatever the model's format: it is added to with every token, and what one rounds the next one reads.

use std::{cell::RefCell, ops::Range};

use candle_core::{CpuStorage, Device, InplaceOp2, Layout, Tensor};

use super::cpu_tensor::{Rows, try_zeroed, with_contiguous_rows};
use crate::{
    error::{Code, Error, Result},
    ids::StateSlot,
};

/// The rows of a step, one a sequence.
#[derive(Clone, Copy, Debug)]
pub struct StateRows<'a> {
    /// Where each row's tokens begin, and the end: `[rows + 1]`.
    pub cu_seqlens: &'a [u32],
    /// Tokens before each row's first: `[rows]`. Where there are none the state begins as zeros, whatever stood there.
    pub context_lens: &'a [u32],
    /// Where each row's state stands: `[rows]`, no two alike.
    pub slots: &'a [StateSlot],
}

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct StateRow {
    /// Its tokens in the batch.
    pub(super) tokens: Range<usize>,
    /// Whether there are none before them.
    pub(super) begins: bool,
    pub(super) slot: usize,
}

impl StateRows<'_> {
    /// The rows that have tokens, checked against each other, the batch and the states; `kernel` is for messages.
    pub(super) fn checked(&self, kernel: &str, tokens: usize, num_slots: usize) -> Result<Vec<StateRow>> {
        let wrong = |what: String| Error::internal(format!("{kernel}: {what}"));
        let count = self.slots.len();
        if self.cu_seqlens.len() != count + 1 || self.context_lens.len() != count {
            let (bounds, contexts) = (self.cu_seqlens.len(), self.context_lens.len());
            return Err(wrong(format!("{count} states, but {bounds} bounds of rows and {contexts} contexts")));
        }
        if self.cu_seqlens[0] != 0 || self.cu_seqlens[count] as usize != tokens {
            return Err(wrong(format!("the rows do not cover the {tokens} tokens")));
        }
        let mut taken = vec![false; num_slots];
        let mut rows = Vec::with_capacity(count);
        for (row, slot) in self.slots.iter().enumerate() {
            let tokens = self.cu_seqlens[row] as usize..self.cu_seqlens[row + 1] as usize;
            if tokens.start > tokens.end {
                return Err(wrong(format!("row {row} has bounds out of order")));
            }
            match taken.get_mut(slot.index()) {
                Some(taken) if !*taken => *taken = true,
                Some(_) => return Err(wrong(format!("two rows have the state {slot}"))),
                None => return Err(wrong(format!("row {row} has the state {slot}, there are {num_slots}"))),
            }
            if !tokens.is_empty() {
                rows.push(StateRow { tokens, begins: self.context_lens[row] == 0, slot: slot.index() });
            }
        }
        Ok(rows)
    }
}

/// Rows as the kernels of a card read them: the first token, how many, the state, and whether it begins as zeros.
#[cfg(any(test, feature = "cuda"))]
pub(super) fn numbers(rows: &[StateRow]) -> Vec<u32> {
    let row =
        |row: &StateRow| [row.tokens.start as u32, row.tokens.len() as u32, row.slot as u32, u32::from(row.begins)];
    rows.iter().flat_map(row).collect()
}

/// Zeros for states. On the CPU the operating system provides the memory when it is first written.
pub(super) fn zeros(shape: &[usize], device: &Device) -> Result<Tensor> {
    let elements = shape.iter().try_fold(1usize, |product, &dim| product.checked_mul(dim));
    let elements = elements.filter(|&n| n > 0 && n < isize::MAX as usize / size_of::<f32>());
    let elements = elements.ok_or_else(|| Error::internal(format!("states cannot have the shape {shape:?}")))?;
    if !matches!(device, Device::Cpu) {
        return Ok(Tensor::zeros(shape, candle_core::DType::F32, device)?);
    }
    let zeros = try_zeroed::<f32>(elements).ok_or_else(|| {
        let bytes = elements * size_of::<f32>();
        let why = format!("no memory for {bytes} bytes of recurrent states: use a smaller --max-num-seqs");
        Error::new(Code::ResourceExhausted, why)
    })?;
    Ok(Tensor::from_vec(zeros, shape, &Device::Cpu)?)
}

/// What a kernel on the CPU makes of `x`, `[n, width]`, and of the states, which it changes where they lie; `name` is for
/// messages.
pub(super) fn in_place(
    name: &'static str,
    states: &Tensor,
    x: &Tensor,
    kernel: impl Fn(&mut [f32], Rows<'_>) -> Vec<f32>,
) -> Result<Vec<f32>> {
    let op = InPlace { name, kernel, out: RefCell::default() };
    states.inplace_op2(&with_contiguous_rows(x)?, &op)?;
    Ok(op.out.into_inner())
}

/// A kernel as an operation on the states.
struct InPlace<K> {
    name: &'static str,
    kernel: K,
    /// Its result.
    out: RefCell<Vec<f32>>,
}

impl<K: Fn(&mut [f32], Rows<'_>) -> Vec<f32>> InplaceOp2 for InPlace<K> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(
        &self,
        states: &mut CpuStorage,
        _: &Layout,
        storage: &CpuStorage,
        layout: &Layout,
    ) -> candle_core::Result<()> {
        let CpuStorage::F32(states) = states else { candle_core::bail!("{}: the states are not float32", self.name) };
        self.out.replace((self.kernel)(states, Rows::new(storage, layout)?));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(cu_seqlens: &[u32], context_lens: &[u32], slots: &[u32]) -> Result<Vec<StateRow>> {
        let slots = slots.iter().copied().map(StateSlot).collect::<Vec<_>>();
        StateRows { cu_seqlens, context_lens, slots: &slots }.checked("test", 5, 3)
    }

    #[test]
    fn rows_are_those_with_tokens() {
        let rows = checked(&[0, 2, 2, 5], &[0, 7, 4], &[2, 0, 1]).unwrap();
        let row = |tokens, begins, slot| StateRow { tokens, begins, slot };
        assert_eq!(rows, [row(0..2, true, 2), row(2..5, false, 1)]);
    }

    #[test]
    fn rows_that_do_not_fit_are_refused_with_what_is_wrong() {
        for (rows, says) in [
            (checked(&[0, 5], &[0, 0], &[0]), "1 states, but 2 bounds of rows and 2 contexts"),
            (checked(&[0, 2, 5], &[0], &[0]), "3 bounds"),
            (checked(&[1, 5], &[0], &[0]), "do not cover the 5 tokens"),
            (checked(&[0, 4], &[0], &[0]), "do not cover the 5 tokens"),
            (checked(&[0, 6, 5], &[0, 0], &[0, 1]), "row 1 has bounds out of order"),
            (checked(&[0, 2, 5], &[0, 0], &[1, 1]), "two rows have the state 1"),
            (checked(&[0, 5], &[0], &[3]), "row 0 has the state 3, there are 3"),
        ] {
            let message = rows.unwrap_err().message;
            assert!(message.starts_with("test: ") && message.contains(says), "{message}: {says}");
        }
    }

    #[test]
    fn states_of_impossible_sizes_are_refused() {
        for shape in [[0, 4], [usize::MAX, 2], [1 << 62, 1]] {
            assert!(zeros(&shape, &Device::Cpu).is_err(), "{shape:?}");
        }
    }
}
