//! Products of pairs of bfloat16 by AVX512-BF16.
//!
//! `vdpbf16ps` adds two products to each lane's sum, first that of the high halves, then that of the low ones, and rounds
//! after each (Intel SDM, volume 2, VDPBF16PS): two links of one chain of fused multiply-adds. Results and operands below
//! 2^-126 count as zero, as with tiles.

use std::arch::x86_64::*;

use super::{LANES, avx512::Avx512, vnni::Vnni};

/// Proof that the CPU has AVX512-BF16 beside what [`Vnni`] has: made by [`Bf16::detect`] alone.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bf16(Vnni);

/// Work with pairs.
pub(crate) trait PairKernel {
    /// Does it. Implementations and all functions that they hand vectors to are `#[inline(always)]`.
    fn run(self, simd: PairSimd);
}

/// Vectors of pairs of bfloat16: made inside [`Bf16::run`] and by tiles, which come with them.
#[derive(Clone, Copy)]
pub(crate) struct PairSimd(Avx512);

/// Word `2 n` is the second operand's, word `2 n + 1` the first's.
pub(super) const PAIRED: [u16; 2 * LANES] = {
    let mut order = [0; 2 * LANES];
    let mut lane = 0;
    while lane < LANES {
        order[2 * lane] = (LANES + lane) as u16;
        order[2 * lane + 1] = lane as u16;
        lane += 1;
    }
    order
};

impl Bf16 {
    /// The proof, where the CPU can give it.
    pub(super) fn detect() -> Option<Self> {
        Vnni::detect().filter(|_| is_x86_feature_detected!("avx512bf16")).map(Self)
    }

    /// The products of bytes beside it.
    pub(super) fn vnni(self) -> Vnni {
        self.0
    }

    /// The vectors of floats.
    pub(super) fn avx512(self) -> Avx512 {
        self.0.avx512()
    }

    /// The vectors of pairs, for work that is compiled with their instructions.
    pub(super) fn pairs(self) -> PairSimd {
        PairSimd(self.avx512())
    }

    /// Compiles work with these instructions and runs it.
    pub(crate) fn run<K: PairKernel>(self, kernel: K) {
        #[inline(never)]
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")]
        fn compiled<K: PairKernel>(simd: PairSimd, kernel: K) {
            kernel.run(simd);
        }
        // SAFETY: `self` proves that the CPU has the instructions.
        unsafe { compiled(self.pairs(), kernel) }
    }
}

impl PairSimd {
    /// The vectors of 32-bit lanes.
    #[inline(always)]
    pub(crate) fn avx512(self) -> Avx512 {
        self.0
    }

    /// `sum` and the products of each lane's pair with the pair `x`, those of the high halves first.
    #[inline(always)]
    pub(crate) fn dot(self, sum: __m512, pairs: __m512i, x: u32) -> __m512 {
        // SAFETY: `self` proves that the CPU has the instructions; any bits are bfloat16.
        unsafe {
            let x = std::mem::transmute::<__m512i, __m512bh>(_mm512_set1_epi32(x as i32));
            _mm512_dpbf16_ps(sum, x, std::mem::transmute::<__m512i, __m512bh>(pairs))
        }
    }

    /// Pairs of which the high halves are `first`.
    #[inline(always)]
    pub(crate) fn pair_words(self, first: &[u16; LANES], second: &[u16; LANES]) -> __m512i {
        // SAFETY: `self` proves that the CPU has the instructions; the references cover 32 bytes each.
        unsafe {
            let [first, second] = [first, second].map(|words| _mm256_loadu_si256(words.as_ptr().cast()));
            let both = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(first), second);
            _mm512_permutexvar_epi16(_mm512_loadu_si512(PAIRED.as_ptr().cast()), both)
        }
    }

    /// Pairs of floats that are bfloat16 already, of which the high halves are `first`.
    #[inline(always)]
    pub(crate) fn pair(self, first: __m512, second: __m512) -> __m512i {
        // SAFETY: `self` proves that the CPU has the instructions.
        unsafe { _mm512_or_si512(_mm512_castps_si512(first), _mm512_srli_epi32::<16>(_mm512_castps_si512(second))) }
    }

    /// Of each four floats, bfloat16 already, pairs of the first and the third, and of the second and the fourth, in the
    /// places of the first two; what is in the others' has no meaning.
    #[inline(always)]
    pub(crate) fn store_pairs_of_fours(self, x: __m512, to: &mut [u32; LANES]) {
        const THIRD_AND_FOURTH: i32 = 0b00_00_11_10;
        // SAFETY: `self` proves that the CPU has the instructions; the reference covers 64 bytes.
        unsafe {
            let pairs = self.pair(x, _mm512_permute_ps::<THIRD_AND_FOURTH>(x));
            _mm512_storeu_si512(to.as_mut_ptr().cast(), pairs);
        }
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;
    use rand::{RngExt, SeedableRng};

    use super::*;
    use crate::kernels::simd::Simd;

    struct Dot {
        sum: [f32; LANES],
        words: [[u16; LANES]; 2],
        x: [u16; 2],
    }

    impl PairKernel for (Dot, &mut [[f32; LANES]; 2], &mut [u32; LANES]) {
        #[inline(always)]
        fn run(self, simd: PairSimd) {
            let (Dot { sum, words: [first, second], x }, to, fours) = self;
            let floats = simd.avx512();
            let x = u32::from(x[0]) << 16 | u32::from(x[1]);
            let words = simd.pair_words(&first, &second);
            floats.store(simd.dot(floats.load(&sum), words, x), &mut to[0]);
            let pairs = simd.pair(floats.load_bf16(&first), floats.load_bf16(&second));
            floats.store(simd.dot(floats.load(&sum), pairs, x), &mut to[1]);
            simd.store_pairs_of_fours(floats.load_bf16(&first), fours);
        }
    }

    #[test]
    fn the_products_of_a_pair_are_two_links_of_a_chain_the_high_halves_first() {
        let Some(simd) = Bf16::detect() else { return };
        let mut rng = rand::rngs::StdRng::seed_from_u64(1);
        for _ in 0..10_000 {
            let mut any = |scale: f32| bf16::from_f32(rng.random_range(-scale..scale)).to_bits();
            let words = [(); 2].map(|()| std::array::from_fn(|_| any(3.0)));
            let x = [any(2.0), any(200.0)];
            let sum = std::array::from_fn(|_| rng.random_range(-9.0..9.0));
            let (mut got, mut fours) = ([[0.0; LANES]; 2], [0; LANES]);
            simd.run((Dot { sum, words, x }, &mut got, &mut fours));
            let float = |bits| bf16::from_bits(bits).to_f32();
            let want: [f32; LANES] = std::array::from_fn(|lane| {
                let [first, second] = words.map(|words| float(words[lane]));
                second.mul_add(float(x[1]), first.mul_add(float(x[0]), sum[lane]))
            });
            assert_eq!(got.map(|got| got.map(f32::to_bits)), [want.map(f32::to_bits); 2]);
            for lane in (0..LANES).filter(|lane| lane % 4 < 2) {
                let [first, second] = [lane, lane + 2].map(|lane| u32::from(words[0][lane]));
                assert_eq!(fours[lane], first << 16 | second);
            }
        }
    }
}
