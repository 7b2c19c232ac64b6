//! RMS norm against its reference, and its invariance.

use super::*;
use crate::kernels::test_data::{assert_close, assert_tensors_close, bits, on_threads, random, rng, values};

const EPS: f64 = 1e-6;

#[test]
fn it_is_the_reference_for_every_shape() {
    let mut rng = rng(1);
    for shape in [&[1, 1][..], &[3, 16], &[7, 100], &[70, 1024], &[5, 3, 24], &[9, 4, 128]] {
        let (x, w) = (random(&mut rng, shape), random(&mut rng, &shape[shape.len() - 1..]));
        let normed = rms_norm(&x, &w, EPS).unwrap();
        assert_eq!(normed.dims(), shape);
        assert_close(&values(&normed), &reference::rms_norm(&values(&x), &values(&w), EPS), 1e-6);
        assert_tensors_close(&portable::rms_norm(&x, &w, EPS).unwrap(), &normed, 1e-6);
    }
}

#[test]
fn a_row_has_the_same_bits_alone_and_in_any_batch() {
    let mut rng = rng(3);
    let (x, w) = (random(&mut rng, &[50, 1000]), random(&mut rng, &[1000]));
    let all = rms_norm(&x, &w, EPS).unwrap();
    for row in [0, 1, 17, 49] {
        let alone = rms_norm(&x.narrow(0, row, 1).unwrap(), &w, EPS).unwrap();
        assert_eq!(bits(&alone), bits(&all.narrow(0, row, 1).unwrap()));
    }
    for level in Level::tested() {
        for threads in [1, 2, 3] {
            let again = on_threads(threads, || rms_norm_at(level, &x, &w, EPS).unwrap());
            assert_eq!(bits(&again), bits(&all), "{level:?}, {threads} threads");
        }
    }
}

#[test]
fn a_slice_of_a_wider_tensor_needs_no_copy() {
    let mut rng = rng(4);
    let (wide, w) = (random(&mut rng, &[6, 5, 32]), random(&mut rng, &[32]));
    let slice = wide.narrow(1, 2, 2).unwrap();
    let want = rms_norm(&slice.contiguous().unwrap(), &w, EPS).unwrap();
    assert_eq!(bits(&rms_norm(&slice, &w, EPS).unwrap()), bits(&want));
}

#[test]
fn shapes_that_do_not_fit_are_refused() {
    let mut rng = rng(5);
    let (x, w) = (random(&mut rng, &[2, 8]), random(&mut rng, &[7]));
    assert!(rms_norm(&x, &w, EPS).unwrap_err().message.contains("[2, 8]"));
}
