//! Intel's tiles: sixteen rows of 64 bytes each, multiplied as bfloat16 into float32.
//!
//! `tdpbf16ps` adds `A B` to a tile of 16 by 16 sums: `A` is 16 rows of 32 inputs, `B` 16 pairs of inputs of 16 outputs.
//! What it computes, to the last bit, stands at [`Bfloat16`](crate::kernels::linear).

use std::{
    arch::{asm, x86_64::*},
    marker::PhantomData,
};

use super::{
    LANES, Simd,
    avx512::{Avx512, PAIRED},
    bf16::Bf16,
    vnni::Vnni,
};

/// Rows of a tile.
pub(crate) const TILE_ROWS: usize = 16;

/// 16 rows of 32 bfloat16: inputs of sixteen rows of a batch, or pairs of inputs of sixteen outputs.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
pub(crate) struct Tile(pub(crate) [[u16; 2 * LANES]; TILE_ROWS]);

impl Tile {
    /// All zeros.
    pub(crate) const ZERO: Self = Self([[0; 2 * LANES]; TILE_ROWS]);
}

/// 16 rows of 16 sums.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
pub(crate) struct Sums(pub(crate) [[f32; LANES]; TILE_ROWS]);

impl Sums {
    /// All zeros.
    pub(crate) const ZERO: Self = Self([[0.0; LANES]; TILE_ROWS]);
}

/// Proof that the CPU has AMX-BF16, AMX-INT8, VNNI and AVX512-BF16, and that the kernel lets this process use tiles: made by
/// [`Amx::detect`] alone, and in tests where tiles are [emulated](super::amx_emulated).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Amx(Bf16);

/// Work with tiles.
pub(crate) trait TileKernel {
    /// Rows of the tiles of rows and of sums that the work has any use for; the fewer, the less is loaded and multiplied.
    fn rows(&self) -> usize {
        TILE_ROWS
    }

    /// Does it. Implementations and all functions that they hand vectors to are `#[inline(always)]`.
    fn run(self, simd: TileSimd, tiles: &mut Tiles);
}

/// Vectors of 16-bit floats, which come with tiles: made inside [`Amx::run`] alone.
#[derive(Clone, Copy)]
pub(crate) struct TileSimd(Avx512);

/// This thread's tile registers, configured as eight tiles of 16 rows of 64 bytes, those of sums and the first of rows
/// perhaps of fewer; given back when dropped.
pub(crate) struct Tiles {
    /// Tile registers are one thread's.
    not_send: PhantomData<*mut ()>,
}

impl Amx {
    /// The proof, where the CPU and the operating system can give it.
    pub(super) fn detect() -> Option<Self> {
        const TILE: u32 = 1 << 24;
        const BF16: u32 = 1 << 22;
        const INT8: u32 = 1 << 25;
        let bf16 = Bf16::detect()?;
        let leaf = __cpuid_count(7, 0);
        let has = leaf.edx & (TILE | BF16 | INT8) == TILE | BF16 | INT8;
        (has && request_tile_data()).then_some(Self(bf16))
    }

    /// As good as a proof, where the CPU has the vectors: the instructions of tiles are carried out by software.
    #[cfg(test)]
    pub(super) fn emulated() -> Option<Self> {
        Bf16::detect().filter(|_| super::amx_emulated::install()).map(Self)
    }

    /// The vectors beside the tiles.
    pub(crate) fn avx512(self) -> Avx512 {
        self.0.avx512()
    }

    /// The vectors' products of bytes.
    pub(crate) fn vnni(self) -> Vnni {
        self.0.vnni()
    }

    /// Compiles work with these instructions and runs it.
    pub(crate) fn run<K: TileKernel>(self, kernel: K) {
        #[inline(never)]
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")]
        fn compiled<K: TileKernel>(simd: TileSimd, kernel: K, tiles: &mut Tiles) {
            kernel.run(simd, tiles);
        }
        let mut tiles = Tiles::configure(self, kernel.rows());
        // SAFETY: `self` proves that the CPU has the instructions.
        unsafe { compiled(TileSimd(self.avx512()), kernel, &mut tiles) }
    }
}

/// How many rows of 64 bytes each of the eight tile registers has, as `ldtilecfg` reads it.
#[repr(C, align(64))]
pub(super) struct TileConfig {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    bytes_a_row: [u16; 16],
    rows: [u8; 16],
}

impl TileConfig {
    /// Registers of so many rows, at most sixteen.
    pub(super) fn of_rows(rows: [usize; 8]) -> Self {
        let mut config = Self { palette: 1, start_row: 0, reserved: [0; 14], bytes_a_row: [0; 16], rows: [0; 16] };
        config.bytes_a_row[..8].fill(64);
        for (to, rows) in config.rows.iter_mut().zip(rows) {
            *to = rows.min(TILE_ROWS) as u8;
        }
        config
    }

    /// The palette, the first row, and each register's rows and bytes of a row.
    #[cfg(test)]
    pub(super) fn parts(&self) -> (u8, u8, [(usize, usize); 8]) {
        let shape = |k: usize| (usize::from(self.rows[k]), usize::from(self.bytes_a_row[k]));
        (self.palette, self.start_row, std::array::from_fn(shape))
    }

    /// Configures this thread's registers.
    pub(super) fn load(&self, _: Amx) {
        // SAFETY: the proof says that the instruction is there and allowed; the configuration is a valid one of 64
        // bytes. The compiler uses no tile registers of its own.
        unsafe { asm!("ldtilecfg [{}]", in(reg) std::ptr::from_ref(self), options(nostack, readonly)) }
    }
}

/// Asks Linux for the registers' room in this process's thread states (Documentation/arch/x86/xstate.rst).
fn request_tile_data() -> bool {
    const SYS_ARCH_PRCTL: i64 = 158;
    const ARCH_REQ_XCOMP_PERM: i64 = 0x1023;
    const XFEATURE_XTILEDATA: i64 = 18;
    let result: i64;
    // SAFETY: this call of the kernel reads and writes no memory of ours; it clobbers rcx and r11 as every call does.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") SYS_ARCH_PRCTL => result,
            in("rdi") ARCH_REQ_XCOMP_PERM,
            in("rsi") XFEATURE_XTILEDATA,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack)
        );
    }
    result == 0
}

impl Tiles {
    fn configure(amx: Amx, rows: usize) -> Self {
        let rows = rows.clamp(1, TILE_ROWS);
        // The last two are tiles of weights, and the sixth may be.
        TileConfig::of_rows([rows, rows, rows, rows, rows, TILE_ROWS, TILE_ROWS, TILE_ROWS]).load(amx);
        Self { not_send: PhantomData }
    }

    /// Adds `x wᵀ` of two tiles of rows and two panels of weights to `sums` `[row tile][panel]`, or sets them to it where
    /// `first`. The weights are `[step][2]` tiles, the rows `[step][TERMS][2]`: each step's weights are multiplied with one
    /// pair of tiles of rows, or with two, one after the other. Meanwhile `LINES` cache lines a step, from `ahead` on, are
    /// asked for.
    ///
    /// Rows pass through the first-level cache without staying: the weights are what comes again.
    #[inline(always)]
    pub(crate) fn multiply<const TERMS: usize, const LINES: usize>(
        &mut self,
        first: bool,
        x: &[[Tile; 2]],
        weights: &[[Tile; 2]],
        sums: &mut [Sums; 4],
        ahead: *const u8,
    ) {
        let steps = weights.len();
        assert!(steps > 0 && x.len() == TERMS * steps);
        macro_rules! product {
            ($($second:literal)*; $($line:literal)*) => {
                // SAFETY: `self` proves that tiles are configured as 16 rows of 64 bytes. The loop reads `steps` times
                // `TERMS` pairs of tiles of rows and `steps` of weights, and reads and writes four tiles of sums: the
                // slices' lengths, as checked above. A prefetch of any address is harmless. The compiler has no use for
                // tile registers; this block sets those that it reads.
                unsafe {
                    asm!(
                        "test {first}, {first}",
                        "jnz 2f",
                        "tileloadd tmm0, [{sums} + {stride}]",
                        "tileloadd tmm1, [{sums} + {stride} + 1024]",
                        "tileloadd tmm2, [{sums} + {stride} + 2048]",
                        "tileloadd tmm3, [{sums} + {stride} + 3072]",
                        "jmp 3f",
                        "2:",
                        "tilezero tmm0",
                        "tilezero tmm1",
                        "tilezero tmm2",
                        "tilezero tmm3",
                        "3:",
                        "tileloaddt1 tmm4, [{x} + {stride}]",
                        "tileloadd tmm6, [{w} + {stride}]",
                        "tileloadd tmm7, [{w} + {stride} + 1024]",
                        "tdpbf16ps tmm0, tmm4, tmm6",
                        "tileloaddt1 tmm5, [{x} + {stride} + 1024]",
                        "tdpbf16ps tmm1, tmm4, tmm7",
                        $(concat!("prefetcht1 [{ahead} + ", $line, " * 64]"),)*
                        "tdpbf16ps tmm2, tmm5, tmm6",
                        "tdpbf16ps tmm3, tmm5, tmm7",
                        $($second,)*
                        "add {x}, {x_bytes}",
                        "add {w}, 2048",
                        "add {ahead}, {lines}",
                        "dec {steps}",
                        "jnz 3b",
                        "tilestored [{sums} + {stride}], tmm0",
                        "tilestored [{sums} + {stride} + 1024], tmm1",
                        "tilestored [{sums} + {stride} + 2048], tmm2",
                        "tilestored [{sums} + {stride} + 3072], tmm3",
                        first = in(reg) u64::from(first),
                        sums = in(reg) sums.as_mut_ptr(),
                        x = inout(reg) x.as_ptr() => _,
                        w = inout(reg) weights.as_ptr() => _,
                        ahead = inout(reg) ahead => _,
                        x_bytes = const TERMS * size_of::<[Tile; 2]>(),
                        lines = const LINES * 64,
                        steps = inout(reg) steps => _,
                        stride = in(reg) 64u64,
                        options(nostack)
                    );
                }
            };
        }
        macro_rules! in_two_terms {
            ($($line:literal)*) => {
                product!(
                    "tileloaddt1 tmm4, [{x} + {stride} + 2048]"
                    "tileloaddt1 tmm5, [{x} + {stride} + 3072]"
                    "tdpbf16ps tmm0, tmm4, tmm6"
                    "tdpbf16ps tmm1, tmm4, tmm7"
                    "tdpbf16ps tmm2, tmm5, tmm6"
                    "tdpbf16ps tmm3, tmm5, tmm7";
                    $($line)*
                )
            };
        }
        match (TERMS, LINES) {
            (1, 0) => product!(;),
            (1, 1) => product!(; 0),
            (1, 2) => product!(; 0 1),
            (1, 4) => product!(; 0 1 2 3),
            (1, 8) => product!(; 0 1 2 3 4 5 6 7),
            (2, 1) => in_two_terms!(0),
            (2, 2) => in_two_terms!(0 1),
            (2, 4) => in_two_terms!(0 1 2 3),
            (2, 8) => in_two_terms!(0 1 2 3 4 5 6 7),
            _ => unreachable!("{TERMS} terms and {LINES} lines a step"),
        }
    }

    /// Begins four sums in registers, for [`multiply_add`](Self::multiply_add).
    #[inline(always)]
    pub(crate) fn begin(&mut self) {
        // SAFETY: `self` proves that tiles are configured; the compiler has no use for their registers.
        unsafe { asm!("tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3", options(nostack, nomem)) }
    }

    /// Adds the products of a tile of rows and four tiles of weights to the sums.
    #[inline(always)]
    pub(crate) fn multiply_add_one(&mut self, x: &Tile, weights: [&[Tile; 2]; 2]) {
        // SAFETY: `self` proves that tiles are configured as 16 rows of 64 bytes or fewer, which each reference covers. The
        // sums stand in their registers since `begin`: between such blocks nothing uses these.
        unsafe {
            asm!(
                "tileloadd tmm4, [{x} + {stride}]",
                "tileloadd tmm6, [{w} + {stride}]",
                "tileloadd tmm7, [{w} + {stride} + 1024]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm5, [{v} + {stride}]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tileloadd tmm6, [{v} + {stride} + 1024]",
                "tdpbf16ps tmm2, tmm4, tmm5",
                "tdpbf16ps tmm3, tmm4, tmm6",
                x = in(reg) x,
                w = in(reg) weights[0].as_ptr(),
                v = in(reg) weights[1].as_ptr(),
                stride = in(reg) 64u64,
                options(nostack, readonly)
            );
        }
    }

    /// Adds the products of two tiles of rows and two tiles of weights to the sums `[row tile][panel]`.
    #[inline(always)]
    pub(crate) fn multiply_add_two(&mut self, x: &[Tile; 2], weights: &[Tile; 2]) {
        // SAFETY: `self` proves that tiles are configured as 16 rows of 64 bytes, two of which each reference covers. The
        // sums stand in their registers since `begin`: between such blocks nothing uses these.
        unsafe {
            asm!(
                "tileloadd tmm4, [{x} + {stride}]",
                "tileloadd tmm6, [{w} + {stride}]",
                "tileloadd tmm7, [{w} + {stride} + 1024]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm5, [{x} + {stride} + 1024]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                x = in(reg) x.as_ptr(),
                w = in(reg) weights.as_ptr(),
                stride = in(reg) 64u64,
                options(nostack, readonly)
            );
        }
    }

    /// Four products a step of whatever the registers hold, as fast as they go: a limit.
    pub(crate) fn products(&mut self, steps: usize) {
        // SAFETY: `self` proves that tiles are configured; the compiler has no use for their registers.
        unsafe {
            asm!(
                "2:",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "dec {steps}",
                "jnz 2b",
                steps = inout(reg) steps.max(1) => _,
                options(nostack, nomem)
            );
        }
    }

    /// The sums.
    #[inline(always)]
    pub(crate) fn end(&mut self, sums: &mut [Sums; 4]) {
        // SAFETY: `self` proves that tiles are configured as 16 rows of 64 bytes, four of which the reference covers.
        unsafe {
            asm!(
                "tilestored [{sums} + {stride}], tmm0",
                "tilestored [{sums} + {stride} + 1024], tmm1",
                "tilestored [{sums} + {stride} + 2048], tmm2",
                "tilestored [{sums} + {stride} + 3072], tmm3",
                sums = in(reg) sums.as_mut_ptr(),
                stride = in(reg) 64u64,
                options(nostack)
            );
        }
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: the registers are this thread's, and nobody uses them any more.
        unsafe { asm!("tilerelease", options(nostack, nomem)) }
    }
}

impl TileSimd {
    /// The vectors of 32-bit lanes.
    #[inline(always)]
    pub(crate) fn avx512(self) -> Avx512 {
        self.0
    }

    /// Asks for some bytes, at any address, to be brought into the second-level cache: the first level cannot wait for as
    /// many lines at once as keep memory busy.
    #[inline(always)]
    pub(crate) fn prefetch_bytes(self, address: *const u8, bytes: usize) {
        for offset in (0..bytes).step_by(64) {
            // SAFETY: a prefetch of any address is harmless.
            unsafe { _mm_prefetch::<_MM_HINT_T1>(address.wrapping_add(offset).cast()) };
        }
    }

    /// Asks for tiles to be brought into the first-level cache.
    #[inline(always)]
    pub(crate) fn prefetch_near(self, tiles: &[[Tile; 2]]) {
        let address = tiles.as_ptr().cast::<u8>();
        for offset in (0..size_of_val(tiles)).step_by(64) {
            // SAFETY: a prefetch of any address is harmless.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(address.wrapping_add(offset).cast()) };
        }
    }

    /// Rounds pairs to bfloat16 and lays them beside each other.
    #[inline(always)]
    pub(crate) fn store_pairs(self, even: __m512, odd: __m512, to: &mut [u16; 2 * LANES]) {
        // SAFETY: `self` proves that the CPU has the instructions; the references cover 64 bytes.
        unsafe {
            let halves = std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(even, odd));
            let order = _mm512_loadu_si512(PAIRED.as_ptr().cast());
            _mm512_storeu_si512(to.as_mut_ptr().cast(), _mm512_permutexvar_epi16(order, halves));
        }
    }

    /// Lays pairs beside each other.
    #[inline(always)]
    pub(crate) fn interleave(self, even: &[u16; LANES], odd: &[u16; LANES], to: &mut [u16; 2 * LANES]) {
        // SAFETY: `self` proves that the CPU has the instructions; the reference covers 64 bytes.
        unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), self.0.pair_words(odd, even)) }
    }

    /// Rounds 32 floats to bfloat16.
    #[inline(always)]
    pub(crate) fn store_rounded(self, low: __m512, high: __m512, to: &mut [u16; 2 * LANES]) {
        // SAFETY: `self` proves that the CPU has the instructions; the reference covers 64 bytes.
        unsafe {
            let halves = std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low));
            _mm512_storeu_si512(to.as_mut_ptr().cast(), halves);
        }
    }

    /// Rounds 32 floats to bfloat16.
    #[inline(always)]
    pub(crate) fn store_row(self, from: &[f32; 2 * LANES], to: &mut [u16; 2 * LANES]) {
        // SAFETY: `self` proves that the CPU has the instructions; the references cover what is read and written.
        unsafe {
            self.store_rounded(_mm512_loadu_ps(from.as_ptr()), _mm512_loadu_ps(from.as_ptr().add(LANES)), to);
        }
    }

    /// Rounds to bfloat16 what rounding 32 floats loses.
    #[inline(always)]
    pub(crate) fn store_lost(self, from: &[f32; 2 * LANES], to: &mut [u16; 2 * LANES]) {
        let lost = |half: usize| {
            // SAFETY: `self` proves that the CPU has the instructions; the reference covers both halves.
            unsafe {
                let x = _mm512_loadu_ps(from.as_ptr().add(half * LANES));
                let rounded = std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(x));
                let rounded = _mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(rounded));
                _mm512_sub_ps(x, _mm512_castsi512_ps(rounded))
            }
        };
        self.store_rounded(lost(0), lost(1), to);
    }
}
