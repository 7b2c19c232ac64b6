//! Rows of float32 to eight-bit floats with one scale.

use float8::F8E4M3;

use crate::kernels::store_kv::element::CacheElement;

/// The largest number of the format.
const LARGEST: f32 = 448.0;

/// Rounds a row to nearest, ties to even, and gives what its numbers are multiplied by: the row's largest magnitude over the
/// format's, or the smallest normal float32 where that is larger, so that nothing is divided by zero. A NaN stays one and changes
/// no other number; beside an infinity, whose row has no scale, all numbers are lost: it and the products of all become NaN.
///
/// The kernel of linear.cu makes the same bits.
pub(super) fn quantize(x: &[f32], to: &mut [F8E4M3]) -> f32 {
    let largest = x.iter().fold(0f32, |largest, x| largest.max(x.abs()));
    let scale = (largest / LARGEST).max(f32::MIN_POSITIVE);
    for (to, x) in to.iter_mut().zip(x) {
        *to = CacheElement::from_f32(x / scale);
    }
    scale
}
