//! One of the equal parts of a tensor, as experts are kept together in one.

use std::borrow::Cow;

use crate::kernels::linear::format::RawTensor;

/// Part `index` of `count` along the outermost dimension, which is taken away; none where there are not so many.
pub(super) fn part<'a>(tensor: &RawTensor<'a>, index: usize, count: usize) -> Option<RawTensor<'a>> {
    let (&outermost, shape) = tensor.shape.split_first()?;
    let len = tensor.bytes.len().checked_div(count)?;
    if outermost != count || index >= count || len * count != tensor.bytes.len() {
        return None;
    }
    let range = index * len..(index + 1) * len;
    let bytes = match &tensor.bytes {
        Cow::Borrowed(bytes) => Cow::Borrowed(bytes.get(range)?),
        Cow::Owned(bytes) => Cow::Owned(bytes.get(range)?.to_vec()),
    };
    Some(RawTensor { format: tensor.format, shape: shape.to_vec(), bytes })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::linear::format::WeightFormat;

    #[test]
    fn a_part_is_what_lies_there_and_none_where_there_are_not_so_many() {
        let bytes: Vec<u8> = (0..24).collect();
        let cube = RawTensor { format: WeightFormat::BF16.into(), shape: vec![2, 2, 3], bytes: bytes.into() };
        let second = part(&cube, 1, 2).expect("there are two");
        assert_eq!((second.shape.as_slice(), second.bytes.as_ref()), (&[2, 3][..], &cube.bytes[12..]));
        assert!(part(&cube, 2, 2).is_none() && part(&cube, 0, 3).is_none() && part(&cube, 0, 0).is_none());
    }
}
