//! Sums of weighted rows against a sum in float64, and their invariance.

use super::*;
use crate::kernels::test_data::{assert_close, assert_tensors_close, bits, on_threads, random, rng, values};

/// Places, weights and what is added for 20 results of three rows each, of 9.
fn case(width: usize) -> (Tensor, Vec<u32>, Vec<f32>, Tensor) {
    let mut rng = rng(1);
    let rows = random(&mut rng, &[9, width]);
    let places = (0..60u32).map(|k| k * 7 % 9).collect();
    (rows, places, values(&random(&mut rng, &[60])), random(&mut rng, &[20, width]))
}

#[test]
fn it_is_the_sum_of_the_weighted_rows() {
    for width in [1, 16, 37, 500] {
        let (rows, places, weights, onto) = case(width);
        let (all, mut want) = (values(&rows), values(&onto).into_iter().map(f64::from).collect::<Vec<_>>());
        for (k, (&place, &weight)) in places.iter().zip(&weights).enumerate() {
            for column in 0..width {
                want[k / 3 * width + column] += f64::from(weight) * f64::from(all[place as usize * width + column]);
            }
        }
        let got = combine(&rows, &places, &weights, 3, Some(&onto)).unwrap();
        assert_close(&values(&got), &want, 1e-6);
        assert_tensors_close(&portable::combine(&rows, &places, &weights, 3, Some(&onto)).unwrap(), &got, 1e-6);
    }
}

#[test]
fn a_row_has_the_same_bits_alone_and_in_any_batch() {
    let (rows, places, weights, onto) = case(300);
    let all = combine(&rows, &places, &weights, 3, Some(&onto)).unwrap();
    for row in [0, 7, 19] {
        let own = 3 * row..3 * row + 3;
        let onto = onto.narrow(0, row, 1).unwrap();
        let alone = combine(&rows, &places[own.clone()], &weights[own], 3, Some(&onto)).unwrap();
        assert_eq!(bits(&alone), bits(&all.narrow(0, row, 1).unwrap()));
    }
    for level in Level::tested() {
        let again = on_threads(2, || combine_at(level, &rows, &places, &weights, 3, Some(&onto)).unwrap());
        assert_eq!(bits(&again), bits(&all), "{level:?}");
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let (rows, mut places, weights, onto) = case(5);
    assert!(combine(&rows, &places[1..], &weights[1..], 3, None).is_err());
    assert!(combine(&rows, &places, &weights[1..], 3, None).is_err());
    assert!(combine(&rows, &places, &weights, 3, Some(&rows)).is_err());
    places[4] = 9;
    assert!(combine(&rows, &places, &weights, 3, Some(&onto)).unwrap_err().message.contains("no row 9"));
}
