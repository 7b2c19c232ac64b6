//! What this machine can do at most, measured: the yardstick beside which a kernel's speed means something.

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use super::{
    cpu_tensor::for_each_task,
    simd::{Kernel, LANES, Level, Simd},
};
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
use crate::kernels::simd::amx;

/// Bytes a second that all threads of the current pool read together, each four streams at once: the best of several
/// passes over parts of `bytes`, which should be many times the caches.
#[must_use]
pub fn memory_read_bytes_per_second(bytes: usize) -> f64 {
    const PASSES: usize = 48;
    let data: Vec<[f32; LANES]> = vec![[1.0; LANES]; bytes / 64];
    let (parts, tasks) = (12, rayon::current_num_threads());
    let time = best_time(PASSES, |pass| {
        let part = &data[data.len() * (pass % parts) / parts..data.len() * (pass % parts + 1) / parts];
        for_each_task(tasks, true, |task| {
            let part = &part[part.len() * task / tasks..part.len() * (task + 1) / tasks];
            black_box(Level::best().run(ReadStreams(part)));
        });
    });
    (data.len() / parts * 64) as f64 / time.as_secs_f64()
}

/// Floating-point operations a second of fused float32 multiply-adds in registers, all threads of the current pool: the
/// best of several passes.
#[must_use]
pub fn float_operations_per_second() -> f64 {
    const STEPS: usize = 1 << 16;
    const PASSES: usize = 200;
    let tasks = rayon::current_num_threads();
    let time = best_time(PASSES, |_| {
        for_each_task(tasks, true, |task| {
            black_box(Level::best().run(MultiplyAdds { steps: STEPS, by: black_box(0.5 + task as f32 * 1e-9) }));
        });
    });
    (2 * CHAINS * LANES * STEPS * tasks) as f64 / time.as_secs_f64()
}

/// As [`float_operations_per_second`] for what multiplies bfloat16: tiles where the machine has them.
#[must_use]
pub fn bfloat16_operations_per_second() -> f64 {
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    if let Level::Amx(amx) = Level::best() {
        const STEPS: usize = 1 << 13;
        const PASSES: usize = 200;
        let tasks = rayon::current_num_threads();
        let time = best_time(PASSES, |_| {
            for_each_task(tasks, true, |_| amx.run(TileProducts { steps: STEPS }));
        });
        // Two panels times two tiles of rows a step, each 16 by 16 sums of 32 products.
        return (STEPS * 4 * 2 * 16 * 16 * 32 * tasks) as f64 / time.as_secs_f64();
    }
    float_operations_per_second()
}

/// The name of the instruction set that the kernels use here.
#[must_use]
pub fn instruction_set() -> &'static str {
    Level::best().name()
}

/// A limit is what was reached once: whatever else the machine does only makes it slower.
fn best_time(passes: usize, pass: impl Fn(usize)) -> Duration {
    let time = |index| {
        let start = Instant::now();
        pass(index);
        start.elapsed()
    };
    (0..passes).map(time).min().unwrap_or_default()
}

struct ReadStreams<'a>(&'a [[f32; LANES]]);

impl Kernel for ReadStreams<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> f32 {
        let quarter = self.0.len() / 4;
        let (a, rest) = self.0.split_at(quarter);
        let (b, rest) = rest.split_at(quarter);
        let (c, d) = rest.split_at(quarter);
        let mut sums = [simd.zero(); 4];
        for (((a, b), c), d) in a.iter().zip(b).zip(c).zip(d) {
            for (sum, x) in sums.iter_mut().zip([a, b, c, d]) {
                *sum = simd.add(*sum, simd.load(x));
            }
        }
        sums.into_iter().map(|sum| simd.sum(sum)).sum()
    }
}

/// Chains that hide the latency of a multiply-add on any machine.
const CHAINS: usize = 12;

struct MultiplyAdds {
    steps: usize,
    by: f32,
}

impl Kernel for MultiplyAdds {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> f32 {
        let by = simd.splat(self.by);
        let mut sums = [by; CHAINS];
        for _ in 0..self.steps {
            for sum in &mut sums {
                *sum = simd.fma(*sum, by, by);
            }
        }
        sums.into_iter().map(|sum| simd.sum(sum)).sum()
    }
}

/// Products of tiles that are in registers, but for one of weights.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
struct TileProducts {
    steps: usize,
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
impl amx::TileKernel for TileProducts {
    #[inline(always)]
    fn run(self, _: amx::TileSimd, tiles: &mut amx::Tiles) {
        let tile = black_box(amx::Tile::ZERO);
        let mut sums = [amx::Sums::ZERO; 4];
        tiles.begin();
        tiles.load_rows([&tile, &tile]);
        for _ in 0..self.steps {
            tiles.multiply_add::<2>(0, &tile);
            tiles.multiply_add::<2>(1, &tile);
        }
        tiles.end(&mut sums);
        black_box(sums);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limits_are_numbers() {
        assert!(memory_read_bytes_per_second(1 << 20).is_finite());
        assert!(float_operations_per_second() > 0.0);
        assert!(bfloat16_operations_per_second() > 0.0);
        assert!(!instruction_set().is_empty());
    }
}
