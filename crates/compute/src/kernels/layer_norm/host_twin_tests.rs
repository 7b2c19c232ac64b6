//! The kernels of layer_norm.cu, as host C++, against the reference.

use half::{bf16, f16};

use super::{launches, reference};
use crate::kernels::{
    cuda::{
        NormLaunch,
        host_twin::{Order, Output, Twin, address},
    },
    test_data::{assert_close, floats, rng},
};

static TWIN: Twin = Twin::of("layer_norm");

/// Of `[rows, vectors, width]`, the rows of which lie `stride` apart.
struct Case {
    x: Vec<f32>,
    stride: usize,
    weight: Vec<f32>,
    bias: Option<Vec<f32>>,
    rows: usize,
    vectors: usize,
}

impl Case {
    fn run<T: Copy + PartialEq + std::fmt::Debug>(&self, kernel: &'static str, margin: T, order: Order) -> Vec<T> {
        let width = self.weight.len();
        let mut out = Output::unwritten(self.rows * self.vectors * width, margin);
        let norm = NormLaunch {
            kernel,
            x: address(&self.x),
            stride: self.stride,
            weight: address(&self.weight),
            out: out.address(),
            rows: self.rows,
            vectors: self.vectors,
            width,
            eps: 1e-5,
        };
        let bias = self.bias.as_deref().map_or(0, address);
        // SAFETY: the addresses are of buffers of these sizes.
        unsafe { TWIN.run(&launches::call(&norm, bias), order) };
        out.written().to_vec()
    }
}

#[test]
fn it_is_the_reference_in_every_type_whatever_the_order_of_threads() {
    if !TWIN.exists() {
        return;
    }
    let mut rng = rng(1);
    for (rows, vectors, width) in [(1, 1, 1), (3, 2, 33), (2, 3, 128), (5, 1, 1000), (2, 1, 4096)] {
        for with_bias in [false, true] {
            let stride = vectors * width + 5;
            let case = Case {
                // Away from zero, so that the mean matters.
                x: floats(&mut rng, rows * stride).iter().map(|x| x + 3.0).collect(),
                stride,
                weight: floats(&mut rng, width),
                bias: with_bias.then(|| floats(&mut rng, width)),
                rows,
                vectors,
            };
            let x: Vec<f32> = case.x.chunks(stride).flat_map(|row| &row[..vectors * width]).copied().collect();
            let bias = case.bias.clone().unwrap_or_else(|| vec![0.0; width]);
            let want = reference::layer_norm(&x, &case.weight, &bias, 1e-5);
            let got = case.run("candlewick_layer_norm_f32", 7.0f32, Order::Forward);
            assert_close(&got, &want, if width == 1 { 1e-3 } else { 2e-6 });
            assert_eq!(case.run("candlewick_layer_norm_f32", 7.0f32, Order::Reversed), got);
            let half = case.run("candlewick_layer_norm_bf16", bf16::MAX, Order::Forward);
            assert_eq!(half, got.iter().copied().map(bf16::from_f32).collect::<Vec<_>>());
            let half = case.run("candlewick_layer_norm_f16", f16::MAX, Order::Forward);
            assert_eq!(half, got.iter().copied().map(f16::from_f32).collect::<Vec<_>>());
        }
    }
}
