//! The kernels of rms_norm.cu, as host C++, against the reference.

use half::{bf16, f16};

use super::{launches, reference};
use crate::kernels::{
    cuda::{
        NormLaunch,
        host_twin::{Order, Output, Twin, address},
    },
    test_data::{assert_close, floats, rng},
};

static TWIN: Twin = Twin::of("rms_norm");

/// Rows of three vectors, of which the kernel takes so many.
struct Case {
    x: Vec<f32>,
    weight: Vec<f32>,
    rows: usize,
    vectors: usize,
}

impl Case {
    fn of(width: usize, rows: usize, vectors: usize, seed: u64) -> Self {
        let mut rng = rng(seed);
        Self { x: floats(&mut rng, rows * 3 * width), weight: floats(&mut rng, width), rows, vectors }
    }

    fn run<T: Copy + PartialEq + std::fmt::Debug>(&self, kernel: &'static str, margin: T, order: Order) -> Vec<T> {
        let width = self.weight.len();
        let mut out = Output::unwritten(self.rows * self.vectors * width, margin);
        let norm = NormLaunch {
            kernel,
            x: address(&self.x),
            stride: 3 * width,
            weight: address(&self.weight),
            out: out.address(),
            rows: self.rows,
            vectors: self.vectors,
            width,
            eps: 1e-6,
        };
        // SAFETY: the addresses are of buffers of these sizes.
        unsafe { TWIN.run(&launches::call(&norm), order) };
        out.written().to_vec()
    }

    /// The numbers that the norm is taken of.
    fn normed(&self) -> Vec<f32> {
        let width = self.weight.len();
        self.x.chunks(3 * width).flat_map(|row| &row[..self.vectors * width]).copied().collect()
    }
}

#[test]
fn it_is_the_reference_in_every_type_whatever_the_order_of_threads() {
    if !TWIN.exists() {
        return;
    }
    for (rows, vectors, width) in [(1, 1, 1), (3, 2, 33), (2, 3, 128), (5, 1, 1000), (2, 1, 4096), (1, 1, 9000)] {
        let case = Case::of(width, rows, vectors, 1);
        let want = reference::rms_norm(&case.normed(), &case.weight, 1e-6);
        let got = case.run("candlewick_rms_norm_f32", 7.0f32, Order::Forward);
        assert_close(&got, &want, 1e-6);
        assert_eq!(case.run("candlewick_rms_norm_f32", 7.0f32, Order::Reversed), got);
        let half = case.run("candlewick_rms_norm_bf16", bf16::ONE, Order::Forward);
        assert_eq!(half, got.iter().copied().map(bf16::from_f32).collect::<Vec<_>>());
        let half = case.run("candlewick_rms_norm_f16", f16::ONE, Order::Forward);
        assert_eq!(half, got.iter().copied().map(f16::from_f32).collect::<Vec<_>>());
    }
}

#[test]
fn a_row_has_the_same_bits_alone_and_in_any_batch() {
    if !TWIN.exists() {
        return;
    }
    let mut all = Case::of(300, 20, 1, 2);
    let batch = all.run("candlewick_rms_norm_f32", 7.0f32, Order::Forward);
    all.x.drain(..7 * 900);
    all.rows = 1;
    let alone = all.run("candlewick_rms_norm_f32", 7.0f32, Order::Forward);
    assert_eq!(alone, batch[7 * 300..8 * 300]);
}

#[test]
fn what_is_no_number_stays_in_its_row() {
    if !TWIN.exists() {
        return;
    }
    let mut case = Case::of(50, 3, 1, 4);
    case.x[160] = f32::NAN;
    let got = case.run("candlewick_rms_norm_f32", 7.0f32, Order::Forward);
    let wrong = |row: &[f32]| row.iter().filter(|x| x.is_nan()).count();
    assert_eq!(got.chunks(50).map(wrong).collect::<Vec<_>>(), [0, 50, 0]);
}
