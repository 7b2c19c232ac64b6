//! The kernels of rms_norm.cu, as host C++, against the reference.

use half::{bf16, f16};

use super::{launches::RmsNormLaunch, reference};
use crate::kernels::{
    cuda::host_twin::{Order, Output, Twin, address},
    test_data::{assert_close, floats, rng},
};

static TWIN: Twin = Twin::of("rms_norm");

/// Rows of three vectors, of which the kernel takes so many, and what it makes of them.
struct Case {
    x: Vec<f32>,
    weight: Vec<f32>,
    residual: Option<Vec<f32>>,
    rows: usize,
    vectors: usize,
}

impl Case {
    fn run<T: Copy + PartialEq + std::fmt::Debug>(
        &self,
        kernel: &'static str,
        margin: T,
        order: Order,
    ) -> (Vec<T>, Vec<f32>) {
        let width = self.weight.len();
        let count = self.rows * self.vectors * width;
        let mut out = Output::unwritten(count, margin);
        let mut residual = Output::of(self.residual.as_deref().unwrap_or_default(), 7.0);
        let launch = RmsNormLaunch {
            kernel,
            x: address(&self.x),
            stride: 3 * width,
            weight: address(&self.weight),
            residual: if self.residual.is_some() { residual.address() } else { 0 },
            out: out.address(),
            rows: self.rows,
            vectors: self.vectors,
            width,
            eps: 1e-6,
        };
        // SAFETY: the addresses are of buffers of these sizes.
        unsafe { TWIN.run(&launch.call(), order) };
        (out.written().to_vec(), residual.written().to_vec())
    }

    /// The numbers that the norm is taken of.
    fn normed(&self) -> Vec<f32> {
        let width = self.weight.len();
        let x = self.x.chunks(3 * width).flat_map(|row| &row[..self.vectors * width]).copied();
        match &self.residual {
            Some(residual) => x.zip(residual).map(|(x, r)| x + r).collect(),
            None => x.collect(),
        }
    }
}

fn cases() -> impl Iterator<Item = Case> {
    let mut rng = rng(1);
    let shapes = [(1, 1, 1), (3, 2, 33), (2, 3, 128), (5, 1, 1000), (2, 1, 4096), (1, 1, 9000)];
    shapes.into_iter().flat_map(move |(rows, vectors, width)| {
        let residual = floats(&mut rng, rows * vectors * width);
        [None, Some(residual)].map(|residual| Case {
            x: floats(&mut rng, rows * 3 * width),
            weight: floats(&mut rng, width),
            residual,
            rows,
            vectors,
        })
    })
}

#[test]
fn it_is_the_reference_in_every_type_whatever_the_order_of_threads() {
    if !TWIN.exists() {
        return;
    }
    for case in cases() {
        let sum = case.normed();
        let want = reference::rms_norm(&sum, &case.weight, 1e-6);
        let (got, residual) = case.run("candlewick_rms_norm_f32", 7.0f32, Order::Forward);
        assert_close(&got, &want, 1e-6);
        if case.residual.is_some() {
            assert_eq!(residual, sum);
        }
        assert_eq!(case.run("candlewick_rms_norm_f32", 7.0f32, Order::Reversed), (got.clone(), residual));
        let (half, _) = case.run("candlewick_rms_norm_bf16", bf16::ONE, Order::Forward);
        assert_eq!(half, got.iter().copied().map(bf16::from_f32).collect::<Vec<_>>());
        let (half, _) = case.run("candlewick_rms_norm_f16", f16::ONE, Order::Forward);
        assert_eq!(half, got.iter().copied().map(f16::from_f32).collect::<Vec<_>>());
    }
}

#[test]
fn a_row_has_the_same_bits_alone_and_in_any_batch() {
    if !TWIN.exists() {
        return;
    }
    let mut all = Case {
        x: floats(&mut rng(2), 20 * 3 * 300),
        weight: floats(&mut rng(3), 300),
        residual: None,
        rows: 20,
        vectors: 1,
    };
    let (batch, _) = all.run("candlewick_rms_norm_f32", 7.0f32, Order::Forward);
    all.x.drain(..7 * 900);
    all.rows = 1;
    let (alone, _) = all.run("candlewick_rms_norm_f32", 7.0f32, Order::Forward);
    assert_eq!(alone, batch[7 * 300..8 * 300]);
}

#[test]
fn what_is_no_number_stays_in_its_row() {
    if !TWIN.exists() {
        return;
    }
    let mut case = Case {
        x: floats(&mut rng(4), 3 * 3 * 50),
        weight: floats(&mut rng(5), 50),
        residual: None,
        rows: 3,
        vectors: 1,
    };
    case.x[160] = f32::NAN;
    let (got, _) = case.run("candlewick_rms_norm_f32", 7.0f32, Order::Forward);
    let wrong = |row: &[f32]| row.iter().filter(|x| x.is_nan()).count();
    assert_eq!(got.chunks(50).map(wrong).collect::<Vec<_>>(), [0, 50, 0]);
}
