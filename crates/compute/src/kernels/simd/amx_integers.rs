//! Intel's tiles of bytes: sixteen rows' inputs times sixteen outputs' weights, summed exactly in 32 bits.
//!
//! `tdpbssd` and `tdpbsud` add `A B` to a tile of 16 by 16 sums: `A` is 16 rows of 64 inputs, signed bytes, `B` sixteen fours
//! of inputs of 16 outputs, bytes with a sign or without.

use std::{
    arch::{asm, x86_64::*},
    marker::PhantomData,
};

use super::{
    LANES,
    amx::{Amx, Sums, TILE_ROWS, Tile, TileConfig},
    avx512::Avx512,
};

/// 16 rows of 16 sums.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
pub(crate) struct IntegerSums(pub(crate) [[i32; LANES]; TILE_ROWS]);

impl IntegerSums {
    /// All zeros.
    pub(crate) const ZERO: Self = Self([[0; LANES]; TILE_ROWS]);
}

/// Four inputs' weights of sixteen outputs.
pub(crate) type Quad = [[u8; 4]; LANES];

/// 64 inputs' weights of sixteen outputs.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Bytes(pub(crate) [Quad; TILE_ROWS]);

impl Bytes {
    /// All zeros.
    pub(crate) const ZERO: Self = Self([[[0; 4]; LANES]; TILE_ROWS]);
}

/// Work with tiles of bytes.
pub(crate) trait IntegerTileKernel {
    /// Rows of the tiles of rows and of sums that the work has any use for.
    fn rows(&self) -> usize;

    /// Does it. Implementations and all functions that they hand vectors to are `#[inline(always)]`.
    fn run(self, simd: Avx512, tiles: &mut IntegerTiles);
}

/// This thread's tile registers: of sums of weights in two bytes, two sets, so that one is multiplied while the other is
/// stored; given back when dropped.
pub(crate) struct IntegerTiles {
    /// Tile registers are one thread's.
    not_send: PhantomData<*mut ()>,
}

impl Amx {
    /// Compiles work with tiles of bytes and runs it.
    pub(crate) fn run_integers<K: IntegerTileKernel>(self, kernel: K) {
        #[inline(never)]
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
        fn compiled<K: IntegerTileKernel>(simd: Avx512, kernel: K, tiles: &mut IntegerTiles) {
            kernel.run(simd, tiles);
        }
        let mut tiles = IntegerTiles::configure(self, kernel.rows());
        // SAFETY: `self` proves that the CPU has the instructions.
        unsafe { compiled(self.avx512(), kernel, &mut tiles) }
    }
}

impl IntegerTiles {
    fn configure(amx: Amx, rows: usize) -> Self {
        let rows = rows.clamp(1, TILE_ROWS);
        // Two sets of two sums, rows, two weights, sums of minima.
        TileConfig::of_rows([rows, rows, rows, rows, rows, TILE_ROWS, TILE_ROWS, rows]).load(amx);
        Self { not_send: PhantomData }
    }

    /// Begins two sums, of weights' high and low bytes, in one of two sets of registers.
    #[inline(always)]
    pub(crate) fn begin(&mut self, second: bool) {
        // SAFETY: `self` proves that tiles are configured; the compiler has no use for their registers.
        unsafe {
            if second {
                asm!("tilezero tmm2", "tilezero tmm3", options(nostack, nomem));
            } else {
                asm!("tilezero tmm0", "tilezero tmm1", options(nostack, nomem));
            }
        }
    }

    /// Adds the products of as many rows as were configured with weights' high bytes, which have a sign, and low ones, which
    /// have none.
    #[inline(always)]
    pub(crate) fn add(&mut self, second: bool, rows: &[[u8; 64]; TILE_ROWS], weights: &[Bytes; 2]) {
        macro_rules! add {
            ($high:literal, $low:literal) => {
                asm!(
                    "tileloaddt1 tmm4, [{rows} + {stride}]",
                    "tileloadd tmm5, [{weights} + {stride}]",
                    concat!("tdpbssd ", $high, ", tmm4, tmm5"),
                    "tileloadd tmm6, [{weights} + {stride} + 1024]",
                    concat!("tdpbsud ", $low, ", tmm4, tmm6"),
                    rows = in(reg) rows.as_ptr(),
                    weights = in(reg) weights.as_ptr(),
                    stride = in(reg) 64u64,
                    options(nostack, readonly)
                )
            };
        }
        // SAFETY: `self` proves that tiles are configured as at most 16 rows of 64 bytes, which the references cover. The sums
        // stand in their registers since `begin`: between such blocks nothing uses these.
        unsafe {
            if second {
                add!("tmm2", "tmm3");
            } else {
                add!("tmm0", "tmm1");
            }
        }
    }

    /// Four products a step of whatever the registers hold, as fast as they go: a limit.
    pub(crate) fn products(&mut self, steps: usize) {
        // SAFETY: `self` proves that tiles are configured; the compiler has no use for their registers.
        unsafe {
            asm!(
                "2:",
                "tdpbssd tmm0, tmm4, tmm5",
                "tdpbsud tmm1, tmm4, tmm6",
                "tdpbssd tmm2, tmm4, tmm5",
                "tdpbsud tmm3, tmm4, tmm6",
                "dec {steps}",
                "jnz 2b",
                steps = inout(reg) steps.max(1) => _,
                options(nostack, nomem)
            );
        }
    }

    /// The sums.
    #[inline(always)]
    pub(crate) fn end(&mut self, second: bool, sums: &mut [IntegerSums; 2]) {
        macro_rules! end {
            ($high:literal, $low:literal) => {
                asm!(
                    concat!("tilestored [{sums} + {stride}], ", $high),
                    concat!("tilestored [{sums} + {stride} + 1024], ", $low),
                    sums = in(reg) sums.as_mut_ptr(),
                    stride = in(reg) 64u64,
                    options(nostack)
                )
            };
        }
        // SAFETY: `self` proves that tiles are configured as at most 16 rows of 64 bytes, two of which the reference covers.
        unsafe {
            if second {
                end!("tmm2", "tmm3");
            } else {
                end!("tmm0", "tmm1");
            }
        }
    }

    /// Sets `sums` to the products of rows of bfloat16 with a tile of it: exact where both are small integers.
    #[inline(always)]
    pub(crate) fn minima(&mut self, rows: &[[u8; 64]; TILE_ROWS], weights: &Tile, sums: &mut Sums) {
        // SAFETY: as above; a proof of tiles of bytes is one of those of bfloat16.
        unsafe {
            asm!(
                "tileloadd tmm4, [{rows} + {stride}]",
                "tileloadd tmm5, [{weights} + {stride}]",
                "tilezero tmm7",
                "tdpbf16ps tmm7, tmm4, tmm5",
                "tilestored [{sums} + {stride}], tmm7",
                rows = in(reg) rows.as_ptr(),
                weights = in(reg) weights,
                sums = in(reg) sums,
                stride = in(reg) 64u64,
                options(nostack)
            );
        }
    }
}

impl Drop for IntegerTiles {
    fn drop(&mut self) {
        // SAFETY: the registers are this thread's, and nobody uses them any more.
        unsafe { asm!("tilerelease", options(nostack, nomem)) }
    }
}

impl Avx512 {
    /// Multiplies each lane's four signed bytes with its factor: the high and the low bytes of products of 16 bits.
    #[inline(always)]
    pub(crate) fn store_products(self, bytes: __m512i, factors: __m512i, high: &mut Quad, low: &mut Quad) {
        /// Every other byte, from the second on.
        const ODD: u64 = 0xaaaa_aaaa_aaaa_aaaa;
        // SAFETY: `self` proves that the CPU has the instructions; the references cover 64 bytes each.
        unsafe {
            let words = _mm512_set1_epi32(0xffff);
            let factors = _mm512_or_si512(_mm512_and_si512(factors, words), _mm512_slli_epi32::<16>(factors));
            let even = _mm512_srai_epi16::<8>(_mm512_slli_epi16::<8>(bytes));
            let [even, odd] = [even, _mm512_srai_epi16::<8>(bytes)].map(|bytes| _mm512_mullo_epi16(bytes, factors));
            let highs = _mm512_mask_blend_epi8(ODD, _mm512_srli_epi16::<8>(even), odd);
            let lows = _mm512_mask_blend_epi8(ODD, even, _mm512_slli_epi16::<8>(odd));
            _mm512_storeu_si512(high.as_mut_ptr().cast(), highs);
            _mm512_storeu_si512(low.as_mut_ptr().cast(), lows);
        }
    }
}
