//! Tensors cut and turned as they lie in a file, before they are packed.

use std::borrow::Cow;

use crate::{
    error::{Code, Error, Result},
    kernels::linear::format::RawTensor,
};

/// These rows of a matrix, in this order. Rows are whole blocks in every format.
pub(crate) fn rows(tensor: &RawTensor<'_>, order: impl Iterator<Item = usize>) -> Result<RawTensor<'static>> {
    let &[count, width] = tensor.shape.as_slice() else { return Err(refused("is no matrix")) };
    let len = tensor.bytes.len().checked_div(count).unwrap_or(0);
    let (mut bytes, mut taken) = (Vec::with_capacity(tensor.bytes.len()), 0);
    for row in order {
        let row = tensor.bytes.get(row * len..(row + 1) * len);
        bytes.extend_from_slice(row.ok_or_else(|| refused(format!("has {count} rows, too few")))?);
        taken += 1;
    }
    Ok(RawTensor { format: tensor.format, shape: vec![taken, width], bytes: Cow::Owned(bytes) })
}

/// The transpose of a matrix of plain numbers.
pub(crate) fn transposed(tensor: &RawTensor<'_>) -> Result<RawTensor<'static>> {
    let &[height, width] = tensor.shape.as_slice() else { return Err(refused("is no matrix")) };
    if !tensor.format.is_float() {
        return Err(refused(format!("in {} cannot be transposed", tensor.format)));
    }
    let size = tensor.format.block_bytes();
    if tensor.bytes.len() != height * width * size {
        return Err(refused(format!("of shape {:?} has {} bytes", tensor.shape, tensor.bytes.len())));
    }
    let mut bytes = Vec::with_capacity(tensor.bytes.len());
    for column in 0..width {
        for row in 0..height {
            let at = (row * width + column) * size;
            bytes.extend_from_slice(&tensor.bytes[at..at + size]);
        }
    }
    Ok(RawTensor { format: tensor.format, shape: vec![width, height], bytes: Cow::Owned(bytes) })
}

fn refused(why: impl std::fmt::Display) -> Error {
    Error::new(Code::FailedPrecondition, format!("a tensor {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::linear::format::WeightFormat;

    fn tensor(shape: &[usize]) -> RawTensor<'static> {
        let count: usize = shape.iter().product();
        let bytes = (0..count as u16).flat_map(u16::to_le_bytes).collect::<Vec<_>>();
        RawTensor { format: WeightFormat::BF16.into(), shape: shape.to_vec(), bytes: bytes.into() }
    }

    fn numbers(tensor: &RawTensor<'_>) -> Vec<u16> {
        tensor.bytes.as_chunks().0.iter().map(|b| u16::from_le_bytes(*b)).collect()
    }

    #[test]
    fn rows_and_transposes_are_what_they_say() {
        let matrix = tensor(&[2, 3]);
        let turned = transposed(&matrix).unwrap();
        assert_eq!((turned.shape.as_slice(), numbers(&turned)), (&[3, 2][..], vec![0, 3, 1, 4, 2, 5]));
        assert_eq!(numbers(&rows(&matrix, [1, 1, 0].into_iter()).unwrap()), [3, 4, 5, 3, 4, 5, 0, 1, 2]);
    }

    #[test]
    fn what_cannot_be_cut_or_turned_is_refused() {
        let matrix = tensor(&[2, 3]);
        assert!(rows(&matrix, [2].into_iter()).is_err());
        assert!(transposed(&tensor(&[1, 2, 3])).is_err());
        let blocks = RawTensor { format: WeightFormat::Q8_0.into(), shape: vec![1, 32], bytes: vec![0; 34].into() };
        assert!(transposed(&blocks).unwrap_err().message.contains("q8_0"));
    }
}
