//! Layer norm against its reference, and its invariance.

use super::*;
use crate::kernels::test_data::{assert_close, assert_tensors_close, bits, on_threads, random, rng, values};

#[test]
fn it_is_the_reference_for_every_width() {
    let mut rng = rng(1);
    for (n, d) in [(1, 1), (3, 15), (2, 16), (7, 100), (40, 1024)] {
        // An offset far from zero, which a sum of squares without the mean taken off would lose.
        let x = (random(&mut rng, &[n, d]) + 50.0).unwrap();
        let (weight, bias) = (random(&mut rng, &[d]), random(&mut rng, &[d]));
        let y = layer_norm(&x, &weight, Some(&bias), 1e-5).unwrap();
        let want = reference::layer_norm(&values(&x), &values(&weight), &values(&bias), 1e-5);
        assert_close(&values(&y), &want, 1e-4);
        assert_tensors_close(&portable::layer_norm(&x, &weight, Some(&bias), 1e-5).unwrap(), &y, 1e-3);
        let plain = layer_norm(&x, &weight, None, 1e-5).unwrap();
        let want = reference::layer_norm(&values(&x), &values(&weight), &vec![0.0; d], 1e-5);
        assert_close(&values(&plain), &want, 1e-4);
    }
}

#[test]
fn a_row_has_the_same_bits_alone_and_in_any_batch() {
    let mut rng = rng(2);
    let (x, weight, bias) = (random(&mut rng, &[50, 1000]), random(&mut rng, &[1000]), random(&mut rng, &[1000]));
    let all = layer_norm(&x, &weight, Some(&bias), 1e-5).unwrap();
    for row in [0, 3, 49] {
        let alone = layer_norm(&x.narrow(0, row, 1).unwrap(), &weight, Some(&bias), 1e-5).unwrap();
        assert_eq!(bits(&alone), bits(&all.narrow(0, row, 1).unwrap()));
    }
    for level in Level::tested() {
        for threads in [1, 2] {
            let again = on_threads(threads, || layer_norm_at(level, &x, &weight, Some(&bias), 1e-5).unwrap());
            assert_eq!(bits(&again), bits(&all), "{level:?}, {threads} threads");
        }
    }
}

#[test]
fn a_weight_or_bias_of_another_width_is_refused() {
    let mut rng = rng(3);
    let (x, weight, narrow) = (random(&mut rng, &[2, 8]), random(&mut rng, &[8]), random(&mut rng, &[7]));
    assert!(layer_norm(&x, &narrow, None, 1e-5).unwrap_err().message.contains("[7]"));
    assert!(layer_norm(&x, &weight, Some(&narrow), 1e-5).unwrap_err().message.contains("[7]"));
}
