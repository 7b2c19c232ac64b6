//! Products of bytes by AVX-512 VNNI.

use std::arch::x86_64::*;

use super::{
    Level,
    avx512::Avx512,
    integers::{IntegerKernel, Integers},
};

/// Proof that the CPU has AVX-512 VNNI beside what [`Avx512`] has: made by [`Vnni::detect`] alone.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Vnni(Avx512);

impl Vnni {
    /// The proof, where the CPU can give it.
    pub(super) fn detect() -> Option<Self> {
        Avx512::detect().filter(|_| is_x86_feature_detected!("avx512vnni")).map(Self)
    }

    /// The vectors of floats.
    pub(super) fn avx512(self) -> Avx512 {
        self.0
    }

    /// As a level, where tiles are not worth it.
    pub(crate) fn level(self) -> Level {
        Level::Avx512Vnni(self)
    }

    /// Compiles a kernel with these instructions and runs it.
    pub(super) fn run<K: IntegerKernel>(self, kernel: K) {
        #[inline(never)]
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
        fn compiled<K: IntegerKernel>(vnni: Vnni, kernel: K) {
            kernel.run(vnni);
        }
        // SAFETY: `self` proves that the CPU has the instructions.
        unsafe { compiled(self, kernel) }
    }
}

impl Integers for Vnni {
    type S = Avx512;
    const UNSIGNED: bool = true;

    #[inline(always)]
    fn simd(self) -> Avx512 {
        self.0
    }

    #[inline(always)]
    fn dot(self, sum: __m512i, weights: __m512i, x: [i8; 4]) -> __m512i {
        // SAFETY: `self` proves that the CPU has the instructions.
        unsafe { _mm512_dpbusd_epi32(sum, weights, _mm512_set1_epi32(i32::from_le_bytes(x.map(|x| x as u8)))) }
    }
    #[inline(always)]
    fn dot_words(self, sum: __m512i, words: __m512i, x: [i16; 2]) -> __m512i {
        // SAFETY: `self` proves that the CPU has the instructions.
        unsafe { _mm512_dpwssd_epi32(sum, words, _mm512_set1_epi32(bytemuck::cast(x))) }
    }
}
