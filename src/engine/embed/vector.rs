//! From a pooled hidden state to the vector that a client gets.

use crate::error::{Error, Result};

/// Keeps the first `dimensions` numbers, and then gives the vector a length of 1 if asked: models that are trained for it
/// (Kusupati et al. 2022, arXiv 2205.13147) keep most of what they say in the first numbers. What is cut off takes no
/// memory, since only what is left is counted.
///
/// # Errors
/// `Internal` where a number is not finite: nothing can be compared with it.
pub(super) fn finish(mut values: Vec<f32>, dimensions: Option<usize>, normalize: bool) -> Result<Vec<f32>> {
    if let Some(dimensions) = dimensions {
        values.truncate(dimensions);
        values.shrink_to_fit();
    }
    if values.iter().any(|x| !x.is_finite()) {
        return Err(Error::internal("a hidden state that is not finite"));
    }
    if normalize {
        let length = values.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt();
        // A vector of zeros has no direction and stays what it is.
        if length > 0.0 {
            values.iter_mut().for_each(|x| *x = (f64::from(*x) / length) as f32);
        }
    }
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vector_is_cut_before_it_is_normalized() {
        let values = || vec![3.0, 4.0, 12.0];
        assert_eq!(finish(values(), None, false).unwrap(), [3.0, 4.0, 12.0]);
        assert_eq!(finish(values(), Some(2), false).unwrap(), [3.0, 4.0]);
        assert_eq!(finish(values(), Some(2), true).unwrap(), [0.6, 0.8]);
        let whole = finish(values(), None, true).unwrap();
        assert_eq!(whole, [3.0 / 13.0, 4.0 / 13.0, 12.0 / 13.0]);
    }

    #[test]
    fn what_was_cut_off_takes_no_memory() {
        let vector = finish(vec![1.0; 4096], Some(64), true).unwrap();
        assert!(vector.len() == 64 && vector.capacity() < 128, "room for {} numbers", vector.capacity());
    }

    #[test]
    fn what_has_no_direction_or_no_number_is_not_made_one_of() {
        assert_eq!(finish(vec![0.0; 3], None, true).unwrap(), [0.0; 3]);
        for bad in [f32::NAN, f32::INFINITY] {
            assert!(finish(vec![1.0, bad], None, true).is_err());
        }
        // Squares beyond float32 are not beyond what they are added up in.
        assert_eq!(finish(vec![f32::MAX, 0.0], None, true).unwrap(), [1.0, 0.0]);
    }
}
