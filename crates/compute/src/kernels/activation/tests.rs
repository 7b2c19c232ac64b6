//! Activations and gates against their references, and their invariance.

use super::*;
use crate::kernels::test_data::{assert_close, assert_tensors_close, bits, on_threads, random, rng, tensor, values};

const ACTIVATIONS: [Activation; 4] = [Activation::Silu, Activation::Gelu, Activation::GeluTanh, Activation::Relu];

fn gates() -> impl Iterator<Item = Gate> {
    ACTIVATIONS.map(Gate::Of).into_iter().chain([Gate::Sigmoid, Gate::Clipped { alpha: 1.702, limit: 7.0 }])
}

#[test]
fn each_is_its_reference_for_every_width() {
    let mut rng = rng(1);
    for (n, width) in [(1, 1), (3, 15), (2, 16), (7, 100), (40, 1024)] {
        let x = (random(&mut rng, &[n, 2 * width]) * 10.0).unwrap();
        for gate in gates() {
            let y = gated(&x, gate).unwrap();
            assert_eq!(y.dims(), [n, width]);
            assert_close(&values(&y), &reference::gated(&values(&x), width, gate), 1e-6);
            assert_tensors_close(&portable::gated(&x, gate).unwrap(), &y, 1e-5);
        }
        for activation in ACTIVATIONS {
            let y = activated(&x, activation).unwrap();
            assert_eq!(y.dims(), x.dims());
            let want: Vec<f64> = values(&x).iter().map(|&x| reference::activation(f64::from(x), activation)).collect();
            assert_close(&values(&y), &want, 1e-6);
            assert_tensors_close(&portable::activated(&x, activation).unwrap(), &y, 1e-5);
        }
    }
}

#[test]
fn a_row_has_the_same_bits_alone_and_in_any_batch() {
    let x = (random(&mut rng(2), &[50, 1000]) * 10.0).unwrap();
    for gate in gates() {
        let all = gated(&x, gate).unwrap();
        for row in [0, 3, 49] {
            let alone = gated(&x.narrow(0, row, 1).unwrap(), gate).unwrap();
            assert_eq!(bits(&alone), bits(&all.narrow(0, row, 1).unwrap()));
        }
        for level in Level::tested() {
            for threads in [1, 2] {
                let again = on_threads(threads, || gated_at(level, &x, gate).unwrap());
                assert_eq!(bits(&again), bits(&all), "{level:?}, {threads} threads");
            }
        }
    }
    for activation in ACTIVATIONS {
        let all = activated(&x, activation).unwrap();
        for level in Level::tested() {
            assert_eq!(bits(&activated_at(level, &x, activation).unwrap()), bits(&all), "{level:?}");
        }
    }
}

#[test]
fn large_numbers_saturate() {
    let x = tensor(vec![1e30, -1e30, 200.0, -200.0], &[1, 4]);
    for activation in ACTIVATIONS {
        let y = values(&activated(&x, activation).unwrap());
        assert_eq!((y[0], y[2]), (1e30, 200.0), "{activation:?}");
        assert!(y[1].abs() < 1.0 && y[3].abs() < 1e-29, "{activation:?}: {y:?}");
    }
    let clipped = Gate::Clipped { alpha: 1.702, limit: 7.0 };
    let y = values(&gated(&tensor(vec![1e30, -1e30, 1e30, 1e30], &[1, 4]), clipped).unwrap());
    assert!((y[0] - 56.0).abs() < 1e-3 && y[1].abs() < 1.0, "{y:?}");
}

#[test]
fn an_odd_width_is_refused() {
    let x = random(&mut rng(3), &[2, 7]);
    assert!(gated(&x, Gate::Of(Activation::Silu)).unwrap_err().message.contains("[2, 7]"));
}
