//! What the KV cache can be made of.

use float8::F8E4M3;
use half::{bf16, f16};

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
use crate::kernels::simd::amx::TileSimd;
use crate::kernels::simd::{LANES, Simd};

/// A float that keys and values are stored as.
pub(in super::super) trait CacheElement: Copy + Send + Sync + 'static {
    /// Whether it has no more bits than a bfloat16, which attention rounds what it multiplies with it to then.
    const ROUNDED: bool;
    /// Sixteen zeros.
    const ZEROS: [Self; LANES];

    /// Rounds to nearest, ties to even.
    fn from_f32(x: f32) -> Self;
    /// Exactly.
    fn to_f32(self) -> f32;
    /// Widens sixteen of them, exactly.
    fn load<S: Simd>(simd: S, from: &[Self; LANES]) -> S::F;
    /// Pairs of bfloat16, the first in the high halves; of a type that is [`ROUNDED`](Self::ROUNDED).
    #[inline(always)]
    fn load_pairs<S: Simd>(simd: S, first: &[Self; LANES], second: &[Self; LANES]) -> S::I {
        let [first, second] = [first, second].map(|values| Self::load(simd, values));
        simd.pair(first, second)
    }
    /// Rounds pairs to bfloat16 and lays them beside each other.
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    #[inline(always)]
    fn store_pairs(simd: TileSimd, even: &[Self; LANES], odd: &[Self; LANES], to: &mut [u16; 2 * LANES]) {
        let [even, odd] = [even, odd].map(|values| Self::load(simd.avx512(), values));
        simd.store_pairs(even, odd, to);
    }
}

impl CacheElement for f32 {
    const ROUNDED: bool = false;
    const ZEROS: [Self; LANES] = [0.0; LANES];

    #[inline(always)]
    fn from_f32(x: f32) -> Self {
        x
    }

    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }

    #[inline(always)]
    fn load<S: Simd>(simd: S, from: &[Self; LANES]) -> S::F {
        simd.load(from)
    }
}

impl CacheElement for f16 {
    const ROUNDED: bool = false;
    const ZEROS: [Self; LANES] = [Self::ZERO; LANES];

    #[inline(always)]
    fn from_f32(x: f32) -> Self {
        Self::from_f32(x)
    }

    #[inline(always)]
    fn to_f32(self) -> f32 {
        self.to_f32()
    }

    #[inline(always)]
    fn load<S: Simd>(simd: S, from: &[Self; LANES]) -> S::F {
        simd.load_f16(bytemuck::cast_ref(from))
    }
}

impl CacheElement for bf16 {
    const ROUNDED: bool = true;
    const ZEROS: [Self; LANES] = [Self::ZERO; LANES];

    /// As the type's own, without a branch.
    #[inline(always)]
    fn from_f32(x: f32) -> Self {
        let bits = x.to_bits();
        let rounded = (bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16) as u16;
        Self::from_bits(if x.is_nan() { 0x7fc0 } else { rounded })
    }

    #[inline(always)]
    fn to_f32(self) -> f32 {
        self.to_f32()
    }

    #[inline(always)]
    fn load<S: Simd>(simd: S, from: &[Self; LANES]) -> S::F {
        simd.load_bf16(bytemuck::cast_ref(from))
    }

    #[inline(always)]
    fn load_pairs<S: Simd>(simd: S, first: &[Self; LANES], second: &[Self; LANES]) -> S::I {
        simd.pair_words(bytemuck::cast_ref(first), bytemuck::cast_ref(second))
    }

    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    #[inline(always)]
    fn store_pairs(simd: TileSimd, even: &[Self; LANES], odd: &[Self; LANES], to: &mut [u16; 2 * LANES]) {
        simd.interleave(bytemuck::cast_ref(even), bytemuck::cast_ref(odd), to);
    }
}

/// Four bits of exponent and three of fraction (Micikevicius et al., 2022, arXiv:2209.05433); numbers beyond 448 are stored
/// as that. A NaN is read as 480.
impl CacheElement for F8E4M3 {
    const ROUNDED: bool = true;
    const ZEROS: [Self; LANES] = [Self::ZERO; LANES];

    #[inline(always)]
    fn from_f32(x: f32) -> Self {
        // The smallest normal number is 2^-6; below it the step is 2^-9. Adding 1.5 * 2^14 rounds to such steps.
        const SMALLEST: f32 = 0.015_625;
        const ROUND: f32 = 24_576.0;
        let size = if x.is_nan() { 480.0 } else { x.abs().min(448.0) };
        let steps = (size + ROUND).to_bits() & 0xf;
        let bits = size.to_bits();
        let rounded = (bits + 0x7_ffff + (bits >> 20 & 1)) >> 20;
        let magnitude = if size < SMALLEST { steps } else { rounded.wrapping_sub(120 << 3) };
        Self::from_bits(magnitude as u8 | if x.is_sign_negative() { 0x80 } else { 0 })
    }

    #[inline(always)]
    fn to_f32(self) -> f32 {
        let bits = u32::from(self.to_bits());
        f32::from_bits((f32::from_bits((bits & 0x7f) << 20) * TWO_TO_120).to_bits() | (bits & 0x80) << 24)
    }

    #[inline(always)]
    fn load<S: Simd>(simd: S, from: &[Self; LANES]) -> S::F {
        let bits = simd.load_u8(bytemuck::cast_ref(from));
        // The exponent's bias is 7 here and 127 there.
        let size = simd.mul(simd.as_floats(simd.shl::<20>(simd.and(bits, 0x7f))), simd.splat(TWO_TO_120));
        simd.as_floats(simd.or(simd.as_integers(size), simd.shl::<24>(simd.and(bits, 0x80))))
    }
}

const TWO_TO_120: f32 = f32::from_bits((127 + 120) << 23);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::simd::{Kernel, Level};

    #[test]
    fn every_number_of_eight_bits_is_read_exactly() {
        struct Load(u8);
        impl Kernel for Load {
            type Output = f32;
            #[inline(always)]
            fn run<S: Simd>(self, simd: S) -> f32 {
                simd.to_array(F8E4M3::load(simd, &[F8E4M3::from_bits(self.0); LANES]))[7]
            }
        }
        for bits in (0..=u8::MAX).filter(|bits| bits & 0x7f != 0x7f) {
            let want = F8E4M3::from_bits(bits).to_f64() as f32;
            assert_eq!(CacheElement::to_f32(F8E4M3::from_bits(bits)).to_bits(), want.to_bits(), "{bits:02x}");
            for level in Level::tested() {
                assert_eq!(level.run(Load(bits)).to_bits(), want.to_bits(), "{bits:02x} on {level:?}");
            }
        }
    }

    #[test]
    fn numbers_are_rounded_to_the_nearest_of_eight_bits() {
        let sizes = (0..=0x7e_u8).map(|bits| F8E4M3::from_bits(bits).to_f64()).collect::<Vec<_>>();
        for step in 0..460_000 {
            // Steps of a thousandth, and of a millionth near zero.
            for x in [step as f32 / 1000.0, step as f32 / 1e7] {
                let nearest = sizes.iter().map(|size| (size - f64::from(x)).abs()).fold(f64::INFINITY, f64::min);
                for x in [x, -x] {
                    let got = f64::from(CacheElement::to_f32(<F8E4M3 as CacheElement>::from_f32(x)));
                    assert_eq!((got - f64::from(x)).abs(), nearest, "{x} became {got}");
                }
            }
        }
        for bits in 0..0x7e_u8 {
            let [low, high] = [bits, bits + 1].map(|bits| F8E4M3::from_bits(bits).to_f64());
            let even = <F8E4M3 as CacheElement>::from_f32(((low + high) / 2.0) as f32);
            assert_eq!(even.to_bits(), bits + bits % 2, "ties go to even");
        }
        assert_eq!(<F8E4M3 as CacheElement>::from_f32(f32::NEG_INFINITY).to_f64(), -448.0);
        assert_eq!(CacheElement::to_f32(<F8E4M3 as CacheElement>::from_f32(f32::NAN)), 480.0);
    }
}
