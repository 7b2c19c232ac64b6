//! The kernels of activation.cu, as host C++, against the reference.

use half::{bf16, f16};

use super::{Activation, Gate, launches::ActivationLaunch, reference};
use crate::kernels::{
    cuda::{
        Call,
        host_twin::{Order, Output, Twin, address},
    },
    test_data::{assert_close, floats, rng},
};

static TWIN: Twin = Twin::of("activation");
const ACTIVATIONS: [Activation; 4] = [Activation::Silu, Activation::Gelu, Activation::GeluTanh, Activation::Relu];

fn gates() -> impl Iterator<Item = Gate> {
    ACTIVATIONS.map(Gate::Of).into_iter().chain([Gate::Sigmoid, Gate::Clipped { alpha: 1.702, limit: 7.0 }])
}

/// What a call makes of rows of `[rows, stride]`, `width` results each.
fn run<T: Copy + PartialEq + std::fmt::Debug, const N: usize>(
    kernel: &'static str,
    x: &[f32],
    [rows, stride, width]: [usize; 3],
    margin: T,
    call: impl Fn(&ActivationLaunch) -> Call<N>,
) -> Vec<T> {
    let [forward, reversed] = Order::BOTH.map(|order| {
        let mut out = Output::unwritten(rows * width, margin);
        let launch = ActivationLaunch { kernel, x: address(x), stride, out: out.address(), rows, width };
        // SAFETY: the addresses are of buffers of these sizes.
        unsafe { TWIN.run(&call(&launch), order) };
        out.written().to_vec()
    });
    assert_eq!(forward, reversed, "{kernel}");
    forward
}

#[test]
fn each_is_its_reference_for_every_width_and_type() {
    if !TWIN.exists() {
        return;
    }
    let mut rng = rng(1);
    for (rows, width) in [(1, 1), (3, 15), (7, 100), (3, 1000)] {
        let stride = 2 * width + 3;
        let x: Vec<f32> = floats(&mut rng, rows * stride).iter().map(|x| x * 10.0).collect();
        let both: Vec<f32> = x.chunks(stride).flat_map(|row| &row[..2 * width]).copied().collect();
        for gate in gates() {
            let got = run("candlewick_gated_f32", &x, [rows, stride, width], 7.0f32, |launch| launch.gated(gate));
            assert_close(&got, &reference::gated(&both, width, gate), 1e-6);
            let half = run("candlewick_gated_bf16", &x, [rows, stride, width], bf16::MAX, |launch| launch.gated(gate));
            assert_eq!(half, got.iter().copied().map(bf16::from_f32).collect::<Vec<_>>());
            let half = run("candlewick_gated_f16", &x, [rows, stride, width], f16::MAX, |launch| launch.gated(gate));
            assert_eq!(half, got.iter().copied().map(f16::from_f32).collect::<Vec<_>>());
        }
        for activation in ACTIVATIONS {
            let sizes = [rows, stride, 2 * width];
            let got = run("candlewick_activated_f32", &x, sizes, 7.0f32, |launch| launch.activated(activation));
            let want: Vec<f64> = both.iter().map(|&x| reference::activation(f64::from(x), activation)).collect();
            assert_close(&got, &want, 1e-6);
            let half = run("candlewick_activated_bf16", &x, sizes, bf16::MAX, |launch| launch.activated(activation));
            assert_eq!(half, got.iter().copied().map(bf16::from_f32).collect::<Vec<_>>());
            let half = run("candlewick_activated_f16", &x, sizes, f16::MAX, |launch| launch.activated(activation));
            assert_eq!(half, got.iter().copied().map(f16::from_f32).collect::<Vec<_>>());
        }
    }
}

#[test]
fn large_numbers_saturate_and_what_is_no_number_stays() {
    if !TWIN.exists() {
        return;
    }
    let x = [1e30, -1e30, 200.0, -200.0, f32::NAN];
    for activation in ACTIVATIONS {
        let y = run("candlewick_activated_f32", &x, [1, 5, 4], 7.0f32, |launch| launch.activated(activation));
        assert_eq!((y[0], y[2]), (1e30, 200.0), "{activation:?}");
        assert!(y[1].abs() < 1.0 && y[3].abs() < 1e-29, "{activation:?}: {y:?}");
        let mut out = Output::unwritten(1, 7.0f32);
        let (kernel, x, stride) = ("candlewick_activated_f32", address(&x[4..]), 1);
        let launch = ActivationLaunch { kernel, x, stride, out: out.address(), rows: 1, width: 1 };
        // SAFETY: one number in, one number out.
        unsafe { TWIN.run(&launch.activated(activation), Order::Forward) };
        assert!(out.written()[0].is_nan(), "{activation:?}");
    }
    let clipped = Gate::Clipped { alpha: 1.702, limit: 7.0 };
    let x = [1e30, -1e30, 1e30, 1e30];
    let y = run("candlewick_gated_f32", &x, [1, 4, 2], 7.0f32, |launch| launch.gated(clipped));
    assert!((y[0] - 56.0).abs() < 1e-3 && y[1].abs() < 1.0, "{y:?}");
}
