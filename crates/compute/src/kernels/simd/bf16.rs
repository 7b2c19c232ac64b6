//! Products of pairs of bfloat16 by AVX512-BF16.
//!
//! `vdpbf16ps` adds two products to each lane's sum, first that of the high halves, then that of the low ones, and rounds
//! after each (Intel SDM, volume 2, VDPBF16PS): two links of one chain of fused multiply-adds. Results and operands below
//! 2^-126 count as zero, as with tiles.

use super::{Kernel, avx512::Avx512, vnni::Vnni};
use crate::kernels::processor::is_intel;

/// Proof that the CPU has AVX512-BF16 beside what [`Vnni`] has: made by [`Bf16::detect`] alone.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bf16(Vnni);

impl Bf16 {
    /// The proof, where the CPU can give it.
    pub(super) fn detect() -> Option<Self> {
        Vnni::detect().filter(|_| is_x86_feature_detected!("avx512bf16")).map(Self)
    }

    /// Whether this CPU multiplies pairs faster than it does the same by float32 multiply-adds. AMD's take two products in the turn of
    /// one; Intel's start one every other turn, where two multiply-adds start each.
    pub(super) fn pays(self) -> bool {
        !is_intel()
    }

    /// The products of bytes beside it.
    pub(super) fn vnni(self) -> Vnni {
        self.0
    }

    /// The vectors of floats.
    pub(super) fn avx512(self) -> Avx512 {
        self.0.avx512()
    }

    /// Compiles a kernel with these instructions, those of pairs too, and runs it.
    pub(crate) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        #[inline(never)]
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")]
        fn compiled<K: Kernel>(simd: Avx512<true>, kernel: K) -> K::Output {
            kernel.run(simd)
        }
        // SAFETY: `self` proves that the CPU has the instructions.
        unsafe { compiled(self.avx512().with_pairs(self), kernel) }
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;
    use rand::{RngExt, SeedableRng};

    use super::*;
    use crate::kernels::simd::{LANES, Level, Simd};

    struct Dot {
        sum: [f32; LANES],
        words: [[u16; LANES]; 2],
        x: [u16; 2],
    }

    impl Kernel for &Dot {
        type Output = [u32; LANES];

        #[inline(always)]
        fn run<S: Simd>(self, simd: S) -> [u32; LANES] {
            let Dot { sum, words: [first, second], x } = self;
            let pairs = simd.pair(simd.load_bf16(first), simd.load_bf16(second));
            let sum = simd.dot_pairs(simd.load(sum), pairs, u32::from(x[0]) << 16 | u32::from(x[1]));
            simd.to_array(sum).map(f32::to_bits)
        }
    }

    #[test]
    fn the_products_of_a_pair_are_two_links_of_a_chain_the_high_halves_first() {
        let mut rng = rand::rngs::StdRng::seed_from_u64(1);
        for _ in 0..10_000 {
            let mut any = |scale: f32| bf16::from_f32(rng.random_range(-scale..scale)).to_bits();
            let words = [(); 2].map(|()| std::array::from_fn(|_| any(3.0)));
            let x = [any(2.0), any(200.0)];
            let dot = Dot { sum: std::array::from_fn(|_| rng.random_range(-9.0..9.0)), words, x };
            let float = |bits| bf16::from_bits(bits).to_f32();
            let want = std::array::from_fn(|lane| {
                let [first, second] = words.map(|words| float(words[lane]));
                second.mul_add(float(x[1]), first.mul_add(float(x[0]), dot.sum[lane])).to_bits()
            });
            for level in Level::tested() {
                assert_eq!(level.run(&dot), want, "{level:?}");
            }
            if let Some(bf16) = Bf16::detect() {
                assert_eq!(bf16.run(&dot), want);
            }
        }
    }

    struct Pairs([[u16; LANES]; 2]);

    impl Kernel for &Pairs {
        type Output = [[u32; LANES]; 2];

        #[inline(always)]
        fn run<S: Simd>(self, simd: S) -> Self::Output {
            let Pairs([first, second]) = self;
            let pairs = [simd.pair_words(first, second), simd.pairs_of_fours(simd.load_bf16(first))];
            pairs.map(|pairs| simd.to_integers(pairs).map(|pair| pair as u32))
        }
    }

    #[test]
    fn pairs_are_of_two_vectors_or_of_fours() {
        let words: [[u16; LANES]; 2] = [0x3f80, 0x4000].map(|first| std::array::from_fn(|lane| first + lane as u16));
        let pair = |first: u16, second: u16| u32::from(first) << 16 | u32::from(second);
        for level in Level::tested() {
            let [both, fours] = level.run(&Pairs(words));
            for lane in 0..LANES {
                assert_eq!(both[lane], pair(words[0][lane], words[1][lane]), "{level:?}, lane {lane}");
            }
            for lane in (0..LANES).filter(|lane| lane % 4 < 2) {
                assert_eq!(fours[lane], pair(words[0][lane], words[0][lane + 2]), "{level:?}, lane {lane}");
            }
        }
    }
}
