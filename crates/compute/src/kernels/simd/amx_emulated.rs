//! Intel's tiles where the CPU has none, for tests: their instructions trap, and are carried out here.
//!
//! So the kernels of tiles run as they were compiled, addresses, strides, configurations and all, on any CPU that has the vectors
//! beside them. What an instruction does is taken from Intel's manual (Software Developer's Manual, volume 2, "Intel AMX
//! instruction reference"); in which order `tdpbf16ps` adds, which the manual leaves open, from
//! [`arithmetic`](crate::kernels::linear), as it was measured.

use std::{
    cell::UnsafeCell,
    ffi::{c_int, c_void},
    sync::OnceLock,
};

use super::{
    LANES,
    amx::{TILE_ROWS, TileConfig},
};

/// Bytes of a tile's row.
const ROW_BYTES: usize = 4 * LANES;
const TILES: usize = 8;

type TileRegister = [[u8; ROW_BYTES]; TILE_ROWS];

/// A thread's tile registers.
struct Registers {
    /// Rows of each and bytes of a row, as they were configured; of no rows where they were not.
    shapes: [(usize, usize); TILES],
    tiles: [TileRegister; TILES],
}

thread_local! {
    /// Of a constant and with nothing to drop, so that a handler of signals may have it.
    static REGISTERS: UnsafeCell<Registers> =
        const { UnsafeCell::new(Registers { shapes: [(0, 0); TILES], tiles: [[[0; ROW_BYTES]; TILE_ROWS]; TILES] }) };
}

/// Carries out tiles' instructions from now on, in all threads. Whether that can be done.
pub(super) fn install() -> bool {
    static INSTALLED: OnceLock<bool> = OnceLock::new();
    *INSTALLED.get_or_init(|| {
        // SAFETY: all zeros are a valid `sigaction`; the handler touches its thread's registers and what the instruction names.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = on_illegal_instruction as *const () as usize;
            // On the stack of the thread that trapped: the one that it has for overflows is too small.
            action.sa_flags = libc::SA_SIGINFO;
            libc::sigaction(libc::SIGILL, &raw const action, std::ptr::null_mut()) == 0
        }
    })
}

/// Carries out the instruction that trapped and goes on behind it. One that is not a tile's traps again, for good.
extern "C" fn on_illegal_instruction(signal: c_int, _: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the system hands over the context of the thread that trapped, which stands still meanwhile; its instruction
    // pointer is where at least one instruction was read. The thread's tile registers are nobody else's, and no other
    // reference to them lives: instructions in here are none of tiles.
    unsafe {
        let registers = &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs;
        let code = registers[libc::REG_RIP as usize] as usize as *const u8;
        match Instruction::read(code, registers).and_then(|instruction| {
            REGISTERS.with(|tiles| instruction.carry_out(&mut *tiles.get())).map(|()| instruction.len)
        }) {
            Some(len) => registers[libc::REG_RIP as usize] += len as i64,
            None => {
                libc::signal(signal, libc::SIG_DFL);
            }
        }
    }
}

/// What stands in the place of an instruction's operand in memory or in a register.
#[derive(Clone, Copy)]
enum Operand {
    Register(usize),
    /// An address, and the index register's value, which is the stride of tiles.
    Memory(usize, usize),
}

/// A VEX-encoded instruction of the map 0F38, without a W and of 128 bits.
struct Instruction {
    /// What stands for a prefix: none, 66, F3, F2.
    prefix: u8,
    opcode: u8,
    /// The register that the ModRM byte names first.
    first: usize,
    /// What it names second.
    second: Operand,
    /// The register that the VEX prefix names.
    third: usize,
    len: usize,
}

/// Reads what follows byte after byte.
struct Bytes(*const u8, usize);

impl Bytes {
    unsafe fn next(&mut self) -> u8 {
        self.1 += 1;
        // SAFETY: the caller reads an instruction that is there.
        unsafe { *self.0.add(self.1 - 1) }
    }
}

impl Instruction {
    /// The instruction at an address, if it is of the kind.
    ///
    /// # Safety
    /// An instruction must be there.
    unsafe fn read(code: *const u8, registers: &[i64; 23]) -> Option<Self> {
        // SAFETY: bytes are read as far as what was read says that the instruction goes on.
        unsafe {
            let mut bytes = Bytes(code, 0);
            if bytes.next() != 0xc4 {
                return None;
            }
            let (extensions, vex) = (bytes.next(), bytes.next());
            if extensions & 0x1f != 2 || vex & 0x84 != 0 {
                return None;
            }
            // The high bits of the registers' numbers, which are stored inverted.
            let high = |bit: u32| usize::from(!extensions >> bit & 1) * 8;
            let opcode = bytes.next();
            let modrm = bytes.next();
            let (mode, rm) = (modrm >> 6, usize::from(modrm & 7));
            let second = if mode == 3 {
                Operand::Register(high(5) + rm)
            } else {
                let (mut base, mut index) = (Some(high(5) + rm), 0);
                if rm == 4 {
                    let sib = bytes.next();
                    base = Some(high(5) + usize::from(sib & 7)).filter(|_| mode != 0 || sib & 7 != 5);
                    let number = high(6) + usize::from(sib >> 3 & 7);
                    // Number 4 is none.
                    index = if number == 4 { 0 } else { general(registers, number) << (sib >> 6) };
                } else if mode == 0 && rm == 5 {
                    // Beside the instruction: the kernels have none.
                    return None;
                }
                let displacement = match (mode, base) {
                    (1, _) => i64::from(bytes.next() as i8),
                    (2, _) | (0, None) => i64::from(i32::from_le_bytes(std::array::from_fn(|_| bytes.next()))),
                    _ => 0,
                };
                let base = base.map_or(0, |base| general(registers, base));
                Operand::Memory(base.wrapping_add(displacement as usize), index)
            };
            let first = high(7) + usize::from(modrm >> 3 & 7);
            let third = usize::from(!vex >> 3 & 0xf);
            Some(Self { prefix: vex & 3, opcode, first, second, third, len: bytes.1 })
        }
    }

    /// Does it, if it is one of tiles and they are configured for it.
    ///
    /// # Safety
    /// The memory that it names must be there.
    unsafe fn carry_out(&self, registers: &mut Registers) -> Option<()> {
        const NONE: u8 = 0;
        const P66: u8 = 1;
        const PF3: u8 = 2;
        const PF2: u8 = 3;
        // SAFETY: as the caller says.
        unsafe {
            match (self.opcode, self.prefix, self.second) {
                // ldtilecfg
                (0x49, NONE, Operand::Memory(from, _)) if self.first == 0 => {
                    let (palette, start_row, shapes) = (*(from as *const TileConfig)).parts();
                    if palette != 1 || start_row != 0 {
                        return None;
                    }
                    *registers = Registers { shapes, tiles: [[[0; ROW_BYTES]; TILE_ROWS]; TILES] };
                }
                // tilerelease
                (0x49, NONE, Operand::Register(0)) if self.first == 0 => registers.shapes = [(0, 0); TILES],
                // tilezero
                (0x49, PF2, Operand::Register(0)) => {
                    registers.shape(self.first)?;
                    registers.tiles[self.first] = [[0; ROW_BYTES]; TILE_ROWS];
                }
                // tileloadd, tileloaddt1: what is behind the rows becomes zeros.
                (0x4b, P66 | PF2, Operand::Memory(from, stride)) => {
                    let (rows, bytes) = registers.shape(self.first)?;
                    registers.tiles[self.first] = [[0; ROW_BYTES]; TILE_ROWS];
                    for (r, row) in registers.tiles[self.first][..rows].iter_mut().enumerate() {
                        let from = from.wrapping_add(r.wrapping_mul(stride)) as *const u8;
                        row[..bytes].copy_from_slice(std::slice::from_raw_parts(from, bytes));
                    }
                }
                // tilestored
                (0x4b, PF3, Operand::Memory(to, stride)) => {
                    let (rows, bytes) = registers.shape(self.first)?;
                    for (r, row) in registers.tiles[self.first][..rows].iter().enumerate() {
                        let to = to.wrapping_add(r.wrapping_mul(stride)) as *mut u8;
                        std::slice::from_raw_parts_mut(to, bytes).copy_from_slice(&row[..bytes]);
                    }
                }
                // tdpbuud, tdpbusd, tdpbsud, tdpbssd
                (0x5e, prefix, Operand::Register(a)) => {
                    let (a_signed, b_signed) = (matches!(prefix, PF3 | PF2), matches!(prefix, P66 | PF2));
                    registers.product(self.first, a, self.third, |sum: i32, a: [u8; 4], b: [u8; 4]| {
                        let wide = |signed: bool, x: u8| if signed { i32::from(x as i8) } else { i32::from(x) };
                        (0..4).fold(sum, |sum, k| sum.wrapping_add(wide(a_signed, a[k]) * wide(b_signed, b[k])))
                    })?;
                }
                // tdpbf16ps
                (0x5c, PF3, Operand::Register(a)) => registers.product_of_floats(self.first, a, self.third)?,
                _ => return None,
            }
        }
        Some(())
    }
}

/// A general register by the number that instructions have for it.
fn general(registers: &[i64; 23], number: usize) -> usize {
    const NUMBERED: [c_int; 16] = [
        libc::REG_RAX,
        libc::REG_RCX,
        libc::REG_RDX,
        libc::REG_RBX,
        libc::REG_RSP,
        libc::REG_RBP,
        libc::REG_RSI,
        libc::REG_RDI,
        libc::REG_R8,
        libc::REG_R9,
        libc::REG_R10,
        libc::REG_R11,
        libc::REG_R12,
        libc::REG_R13,
        libc::REG_R14,
        libc::REG_R15,
    ];
    registers[NUMBERED[number] as usize] as usize
}

impl Registers {
    /// Rows and bytes of a row of a register that is configured.
    fn shape(&self, register: usize) -> Option<(usize, usize)> {
        self.shapes.get(register).copied().filter(|&(rows, bytes)| rows > 0 && bytes > 0)
    }

    /// Rows and columns of sums, and fours of bytes that are summed, where the shapes fit each other.
    fn shapes_of_product(&self, sums: usize, a: usize, b: usize) -> Option<(usize, usize, usize)> {
        let ((rows, sum_bytes), (a_rows, a_bytes), (b_rows, b_bytes)) =
            (self.shape(sums)?, self.shape(a)?, self.shape(b)?);
        let fits = sums != a && sums != b && a != b && rows == a_rows && a_bytes / 4 == b_rows && sum_bytes == b_bytes;
        fits.then_some((rows, sum_bytes / 4, b_rows))
    }

    /// Adds to each sum what `add` makes of it and fours of bytes.
    fn product(&mut self, sums: usize, a: usize, b: usize, add: impl Fn(i32, [u8; 4], [u8; 4]) -> i32) -> Option<()> {
        let (rows, columns, fours) = self.shapes_of_product(sums, a, b)?;
        let (a, b) = (self.tiles[a], self.tiles[b]);
        for (row, a) in self.tiles[sums][..rows].iter_mut().zip(&a) {
            for (n, sum) in row.as_chunks_mut::<4>().0[..columns].iter_mut().enumerate() {
                let pairs = a.as_chunks().0.iter().zip(&b).take(fours);
                *sum =
                    pairs.fold(i32::from_le_bytes(*sum), |sum, (&a, b)| add(sum, a, b.as_chunks().0[n])).to_le_bytes();
            }
        }
        Some(())
    }

    /// Adds products of pairs of bfloat16: a chain of multiply-adds over the even ones, another over the odd ones, and the
    /// sum of both to the sum so far.
    fn product_of_floats(&mut self, sums: usize, a: usize, b: usize) -> Option<()> {
        let (rows, columns, pairs) = self.shapes_of_product(sums, a, b)?;
        let (a, b) = (self.tiles[a], self.tiles[b]);
        for (row, a) in self.tiles[sums][..rows].iter_mut().zip(&a) {
            for (n, sum) in row.as_chunks_mut::<4>().0[..columns].iter_mut().enumerate() {
                let mut chains = [0f32; 2];
                for (a, b) in a.as_chunks::<4>().0.iter().zip(&b).take(pairs) {
                    let (a, b) = (halves(*a), halves(b.as_chunks().0[n]));
                    chains = std::array::from_fn(|k| a[k].mul_add(b[k], chains[k]));
                }
                *sum = flushed((chains[0] + chains[1]) + flushed(f32::from_le_bytes(*sum))).to_le_bytes();
            }
        }
        Some(())
    }
}

/// Two bfloat16, of which those below the least normal number count as zero.
fn halves([a, b, c, d]: [u8; 4]) -> [f32; 2] {
    [[a, b], [c, d]].map(|half| flushed(half::bf16::from_le_bytes(half).to_f32()))
}

/// Zero for what is smaller than the least normal number.
fn flushed(x: f32) -> f32 {
    if x.is_subnormal() { 0.0 } else { x }
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng, rngs::StdRng};

    use crate::kernels::simd::{
        LANES, Level,
        amx::{Sums, TILE_ROWS, Tile},
        amx_integers::{Bytes, IntegerSums, IntegerTileKernel, IntegerTiles},
        avx512::Avx512,
    };

    /// Rows of bytes times weights, with a sign and without, and rows of bfloat16 times others, in registers of so many rows.
    struct Products<'a> {
        rows: usize,
        bytes: &'a [[u8; 64]; TILE_ROWS],
        weights: &'a [Bytes; 2],
        factors: &'a Tile,
        second: bool,
        sums: &'a mut [IntegerSums; 2],
        minima: &'a mut Sums,
    }

    impl IntegerTileKernel for Products<'_> {
        fn rows(&self) -> usize {
            self.rows
        }

        #[inline(always)]
        fn run(self, _: Avx512, tiles: &mut IntegerTiles) {
            tiles.begin(self.second);
            tiles.add(self.second, self.bytes, self.weights);
            tiles.add(self.second, self.bytes, self.weights);
            tiles.end(self.second, self.sums);
            tiles.minima(self.bytes, self.factors, self.minima);
        }
    }

    /// On a CPU that has tiles this says the same of them.
    #[test]
    fn tiles_hold_the_products_of_as_many_rows_as_they_were_configured_for() {
        let amx = Level::tested().into_iter().find_map(|level| match level {
            Level::Amx(amx) => Some(amx),
            _ => None,
        });
        let Some(amx) = amx else {
            eprintln!("no tiles, and no vectors to stand beside emulated ones: not tested");
            return;
        };
        let mut rng = StdRng::seed_from_u64(11);
        for (rows, second) in (1..=TILE_ROWS).flat_map(|rows| [(rows, false), (rows, true)]) {
            // Small multiples of powers of two, so that sums of products of bfloat16 have no order.
            let halves: [[u16; 32]; TILE_ROWS] = std::array::from_fn(|_| {
                std::array::from_fn(|_| half::bf16::from_f32(rng.random_range(-8..8) as f32).to_bits())
            });
            let bytes: [[u8; 64]; TILE_ROWS] = bytemuck::cast(halves);
            let mut weights = [Bytes::ZERO; 2];
            for byte in weights.iter_mut().flat_map(|weights| weights.0.as_flattened_mut().as_flattened_mut()) {
                *byte = rng.random();
            }
            let factors = Tile(std::array::from_fn(|k| halves[(k + 3) % TILE_ROWS]));
            let (mut sums, mut minima) = ([IntegerSums([[7; LANES]; TILE_ROWS]); 2], Sums([[7.0; LANES]; TILE_ROWS]));
            amx.run_integers(Products {
                rows,
                bytes: &bytes,
                weights: &weights,
                factors: &factors,
                second,
                sums: &mut sums,
                minima: &mut minima,
            });
            for (r, n) in (0..TILE_ROWS).flat_map(|r| (0..LANES).map(move |n| (r, n))) {
                let dot = |which: usize, wide: fn(u8) -> i32| {
                    (0..64).map(|k| i32::from(bytes[r][k] as i8) * wide(weights[which].0[k / 4][n][k % 4])).sum::<i32>()
                        * 2
                };
                let float = |half: u16| half::bf16::from_bits(half).to_f32();
                let minimum: f32 = (0..32).map(|k| float(halves[r][k]) * float(factors.0[k / 2][2 * n + k % 2])).sum();
                let want =
                    if r < rows { (dot(0, |x| i32::from(x as i8)), dot(1, i32::from), minimum) } else { (7, 7, 7.0) };
                let got = (sums[0].0[r][n], sums[1].0[r][n], minima.0[r][n]);
                assert_eq!(got, want, "row {r} of {rows}, output {n}");
            }
        }
    }
}
