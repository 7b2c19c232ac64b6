//! What this machine can do at most, measured: the yardstick beside which a kernel's speed means something.

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use super::{
    pool::{current_num_threads, for_each_task},
    simd::{
        Kernel, LANES, Level, Simd,
        integers::{IntegerKernel, Integers},
    },
};
use crate::error::{Code, Error, Result};
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
use crate::kernels::simd::{amx, amx_integers, avx512::Avx512};

/// Instructions that the CPU's kernels are made of. All give the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InstructionSet {
    /// What every CPU of this architecture has.
    Baseline,
    /// AVX2, FMA and F16C.
    Avx2,
    /// AVX-512 F, BW, DQ and VL.
    Avx512,
    /// Those, and products of bytes.
    Avx512Vnni,
    /// Those, and products of pairs of bfloat16.
    Avx512Bf16,
    /// Those, and AMX tiles.
    Amx,
}

impl InstructionSet {
    /// All of them with their names, narrowest first.
    pub const NAMES: [(Self, &'static str); 6] = [
        (Self::Baseline, "baseline"),
        (Self::Avx2, "avx2"),
        (Self::Avx512, "avx512"),
        (Self::Avx512Vnni, "avx512-vnni"),
        (Self::Avx512Bf16, "avx512-bf16"),
        (Self::Amx, "amx"),
    ];
}

/// What numbers are multiplied as: each way has a limit of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arithmetic {
    /// Fused float32 multiply-adds.
    Float32,
    /// Products of bfloat16, summed in float32: those of tiles or of pairs, else [`Float32`](Self::Float32)'s.
    Bfloat16,
    /// Products of bytes, summed in 32 bits.
    Bytes,
}

/// What bounds every model here.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// Bytes a second read from memory.
    pub read_bytes_per_second: f64,
    /// By [`Arithmetic`].
    products: [f64; 3],
}

impl Limits {
    /// Operations a second, two a multiply-add.
    #[must_use]
    pub fn operations_per_second(&self, arithmetic: Arithmetic) -> f64 {
        self.products[arithmetic as usize]
    }

    /// The better of two measurements.
    #[must_use]
    pub fn best(self, other: Self) -> Self {
        let [a, b] = [self.products, other.products];
        Self {
            read_bytes_per_second: self.read_bytes_per_second.max(other.read_bytes_per_second),
            products: std::array::from_fn(|k| a[k].max(b[k])),
        }
    }
}

/// Measures all on the current pool; takes about a second.
#[must_use]
pub fn limits() -> Limits {
    /// Many times any cache.
    const BYTES: usize = 1 << 29;
    let float32 = float_operations_per_second();
    Limits {
        read_bytes_per_second: memory_read_bytes_per_second(BYTES),
        products: [float32, bfloat16_operations_per_second().unwrap_or(float32), byte_operations_per_second()],
    }
}

/// Bytes a second that all threads of the current pool read together, each four streams at once: the best of several
/// passes over parts of `bytes`, which should be many times the caches.
fn memory_read_bytes_per_second(bytes: usize) -> f64 {
    const PASSES: usize = 48;
    let data: Vec<[f32; LANES]> = vec![[1.0; LANES]; bytes / 64];
    let (parts, tasks) = (12, current_num_threads());
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
fn float_operations_per_second() -> f64 {
    const STEPS: usize = 1 << 16;
    const PASSES: usize = 200;
    let tasks = current_num_threads();
    let time = best_time(PASSES, |_| {
        for_each_task(tasks, true, |task| {
            black_box(Level::best().run(MultiplyAdds { steps: STEPS, by: black_box(0.5 + task as f32 * 1e-9) }));
        });
    });
    (2 * CHAINS * LANES * STEPS * tasks) as f64 / time.as_secs_f64()
}

/// As [`float_operations_per_second`] for products of bfloat16, where the machine has them: in tiles, or in pairs.
fn bfloat16_operations_per_second() -> Option<f64> {
    match Level::best() {
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        Level::Amx(amx) => {
            let time = best_time(TILE_PASSES, |_| {
                for_each_task(current_num_threads(), true, |_| amx.run(TileProducts));
            });
            Some(operations_of_tiles(32) / time.as_secs_f64())
        }
        #[cfg(target_arch = "x86_64")]
        Level::Avx512Bf16(bf16) => {
            const STEPS: usize = 1 << 16;
            const PASSES: usize = 100;
            let tasks = current_num_threads();
            let time = best_time(PASSES, |_| {
                for_each_task(tasks, true, |task| {
                    black_box(bf16.run(PairProducts { steps: STEPS, from: black_box(task as i32) }));
                });
            });
            Some((2 * 2 * CHAINS * LANES * STEPS * tasks) as f64 / time.as_secs_f64())
        }
        _ => None,
    }
}

/// As [`float_operations_per_second`] for products of bytes.
fn byte_operations_per_second() -> f64 {
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    if let Level::Amx(amx) = Level::best() {
        let time = best_time(TILE_PASSES, |_| {
            for_each_task(current_num_threads(), true, |_| amx.run_integers(TileProducts));
        });
        return operations_of_tiles(64) / time.as_secs_f64();
    }
    const STEPS: usize = 1 << 16;
    const PASSES: usize = 100;
    let tasks = current_num_threads();
    let time = best_time(PASSES, |_| {
        for_each_task(tasks, true, |task| Level::best().run_integers(ByteProducts { steps: STEPS, from: task as i32 }));
    });
    (2 * 4 * CHAINS * LANES * STEPS * tasks) as f64 / time.as_secs_f64()
}

/// Has the allocator keep memory that was freed: a step's tensors are as large as the last step's, and a page that comes
/// from the operating system anew costs more than what is computed in it. To be called once, as a program starts.
pub fn keep_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        unsafe extern "C" {
            fn mallopt(parameter: i32, value: i32) -> i32;
        }
        const M_TRIM_THRESHOLD: i32 = -1;
        const M_MMAP_THRESHOLD: i32 = -3;
        // Larger ones, model weights and KV caches, are mapped by themselves: they are allocated once.
        const LARGE: i32 = 32 << 20;
        for (parameter, value) in [(M_MMAP_THRESHOLD, LARGE), (M_TRIM_THRESHOLD, i32::MAX)] {
            // SAFETY: glibc's own function, with the parameters that its documentation (mallopt(3)) has.
            let _kept = unsafe { mallopt(parameter, value) };
        }
    }
}

/// Computes with these instructions from now on, rather than with the best that the CPU has.
///
/// # Errors
/// `FailedPrecondition` where the CPU does not have them, or others are in use already.
pub fn use_instructions(set: InstructionSet) -> Result<()> {
    let is_meant = |level: &Level| match level {
        Level::Scalar(_) => set == InstructionSet::Baseline,
        #[cfg(target_arch = "x86_64")]
        Level::Avx2(_) => set == InstructionSet::Avx2,
        #[cfg(target_arch = "x86_64")]
        Level::Avx512(_) => set == InstructionSet::Avx512,
        #[cfg(target_arch = "x86_64")]
        Level::Avx512Vnni(_) => set == InstructionSet::Avx512Vnni,
        #[cfg(target_arch = "x86_64")]
        Level::Avx512Bf16(_) => set == InstructionSet::Avx512Bf16,
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        Level::Amx(_) => set == InstructionSet::Amx,
    };
    let refused = |why: String| Err(Error::new(Code::FailedPrecondition, format!("--instruction-set {why}")));
    let available = Level::available();
    match available.iter().find(|level| is_meant(level)) {
        Some(level) if level.choose() => Ok(()),
        Some(_) => refused(format!("comes too late: {} is in use", instruction_set())),
        None => {
            let names = available.iter().map(|level| level.name()).collect::<Vec<_>>().join(", ");
            refused(format!("names instructions that this CPU or its system does not offer; it has {names}"))
        }
    }
}

/// The name of the instruction set that the kernels use here.
#[must_use]
pub fn instruction_set() -> &'static str {
    Level::best().name()
}

/// The names of all that the CPU has, narrowest first.
#[must_use]
pub fn instruction_sets() -> Vec<&'static str> {
    Level::available().into_iter().map(Level::name).collect()
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

#[cfg(target_arch = "x86_64")]
struct PairProducts {
    steps: usize,
    from: i32,
}

#[cfg(target_arch = "x86_64")]
impl Kernel for PairProducts {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> f32 {
        // Pairs of 1 and about 1.
        let pairs = simd.splat_i32(0x3f80_3f80 + self.from);
        let mut sums = [simd.zero(); CHAINS];
        for _ in 0..self.steps {
            for sum in &mut sums {
                *sum = simd.dot_pairs(*sum, pairs, 0x3f00_bf00);
            }
        }
        sums.into_iter().map(|sum| simd.sum(sum)).sum()
    }
}

struct ByteProducts {
    steps: usize,
    from: i32,
}

impl IntegerKernel for ByteProducts {
    #[inline(always)]
    fn run<D: Integers>(self, integers: D) {
        let simd = integers.simd();
        let mut sums = [simd.splat_i32(black_box(self.from)); CHAINS];
        for _ in 0..self.steps {
            for sum in &mut sums {
                // The sums are the weights too: what does not change need not be multiplied again.
                *sum = integers.dot(*sum, *sum, [1, 2, 3, 4]);
            }
        }
        black_box(sums.map(|sum| simd.to_integers(sum)));
    }
}

/// Steps of a pass, of four products each.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
const TILE_STEPS: usize = 1 << 13;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
const TILE_PASSES: usize = 200;

/// Operations of a pass: each product is 16 by 16 sums of `inputs` products.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn operations_of_tiles(inputs: usize) -> f64 {
    (TILE_STEPS * 4 * 2 * 16 * 16 * inputs * current_num_threads()) as f64
}

/// Products of tiles that are in registers.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
struct TileProducts;

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
impl amx::TileKernel for TileProducts {
    #[inline(always)]
    fn run(self, _: amx::TileSimd, tiles: &mut amx::Tiles) {
        tiles.products(TILE_STEPS);
    }
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
impl amx_integers::IntegerTileKernel for TileProducts {
    fn rows(&self) -> usize {
        amx::TILE_ROWS
    }

    #[inline(always)]
    fn run(self, _: Avx512, tiles: &mut amx_integers::IntegerTiles) {
        tiles.products(TILE_STEPS);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limits_are_numbers() {
        assert!(memory_read_bytes_per_second(1 << 20).is_finite());
        assert!(float_operations_per_second() > 0.0);
        assert!(bfloat16_operations_per_second().is_none_or(|rate| rate > 0.0));
        assert!(byte_operations_per_second() > 0.0);
        assert!(!instruction_set().is_empty());
    }
}
