//! The lanes as plain arrays: what runs where nothing wider was found, and what the wider ones are compared with.

use super::{Kernel, LANES, Simd};

/// No instructions beyond the compiler's target.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scalar;

impl Scalar {
    /// Runs a kernel as a function of its own.
    #[inline(never)]
    pub(super) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        kernel.run(self)
    }
}

#[inline(always)]
fn zip<A: Copy, B: Copy, C>(a: [A; LANES], b: [B; LANES], f: impl Fn(A, B) -> C) -> [C; LANES] {
    std::array::from_fn(|k| f(a[k], b[k]))
}

/// Exact for every half, subnormals included.
#[inline(always)]
fn widen_f16(bits: u16) -> f32 {
    let sign = u32::from(bits & 0x8000) << 16;
    let magnitude = u32::from(bits & 0x7fff) << 13;
    // The exponent's bias is 15 in a half and 127 in a single; the product also normalizes subnormals.
    let scaled = f32::from_bits(magnitude) * f32::from_bits((127 + 112) << 23);
    let special = if bits & 0x7c00 == 0x7c00 { 0x7f80_0000 } else { 0 };
    f32::from_bits(scaled.to_bits() | special | sign)
}

impl Simd for Scalar {
    type F = [f32; LANES];
    type I = [i32; LANES];
    const TILE_ROWS: usize = 4;
    const SUMS: usize = 4;

    #[inline(always)]
    fn splat(self, x: f32) -> Self::F {
        [x; LANES]
    }

    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> Self::F {
        *from
    }

    #[inline(always)]
    fn store(self, x: Self::F, to: &mut [f32; LANES]) {
        *to = x;
    }

    #[inline(always)]
    fn load_f16(self, from: &[u16; LANES]) -> Self::F {
        from.map(widen_f16)
    }

    #[inline(always)]
    fn load_bf16(self, from: &[u16; LANES]) -> Self::F {
        from.map(|x| f32::from_bits(u32::from(x) << 16))
    }

    // Without the instruction each lane is a call: not worth unrolling everywhere.
    #[cfg_attr(any(target_feature = "fma", target_arch = "aarch64"), inline(always))]
    #[cfg_attr(not(any(target_feature = "fma", target_arch = "aarch64")), inline(never))]
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        std::array::from_fn(|k| a[k].mul_add(b[k], c[k]))
    }

    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| a + b)
    }

    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| a - b)
    }

    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| a * b)
    }

    #[inline(always)]
    fn div(self, a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| a / b)
    }

    #[inline(always)]
    fn max(self, a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    fn min(self, a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| if a < b { a } else { b })
    }

    #[inline(always)]
    fn load_i8(self, from: &[i8; LANES]) -> Self::I {
        from.map(i32::from)
    }

    #[inline(always)]
    fn load_u8(self, from: &[u8; LANES]) -> Self::I {
        from.map(i32::from)
    }

    #[inline(always)]
    fn load_i16(self, from: &[i16; LANES]) -> Self::I {
        from.map(i32::from)
    }

    #[inline(always)]
    fn load_bytes(self, from: &[[u8; 4]; LANES]) -> Self::I {
        from.map(i32::from_le_bytes)
    }

    #[inline(always)]
    fn splat_i32(self, x: i32) -> Self::I {
        [x; LANES]
    }

    #[inline(always)]
    fn sub_bytes(self, x: Self::I, y: u8) -> Self::I {
        x.map(|x| i32::from_le_bytes(x.to_le_bytes().map(|byte| byte.wrapping_sub(y))))
    }

    #[inline(always)]
    fn dot_bytes(self, sum: Self::I, weights: Self::I, x: [i8; 4]) -> Self::I {
        zip(sum, weights, |sum, weights| {
            let products = weights.to_le_bytes().into_iter().zip(x).map(|(w, x)| i32::from(w as i8) * i32::from(x));
            sum.wrapping_add(products.sum::<i32>())
        })
    }

    #[inline(always)]
    fn dot_words(self, sum: Self::I, words: Self::I, x: [i16; 2]) -> Self::I {
        zip(sum, words, |sum, words| {
            let product = |word: i32, x: i16| i32::from(word as i16) * i32::from(x);
            sum.wrapping_add(product(words, x[0])).wrapping_add(product(words >> 16, x[1]))
        })
    }

    #[inline(always)]
    fn and(self, x: Self::I, mask: i32) -> Self::I {
        x.map(|x| x & mask)
    }

    #[inline(always)]
    fn or(self, a: Self::I, b: Self::I) -> Self::I {
        zip(a, b, |a, b| a | b)
    }

    #[inline(always)]
    fn add_i32(self, x: Self::I, y: i32) -> Self::I {
        x.map(|x| x.wrapping_add(y))
    }

    #[inline(always)]
    fn add_integers(self, a: Self::I, b: Self::I) -> Self::I {
        zip(a, b, i32::wrapping_add)
    }

    #[inline(always)]
    fn mul_integers(self, a: Self::I, b: Self::I) -> Self::I {
        zip(a, b, i32::wrapping_mul)
    }

    #[inline(always)]
    fn max_magnitude(self, largest: Self::I, x: Self::F) -> Self::I {
        zip(largest, x, |largest, x| (largest as u32).max(x.abs().to_bits()) as i32)
    }

    #[inline(always)]
    fn shl<const N: u32>(self, x: Self::I) -> Self::I {
        x.map(|x| x << N)
    }

    #[inline(always)]
    fn shr<const N: u32>(self, x: Self::I) -> Self::I {
        x.map(|x| (x as u32 >> N) as i32)
    }

    #[inline(always)]
    fn to_f32(self, x: Self::I) -> Self::F {
        x.map(|x| x as f32)
    }

    #[inline(always)]
    fn as_floats(self, x: Self::I) -> Self::F {
        x.map(|x| f32::from_bits(x as u32))
    }

    #[inline(always)]
    fn as_integers(self, x: Self::F) -> Self::I {
        x.map(|x| x.to_bits() as i32)
    }

    #[inline(always)]
    fn prefetch_line(self, _: *const u8) {}

    #[inline(always)]
    fn prefetch_far_line(self, _: *const u8) {}
}
