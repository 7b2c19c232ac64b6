//! The lanes as one 512-bit register.

use std::{arch::x86_64::*, mem::MaybeUninit};

use super::{Kernel, LANES, Simd, bf16::Bf16, two_links};

/// Proof that the CPU has AVX-512 F, BW, DQ and VL, and with `PAIRS` AVX512-BF16: made by [`Avx512::detect`] and
/// [`Avx512::with_pairs`] alone.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Avx512<const PAIRS: bool = false>(());

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

impl Avx512 {
    /// The proof, where the CPU can give it.
    pub(super) fn detect() -> Option<Self> {
        let has = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c");
        has.then_some(Self(()))
    }

    /// The proof that products of pairs are there too.
    pub(super) fn with_pairs(self, _: Bf16) -> Avx512<true> {
        Avx512(())
    }

    /// Compiles a kernel with these instructions and runs it.
    #[inline]
    pub(super) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        #[inline(never)]
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
        fn compiled<K: Kernel>(simd: Avx512, kernel: K) -> K::Output {
            kernel.run(simd)
        }
        // SAFETY: `self` proves that the CPU has the instructions.
        unsafe { compiled(self, kernel) }
    }
}

impl<const PAIRS: bool> Simd for Avx512<PAIRS> {
    type F = __m512;
    type I = __m512i;
    const TILE_ROWS: usize = 12;
    const SUMS: usize = 24;

    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        // SAFETY: `self` proves that the CPU has the instructions.
        unsafe { _mm512_set1_ps(x) }
    }

    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> __m512 {
        // SAFETY: `self` proves that the CPU has the instructions; the reference covers all lanes.
        unsafe { _mm512_loadu_ps(from.as_ptr()) }
    }

    #[inline(always)]
    fn store(self, x: __m512, to: &mut [f32; LANES]) {
        // SAFETY: `self` proves that the CPU has the instructions; the reference covers all lanes.
        unsafe { _mm512_storeu_ps(to.as_mut_ptr(), x) }
    }

    #[inline(always)]
    fn store_new(self, x: __m512, to: &mut [MaybeUninit<f32>; LANES]) {
        // SAFETY: `self` proves that the CPU has the instructions; the reference covers all lanes.
        unsafe { _mm512_storeu_ps(to.as_mut_ptr().cast(), x) }
    }

    #[inline(always)]
    fn load_f16(self, from: &[u16; LANES]) -> __m512 {
        // SAFETY: `self` proves that the CPU has the instructions; the reference covers all lanes.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.as_ptr().cast())) }
    }

    #[inline(always)]
    fn load_bf16(self, from: &[u16; LANES]) -> __m512 {
        // SAFETY: `self` proves that the CPU has the instructions; the reference covers all lanes.
        unsafe {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.as_ptr().cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        }
    }

    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: `self` proves that the CPU has the instructions.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: `self` proves that the CPU has the instructions.
        unsafe { _mm512_add_ps(a, b) }
    }

    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: `self` proves that the CPU has the instructions.
        unsafe { _mm512_sub_ps(a, b) }
    }

    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: `self` proves that the CPU has the instructions.
        unsafe { _mm512_mul_ps(a, b) }
    }

    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: `self` proves that the CPU has the instructions.
        unsafe { _mm512_div_ps(a, b) }
    }

    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: `self` proves that the CPU has the instructions.
        unsafe { _mm512_max_ps(a, b) }
    }

    #[inline(always)]
    fn min(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: `self` proves that the CPU has the instructions.
        unsafe { _mm512_min_ps(a, b) }
    }

    #[inline(always)]
    fn load_i8(self, from: &[i8; LANES]) -> __m512i {
        // SAFETY: `self` proves that the CPU has the instructions; the reference covers all lanes.
        unsafe { _mm512_cvtepi8_epi32(_mm_loadu_si128(from.as_ptr().cast())) }
    }

    #[inline(always)]
    fn load_u8(self, from: &[u8; LANES]) -> __m512i {
        // SAFETY: `self` proves that the CPU has the instructions; the reference covers all lanes.
        unsafe { _mm512_cvtepu8_epi32(_mm_loadu_si128(from.as_ptr().cast())) }
    }

    #[inline(always)]
    fn load_i16(self, from: &[i16; LANES]) -> __m512i {
        // SAFETY: `self` proves that the CPU has the instructions; the reference covers all lanes.
        unsafe { _mm512_cvtepi16_epi32(_mm256_loadu_si256(from.as_ptr().cast())) }
    }

    #[inline(always)]
    fn load_bytes(self, from: &[[u8; 4]; LANES]) -> __m512i {
        // SAFETY: `self` proves that the CPU has the instructions; the reference covers all lanes.
        unsafe { _mm512_loadu_si512(from.as_ptr().cast()) }
    }

    #[inline(always)]
    fn splat_i32(self, x: i32) -> __m512i {
        // SAFETY: `self` proves that the CPU has the instructions.
        unsafe { _mm512_set1_epi32(x) }
    }

    #[inline(always)]
    fn sub_bytes(self, x: __m512i, y: u8) -> __m512i {
        // SAFETY: `self` proves that the CPU has the instructions.
        unsafe { _mm512_sub_epi8(x, _mm512_set1_epi8(y as i8)) }
    }

    #[inline(always)]
    fn dot_bytes(self, sum: __m512i, weights: __m512i, x: [i8; 4]) -> __m512i {
        // SAFETY: `self` proves that the CPU has the instructions.
        unsafe {
            // Magnitudes, at most 128, times what has their signs: a pair's sum is below 2^15.
            let x = _mm512_set1_epi32(i32::from_le_bytes(x.map(|x| x as u8)));
            let x = _mm512_mask_sub_epi8(x, _mm512_movepi8_mask(weights), _mm512_setzero_si512(), x);
            let pairs = _mm512_maddubs_epi16(_mm512_abs_epi8(weights), x);
            _mm512_add_epi32(sum, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)))
        }
    }

    #[inline(always)]
    fn dot_words(self, sum: __m512i, words: __m512i, x: [i16; 2]) -> __m512i {
        // SAFETY: `self` proves that the CPU has the instructions.
        unsafe { _mm512_add_epi32(sum, _mm512_madd_epi16(words, _mm512_set1_epi32(bytemuck::cast(x)))) }
    }

    #[inline(always)]
    fn dot_pairs(self, sum: __m512, pairs: __m512i, x: u32) -> __m512 {
        if const { !PAIRS } {
            return two_links(self, sum, pairs, x);
        }
        // SAFETY: `self` proves that the CPU has the instructions, with `PAIRS` these too; any bits are bfloat16.
        unsafe {
            // Last, where the instruction broadcasts what it reads from memory.
            let x = std::mem::transmute::<__m512i, __m512bh>(_mm512_set1_epi32(x as i32));
            _mm512_dpbf16_ps(sum, std::mem::transmute::<__m512i, __m512bh>(pairs), x)
        }
    }

    #[inline(always)]
    fn pair_words(self, first: &[u16; LANES], second: &[u16; LANES]) -> __m512i {
        // SAFETY: `self` proves that the CPU has the instructions; the references cover 32 bytes each.
        unsafe {
            let [first, second] = [first, second].map(|words| _mm256_loadu_si256(words.as_ptr().cast()));
            let both = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(first), second);
            _mm512_permutexvar_epi16(_mm512_loadu_si512(PAIRED.as_ptr().cast()), both)
        }
    }

    #[inline(always)]
    fn pairs_of_fours(self, x: __m512) -> __m512i {
        const THIRD_AND_FOURTH: i32 = 0b00_00_11_10;
        // SAFETY: `self` proves that the CPU has the instructions.
        self.pair(x, unsafe { _mm512_permute_ps::<THIRD_AND_FOURTH>(x) })
    }

    #[inline(always)]
    fn max_magnitude(self, largest: __m512i, x: __m512) -> __m512i {
        // SAFETY: `self` proves that the CPU has the instructions.
        unsafe { _mm512_max_epu32(largest, _mm512_castps_si512(_mm512_abs_ps(x))) }
    }

    #[inline(always)]
    fn largest_lane(self, x: __m512i) -> u32 {
        // SAFETY: `self` proves that the CPU has the instructions.
        unsafe { _mm512_reduce_max_epu32(x) }
    }

    #[inline(always)]
    fn store_low_bytes(self, x: __m512i, to: &mut [i8; LANES]) {
        // SAFETY: `self` proves that the CPU has the instructions; the reference covers sixteen bytes.
        unsafe { _mm_storeu_si128(to.as_mut_ptr().cast(), _mm512_cvtepi32_epi8(x)) }
    }

    #[inline(always)]
    fn and(self, x: __m512i, mask: i32) -> __m512i {
        // SAFETY: `self` proves that the CPU has the instructions.
        unsafe { _mm512_and_si512(x, _mm512_set1_epi32(mask)) }
    }

    #[inline(always)]
    fn or(self, a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: `self` proves that the CPU has the instructions.
        unsafe { _mm512_or_si512(a, b) }
    }

    #[inline(always)]
    fn add_i32(self, x: __m512i, y: i32) -> __m512i {
        // SAFETY: `self` proves that the CPU has the instructions.
        unsafe { _mm512_add_epi32(x, _mm512_set1_epi32(y)) }
    }

    #[inline(always)]
    fn add_integers(self, a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: `self` proves that the CPU has the instructions.
        unsafe { _mm512_add_epi32(a, b) }
    }

    #[inline(always)]
    fn mul_integers(self, a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: `self` proves that the CPU has the instructions.
        unsafe { _mm512_mullo_epi32(a, b) }
    }

    #[inline(always)]
    fn shl<const N: u32>(self, x: __m512i) -> __m512i {
        // SAFETY: `self` proves that the CPU has the instructions.
        unsafe { _mm512_slli_epi32::<N>(x) }
    }

    #[inline(always)]
    fn shr<const N: u32>(self, x: __m512i) -> __m512i {
        // SAFETY: `self` proves that the CPU has the instructions.
        unsafe { _mm512_srli_epi32::<N>(x) }
    }

    #[inline(always)]
    fn to_f32(self, x: __m512i) -> __m512 {
        // SAFETY: `self` proves that the CPU has the instructions.
        unsafe { _mm512_cvtepi32_ps(x) }
    }

    #[inline(always)]
    fn as_floats(self, x: __m512i) -> __m512 {
        // SAFETY: `self` proves that the CPU has the instructions.
        unsafe { _mm512_castsi512_ps(x) }
    }

    #[inline(always)]
    fn as_integers(self, x: __m512) -> __m512i {
        // SAFETY: `self` proves that the CPU has the instructions.
        unsafe { _mm512_castps_si512(x) }
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
