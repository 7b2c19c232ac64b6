//! Intel's tiles of bytes: sixteen rows' inputs times sixteen outputs' weights, summed exactly in 32 bits.
//!
//! `tdpbssd` adds `A B` to a tile of 16 by 16 sums: `A` is 16 rows of some fours of inputs, `B` as many rows of fours of
//! inputs of 16 outputs.

use std::{arch::asm, marker::PhantomData};

use super::{
    LANES,
    amx::{Amx, TILE_ROWS},
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

/// Four inputs' weights of sixteen outputs, signed bytes.
pub(crate) type Quad = [[u8; 4]; LANES];

/// Work with tiles of bytes.
pub(crate) trait IntegerTileKernel {
    /// Fours of inputs that a product takes.
    const QUADS: usize;

    /// Rows of the tiles of rows and of sums that the work has any use for.
    fn rows(&self) -> usize;

    /// Does it. Implementations and all functions that they hand vectors to are `#[inline(always)]`.
    fn run(self, simd: Avx512, tiles: &mut IntegerTiles);
}

/// This thread's tile registers, configured for products of so many fours of inputs; given back when dropped.
pub(crate) struct IntegerTiles {
    quads: usize,
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
        let mut tiles = IntegerTiles::configure(self, kernel.rows(), K::QUADS);
        // SAFETY: `self` proves that the CPU has the instructions.
        unsafe { compiled(self.avx512(), kernel, &mut tiles) }
    }
}

impl IntegerTiles {
    fn configure(_: Amx, rows: usize, quads: usize) -> Self {
        #[repr(C, align(64))]
        struct Config {
            palette: u8,
            start_row: u8,
            reserved: [u8; 14],
            bytes_a_row: [u16; 16],
            rows: [u8; 16],
        }
        let (rows, quads) = (rows.clamp(1, TILE_ROWS) as u8, quads.clamp(1, TILE_ROWS));
        let mut config = Config { palette: 1, start_row: 0, reserved: [0; 14], bytes_a_row: [0; 16], rows: [0; 16] };
        // Two each of sums, rows and weights.
        config.bytes_a_row[..6].copy_from_slice(&[64, 64, 4 * quads as u16, 4 * quads as u16, 64, 64]);
        config.rows[..6].copy_from_slice(&[rows, rows, rows, rows, quads as u8, quads as u8]);
        // SAFETY: the proof says that the instruction is there and allowed; the configuration is a valid one of 64
        // bytes. The compiler uses no tile registers of its own.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const config, options(nostack, readonly)) }
        Self { quads, not_send: PhantomData }
    }

    /// Sets `sums` to the products of sixteen rows, or as many as were configured, whose inputs stand `4 * first_quad` bytes
    /// from the beginning of 64 each, with the weights of as many fours of inputs as were configured.
    ///
    /// Calls with `ODD` and without use different registers: two by two they take each other's time.
    #[inline(always)]
    pub(crate) fn product<const ODD: bool>(
        &mut self,
        rows: &[[u8; 64]; TILE_ROWS],
        first_quad: usize,
        weights: &[Quad],
        sums: &mut IntegerSums,
    ) {
        assert!(weights.len() == self.quads && 4 * (first_quad + self.quads) <= 64);
        let rows = rows.as_ptr().cast::<u8>().wrapping_add(4 * first_quad);
        macro_rules! product {
            ($sums:literal, $rows:literal, $weights:literal) => {
                // SAFETY: `self` proves that tiles are configured; the references cover what their shapes read and write,
                // by the assertion above. The compiler has no use for tile registers.
                unsafe {
                    asm!(
                        concat!("tileloadd ", $rows, ", [{rows} + {stride}]"),
                        concat!("tileloadd ", $weights, ", [{weights} + {stride}]"),
                        concat!("tilezero ", $sums),
                        concat!("tdpbssd ", $sums, ", ", $rows, ", ", $weights),
                        concat!("tilestored [{sums} + {stride}], ", $sums),
                        rows = in(reg) rows,
                        weights = in(reg) weights.as_ptr(),
                        sums = in(reg) sums,
                        stride = in(reg) 64u64,
                        options(nostack)
                    );
                }
            };
        }
        if const { ODD } {
            product!("tmm1", "tmm3", "tmm5");
        } else {
            product!("tmm0", "tmm2", "tmm4");
        }
    }
}

impl Drop for IntegerTiles {
    fn drop(&mut self) {
        // SAFETY: the registers are this thread's, and nobody uses them any more.
        unsafe { asm!("tilerelease", options(nostack, nomem)) }
    }
}
