//! Dot products of bytes, exact in 32 bits, on whatever instructions there are.

use super::{Kernel, Level, Simd};

/// Vectors and their products of bytes.
pub(crate) trait Integers: Copy {
    /// The vectors.
    type S: Simd;
    /// Whether the weights' bytes are taken as 0 to 255, or else as -128 to 127.
    const UNSIGNED: bool;
    /// The proof that they are there.
    fn simd(self) -> Self::S;
    /// `sum` and the products of each lane's four weights with the signed `x`, none of which is -128.
    fn dot(self, sum: <Self::S as Simd>::I, weights: <Self::S as Simd>::I, x: [i8; 4]) -> <Self::S as Simd>::I;
    /// [`Simd::dot_words`].
    #[inline(always)]
    fn dot_words(self, sum: <Self::S as Simd>::I, words: <Self::S as Simd>::I, x: [i16; 2]) -> <Self::S as Simd>::I {
        self.simd().dot_words(sum, words, x)
    }
}

/// Work that is compiled once for each way to multiply bytes; as [`Kernel`].
pub(crate) trait IntegerKernel {
    /// Does it. Implementations and all functions that they hand vectors to are `#[inline(always)]`.
    fn run<D: Integers>(self, integers: D);
}

impl Level {
    /// Runs a kernel with these instructions.
    pub(crate) fn run_integers(self, kernel: impl IntegerKernel) {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Vnni(vnni) => vnni.run(kernel),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Bf16(bf16) => bf16.vnni().run(kernel),
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            Self::Amx(amx) => amx.vnni().run(kernel),
            _ => self.run(WithSigned(kernel)),
        }
    }
}

/// What instructions for 16 bits make of bytes.
#[derive(Clone, Copy)]
struct Signed<S>(S);

impl<S: Simd> Integers for Signed<S> {
    type S = S;
    const UNSIGNED: bool = false;

    #[inline(always)]
    fn simd(self) -> S {
        self.0
    }

    #[inline(always)]
    fn dot(self, sum: S::I, weights: S::I, x: [i8; 4]) -> S::I {
        self.0.dot_bytes(sum, weights, x)
    }
}

struct WithSigned<K>(K);

impl<K: IntegerKernel> Kernel for WithSigned<K> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        self.0.run(Signed(simd));
    }
}
