//! The lanes as two 256-bit registers.

use std::arch::x86_64::*;

use super::{Kernel, LANES, Simd};

/// Proof that the CPU has AVX2, FMA and F16C: made by [`Avx2::detect`] alone.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Avx2(());

impl Avx2 {
    /// The proof, where the CPU can give it.
    pub(super) fn detect() -> Option<Self> {
        let has =
            is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
        has.then_some(Self(()))
    }

    /// Compiles a kernel with these instructions and runs it.
    #[inline]
    pub(super) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        #[inline(never)]
        #[target_feature(enable = "avx2,fma,f16c")]
        fn compiled<K: Kernel>(simd: Avx2, kernel: K) -> K::Output {
            kernel.run(simd)
        }
        // SAFETY: `self` proves that the CPU has the instructions.
        unsafe { compiled(self, kernel) }
    }
}

/// Two registers of eight floats.
#[derive(Clone, Copy)]
pub(crate) struct F(__m256, __m256);

/// Two registers of eight integers.
#[derive(Clone, Copy)]
pub(crate) struct I(__m256i, __m256i);

impl Simd for Avx2 {
    type F = F;
    type I = I;
    const TILE_ROWS: usize = 4;
    const SUMS: usize = 4;

    #[inline(always)]
    fn splat(self, x: f32) -> F {
        // SAFETY: `self` proves that the CPU has the instructions.
        unsafe { F(_mm256_set1_ps(x), _mm256_set1_ps(x)) }
    }

    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> F {
        // SAFETY: `self` proves that the CPU has the instructions; the reference covers all lanes.
        unsafe { F(_mm256_loadu_ps(from.as_ptr()), _mm256_loadu_ps(from.as_ptr().add(8))) }
    }

    #[inline(always)]
    fn store(self, x: F, to: &mut [f32; LANES]) {
        // SAFETY: `self` proves that the CPU has the instructions; the reference covers all lanes.
        unsafe {
            _mm256_storeu_ps(to.as_mut_ptr(), x.0);
            _mm256_storeu_ps(to.as_mut_ptr().add(8), x.1);
        }
    }

    #[inline(always)]
    fn load_f16(self, from: &[u16; LANES]) -> F {
        // SAFETY: `self` proves that the CPU has the instructions; the reference covers all lanes.
        unsafe {
            let (low, high) = (_mm_loadu_si128(from.as_ptr().cast()), _mm_loadu_si128(from.as_ptr().add(8).cast()));
            F(_mm256_cvtph_ps(low), _mm256_cvtph_ps(high))
        }
    }

    #[inline(always)]
    fn load_bf16(self, from: &[u16; LANES]) -> F {
        // SAFETY: `self` proves that the CPU has the instructions; the reference covers all lanes.
        unsafe {
            let (low, high) = (_mm_loadu_si128(from.as_ptr().cast()), _mm_loadu_si128(from.as_ptr().add(8).cast()));
            let (low, high) = (_mm256_cvtepu16_epi32(low), _mm256_cvtepu16_epi32(high));
            F(_mm256_castsi256_ps(_mm256_slli_epi32::<16>(low)), _mm256_castsi256_ps(_mm256_slli_epi32::<16>(high)))
        }
    }

    #[inline(always)]
    fn fma(self, a: F, b: F, c: F) -> F {
        // SAFETY: `self` proves that the CPU has the instructions.
        unsafe { F(_mm256_fmadd_ps(a.0, b.0, c.0), _mm256_fmadd_ps(a.1, b.1, c.1)) }
    }

    #[inline(always)]
    fn add(self, a: F, b: F) -> F {
        // SAFETY: `self` proves that the CPU has the instructions.
        unsafe { F(_mm256_add_ps(a.0, b.0), _mm256_add_ps(a.1, b.1)) }
    }

    #[inline(always)]
    fn sub(self, a: F, b: F) -> F {
        // SAFETY: `self` proves that the CPU has the instructions.
        unsafe { F(_mm256_sub_ps(a.0, b.0), _mm256_sub_ps(a.1, b.1)) }
    }

    #[inline(always)]
    fn mul(self, a: F, b: F) -> F {
        // SAFETY: `self` proves that the CPU has the instructions.
        unsafe { F(_mm256_mul_ps(a.0, b.0), _mm256_mul_ps(a.1, b.1)) }
    }

    #[inline(always)]
    fn div(self, a: F, b: F) -> F {
        // SAFETY: `self` proves that the CPU has the instructions.
        unsafe { F(_mm256_div_ps(a.0, b.0), _mm256_div_ps(a.1, b.1)) }
    }

    #[inline(always)]
    fn max(self, a: F, b: F) -> F {
        // SAFETY: `self` proves that the CPU has the instructions.
        unsafe { F(_mm256_max_ps(a.0, b.0), _mm256_max_ps(a.1, b.1)) }
    }

    #[inline(always)]
    fn min(self, a: F, b: F) -> F {
        // SAFETY: `self` proves that the CPU has the instructions.
        unsafe { F(_mm256_min_ps(a.0, b.0), _mm256_min_ps(a.1, b.1)) }
    }

    #[inline(always)]
    fn load_i8(self, from: &[i8; LANES]) -> I {
        // SAFETY: `self` proves that the CPU has the instructions; the reference covers all lanes.
        unsafe {
            let bytes = _mm_loadu_si128(from.as_ptr().cast());
            I(_mm256_cvtepi8_epi32(bytes), _mm256_cvtepi8_epi32(_mm_unpackhi_epi64(bytes, bytes)))
        }
    }

    #[inline(always)]
    fn load_u8(self, from: &[u8; LANES]) -> I {
        // SAFETY: `self` proves that the CPU has the instructions; the reference covers all lanes.
        unsafe {
            let bytes = _mm_loadu_si128(from.as_ptr().cast());
            I(_mm256_cvtepu8_epi32(bytes), _mm256_cvtepu8_epi32(_mm_unpackhi_epi64(bytes, bytes)))
        }
    }

    #[inline(always)]
    fn load_i16(self, from: &[i16; LANES]) -> I {
        // SAFETY: `self` proves that the CPU has the instructions; the reference covers all lanes.
        unsafe {
            let from = from.as_ptr().cast::<__m128i>();
            I(_mm256_cvtepi16_epi32(_mm_loadu_si128(from)), _mm256_cvtepi16_epi32(_mm_loadu_si128(from.add(1))))
        }
    }

    #[inline(always)]
    fn load_bytes(self, from: &[[u8; 4]; LANES]) -> I {
        // SAFETY: `self` proves that the CPU has the instructions; the reference covers all lanes.
        unsafe {
            let from = from.as_ptr().cast::<__m256i>();
            I(_mm256_loadu_si256(from), _mm256_loadu_si256(from.add(1)))
        }
    }

    #[inline(always)]
    fn splat_i32(self, x: i32) -> I {
        // SAFETY: `self` proves that the CPU has the instructions.
        unsafe { I(_mm256_set1_epi32(x), _mm256_set1_epi32(x)) }
    }

    #[inline(always)]
    fn sub_bytes(self, x: I, y: u8) -> I {
        // SAFETY: `self` proves that the CPU has the instructions.
        unsafe {
            let y = _mm256_set1_epi8(y as i8);
            I(_mm256_sub_epi8(x.0, y), _mm256_sub_epi8(x.1, y))
        }
    }

    #[inline(always)]
    fn dot_bytes(self, sum: I, weights: I, x: [i8; 4]) -> I {
        // Magnitudes, at most 128, times what has their signs: a pair's sum is below 2^15.
        let dot = |sum: __m256i, weights: __m256i| {
            // SAFETY: `self` proves that the CPU has the instructions.
            unsafe {
                let x = _mm256_sign_epi8(_mm256_set1_epi32(i32::from_le_bytes(x.map(|x| x as u8))), weights);
                let pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(weights), x);
                _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
            }
        };
        I(dot(sum.0, weights.0), dot(sum.1, weights.1))
    }

    #[inline(always)]
    fn dot_words(self, sum: I, words: I, x: [i16; 2]) -> I {
        // SAFETY: `self` proves that the CPU has the instructions.
        unsafe {
            let x = _mm256_set1_epi32(bytemuck::cast(x));
            I(
                _mm256_add_epi32(sum.0, _mm256_madd_epi16(words.0, x)),
                _mm256_add_epi32(sum.1, _mm256_madd_epi16(words.1, x)),
            )
        }
    }

    #[inline(always)]
    fn and(self, x: I, mask: i32) -> I {
        // SAFETY: `self` proves that the CPU has the instructions.
        unsafe {
            let mask = _mm256_set1_epi32(mask);
            I(_mm256_and_si256(x.0, mask), _mm256_and_si256(x.1, mask))
        }
    }

    #[inline(always)]
    fn or(self, a: I, b: I) -> I {
        // SAFETY: `self` proves that the CPU has the instructions.
        unsafe { I(_mm256_or_si256(a.0, b.0), _mm256_or_si256(a.1, b.1)) }
    }

    #[inline(always)]
    fn add_i32(self, x: I, y: i32) -> I {
        // SAFETY: `self` proves that the CPU has the instructions.
        unsafe {
            let y = _mm256_set1_epi32(y);
            I(_mm256_add_epi32(x.0, y), _mm256_add_epi32(x.1, y))
        }
    }

    #[inline(always)]
    fn add_integers(self, a: I, b: I) -> I {
        // SAFETY: `self` proves that the CPU has the instructions.
        unsafe { I(_mm256_add_epi32(a.0, b.0), _mm256_add_epi32(a.1, b.1)) }
    }

    #[inline(always)]
    fn mul_integers(self, a: I, b: I) -> I {
        // SAFETY: `self` proves that the CPU has the instructions.
        unsafe { I(_mm256_mullo_epi32(a.0, b.0), _mm256_mullo_epi32(a.1, b.1)) }
    }

    #[inline(always)]
    fn max_magnitude(self, largest: I, x: F) -> I {
        // SAFETY: `self` proves that the CPU has the instructions.
        unsafe {
            let magnitude = |x: __m256| _mm256_and_si256(_mm256_castps_si256(x), _mm256_set1_epi32(0x7fff_ffff));
            I(_mm256_max_epu32(largest.0, magnitude(x.0)), _mm256_max_epu32(largest.1, magnitude(x.1)))
        }
    }

    #[inline(always)]
    fn shl<const N: u32>(self, x: I) -> I {
        // SAFETY: `self` proves that the CPU has the instructions.
        unsafe {
            let count = _mm_cvtsi32_si128(N as i32);
            I(_mm256_sll_epi32(x.0, count), _mm256_sll_epi32(x.1, count))
        }
    }

    #[inline(always)]
    fn shr<const N: u32>(self, x: I) -> I {
        // SAFETY: `self` proves that the CPU has the instructions.
        unsafe {
            let count = _mm_cvtsi32_si128(N as i32);
            I(_mm256_srl_epi32(x.0, count), _mm256_srl_epi32(x.1, count))
        }
    }

    #[inline(always)]
    fn to_f32(self, x: I) -> F {
        // SAFETY: `self` proves that the CPU has the instructions.
        unsafe { F(_mm256_cvtepi32_ps(x.0), _mm256_cvtepi32_ps(x.1)) }
    }

    #[inline(always)]
    fn as_floats(self, x: I) -> F {
        // SAFETY: `self` proves that the CPU has the instructions.
        unsafe { F(_mm256_castsi256_ps(x.0), _mm256_castsi256_ps(x.1)) }
    }

    #[inline(always)]
    fn as_integers(self, x: F) -> I {
        // SAFETY: `self` proves that the CPU has the instructions.
        unsafe { I(_mm256_castps_si256(x.0), _mm256_castps_si256(x.1)) }
    }

    #[inline(always)]
    fn prefetch_line(self, address: *const u8) {
        // SAFETY: a prefetch of any address is harmless.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) }
    }

    #[inline(always)]
    fn prefetch_far_line(self, address: *const u8) {
        // SAFETY: a prefetch of any address is harmless.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(address.cast()) }
    }
}
