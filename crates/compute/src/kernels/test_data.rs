//! What the kernels' tests have in common: seeded data, pools of threads, comparisons.

use candle_core::{Device, Tensor};
use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::pool::Pool;

pub(super) fn rng(seed: u64) -> StdRng {
    StdRng::seed_from_u64(seed)
}

/// `count` numbers in `(-1, 1)`.
pub(super) fn floats(rng: &mut StdRng, count: usize) -> Vec<f32> {
    (0..count).map(|_| rng.random_range(-1.0..1.0)).collect()
}

/// A tensor of the shape, its elements in `(-1, 1)`.
pub(super) fn random(rng: &mut StdRng, shape: &[usize]) -> Tensor {
    tensor(floats(rng, shape.iter().product()), shape)
}

pub(super) fn tensor(data: Vec<f32>, shape: &[usize]) -> Tensor {
    Tensor::from_vec(data, shape, &Device::Cpu).expect("the shape fits")
}

pub(super) fn values(x: &Tensor) -> Vec<f32> {
    x.flatten_all().and_then(|x| x.to_vec1()).expect("a float32 tensor")
}

/// The elements' bits: NaN-proof, and zeros keep their sign.
pub(super) fn bits(x: &Tensor) -> Vec<u32> {
    values(x).into_iter().map(f32::to_bits).collect()
}

/// Runs on so many threads.
pub(super) fn on_threads<T: Send>(count: usize, run: impl FnOnce() -> T + Send) -> T {
    Pool::new(count).expect("threads").install(run)
}

/// `‖got − want‖ / ‖want‖` is at most `tolerance`.
#[track_caller]
pub(super) fn assert_close(got: &[f32], want: &[f64], tolerance: f64) {
    assert_eq!(got.len(), want.len());
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
    let error = norm(&mut got.iter().zip(want).map(|(&g, w)| f64::from(g) - w));
    let size = norm(&mut want.iter().copied());
    assert!(error <= tolerance * size.max(1e-30), "error {error:e} of {size:e} is above {tolerance:e}");
}

/// Both tensors hold the same numbers to within `tolerance`, as in [`assert_close`].
#[track_caller]
pub(super) fn assert_tensors_close(got: &Tensor, want: &Tensor, tolerance: f64) {
    assert_eq!(got.dims(), want.dims());
    let want: Vec<f64> = values(want).into_iter().map(f64::from).collect();
    assert_close(&values(got), &want, tolerance);
}
