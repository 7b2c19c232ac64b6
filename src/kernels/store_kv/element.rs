//! What the KV cache can be made of.

use half::{bf16, f16};

use crate::kernels::simd::{LANES, Simd};

/// A float that keys and values are stored as.
pub(in super::super) trait CacheElement: Copy + Send + Sync + 'static {
    /// Rounds to nearest, ties to even.
    fn from_f32(x: f32) -> Self;
    /// Exactly.
    fn to_f32(self) -> f32;
    /// Widens sixteen of them, exactly.
    fn load<S: Simd>(simd: S, from: &[Self; LANES]) -> S::F;
}

impl CacheElement for f32 {
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
        simd.load_bf16(bytemuck::cast_ref(from))
    }
}
