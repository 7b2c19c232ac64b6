//! The largest of a vocabulary of logits and where it is: in lanes, so that the compiler makes vectors of it.

const LANES: usize = 16;
/// Compared at once while one is looked for.
const BLOCK: usize = 64;

/// The largest value, NaNs left out; `-inf` of none.
pub(super) fn largest(values: &[f32]) -> f32 {
    let (whole, rest) = values.as_chunks::<LANES>();
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for chunk in whole {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            *lane = if x > *lane { x } else { *lane };
        }
    }
    lanes.iter().chain(rest).fold(f32::NEG_INFINITY, |max, &x| if x > max { x } else { max })
}

/// Whether all are numbers below `+inf`.
pub(super) fn all_sound(values: &[f32]) -> bool {
    let (whole, rest) = values.as_chunks::<BLOCK>();
    // False for NaN as well.
    let sound = |chunk: &[f32]| chunk.iter().fold(true, |sound, &x| sound & (x < f32::INFINITY));
    whole.iter().all(|chunk| sound(chunk)) && sound(rest)
}

/// The first place of a value.
pub(super) fn position_of(value: f32, values: &[f32]) -> Option<usize> {
    let has = |chunk: &[f32]| chunk.iter().fold(false, |has, &x| has | (x == value));
    let (whole, _) = values.as_chunks::<BLOCK>();
    let start = whole.iter().position(|chunk| has(chunk)).unwrap_or(whole.len()) * BLOCK;
    let rest = values.get(start..)?;
    rest.iter().position(|&x| x == value).map(|at| start + at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_is_found_wherever_it_is() {
        for len in [1, 15, 16, 17, 63, 64, 65, 200] {
            for at in 0..len {
                let mut values: Vec<f32> = (0..len).map(|k| -((k * 7 % 11) as f32) - 1.0).collect();
                values[at] = 0.5;
                assert_eq!((largest(&values), position_of(0.5, &values)), (0.5, Some(at)), "{at} of {len}");
                assert!(all_sound(&values));
                for bad in [f32::NAN, f32::INFINITY] {
                    values[at] = bad;
                    assert!(!all_sound(&values), "{bad} at {at} of {len}");
                }
            }
        }
        assert_eq!((largest(&[]), position_of(0.0, &[]), all_sound(&[])), (f32::NEG_INFINITY, None, true));
        assert_eq!(position_of(2.0, &[2.0, 2.0]), Some(0));
        assert!(all_sound(&[f32::NEG_INFINITY]));
    }
}
