//! SiLU times up against its reference, and its invariance.

use super::*;
use crate::kernels::test_data::{assert_close, assert_tensors_close, bits, on_threads, random, rng, tensor, values};

#[test]
fn it_is_the_reference_for_every_width() {
    let mut rng = rng(1);
    for (n, width) in [(1, 1), (3, 15), (2, 16), (7, 100), (40, 3072)] {
        let x = (random(&mut rng, &[n, 2 * width]) * 30.0).unwrap();
        let y = silu_mul(&x).unwrap();
        assert_eq!(y.dims(), [n, width]);
        assert_close(&values(&y), &reference::silu_mul(&values(&x), width), 1e-6);
        assert_tensors_close(&portable::silu_mul(&x).unwrap(), &y, 1e-6);
    }
}

#[test]
fn a_row_has_the_same_bits_alone_and_in_any_batch() {
    let x = (random(&mut rng(2), &[50, 2000]) * 10.0).unwrap();
    let all = silu_mul(&x).unwrap();
    for row in [0, 3, 49] {
        assert_eq!(bits(&silu_mul(&x.narrow(0, row, 1).unwrap()).unwrap()), bits(&all.narrow(0, row, 1).unwrap()));
    }
    for level in Level::available() {
        for threads in [1, 2] {
            let again = on_threads(threads, || silu_mul_at(level, &x).unwrap());
            assert_eq!(bits(&again), bits(&all), "{level:?}, {threads} threads");
        }
    }
}

#[test]
fn large_gates_saturate() {
    let y = values(&silu_mul(&tensor(vec![1e30, -1e30, 200.0, -200.0, 1.0, 1.0, 2.0, 2.0], &[1, 8])).unwrap());
    assert_eq!((y[0], y[2]), (1e30, 400.0));
    assert!(y[1].abs() < 1.0 && y[3].abs() < 1e-30, "{y:?}");
}

#[test]
fn an_odd_width_is_refused() {
    assert!(silu_mul(&random(&mut rng(3), &[2, 7])).unwrap_err().message.contains("[2, 7]"));
}
