//! Rows of float32 to rows of bytes with scales.

use std::{cell::Cell, ops::Range};

use super::super::{
    ahead::LINE,
    inputs::Source,
    panel::{Quantized, STEP, SUPER, SUPER_STEPS},
};
use crate::kernels::{
    cpu_tensor::{SharedMatrix, for_each_row_range},
    simd::{Kernel, LANES, Level, Simd},
};

/// What the largest input of a superblock becomes.
const LARGEST: f32 = 127.0;
/// Inputs that are all smaller count as zero, so that no sum of products is too small for a float.
const SMALLEST: f32 = 1.0 / (1u128 << 90) as f32;
/// `1.5 · 2^23`: adding it rounds to integers, which are its last places then.
const MAGIC: f32 = 12_582_912.0;
/// How far ahead inputs are asked for.
const PREFETCH_BYTES: usize = 4096;
/// Inputs of a tile's row.
pub(super) const PART: usize = 64;
/// Parts of a superblock.
pub(super) const PARTS: usize = SUPER / PART;

/// 64 bytes: inputs of a row, or sums of its steps in two bfloat16 each.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
pub(super) struct Line(pub(super) [u8; PART]);

/// What a weight's format needs beside bytes and scales.
#[derive(Clone, Copy)]
pub(super) struct Wanted {
    offset: i32,
    group: usize,
    has_mins: bool,
    has_halves: bool,
}

impl Wanted {
    /// Sums that are kept of a superblock.
    const fn sums(self) -> usize {
        if self.has_mins { SUPER_STEPS / 2 } else { SUPER / self.group }
    }

    /// By the format, and whether tiles multiply it.
    pub(super) const fn of<F: Quantized>(in_tiles: bool) -> Self {
        let has_mins = F::HAS_MINS;
        Self { offset: F::OFFSET as i32, group: F::GROUP, has_mins, has_halves: has_mins && in_tiles }
    }
}

/// Rows in tiles of `height`, a superblock of all tiles after the other: products take them in this order, so that what
/// comes next lies next. What is missing of the last tile is what was there before.
pub(super) struct Rows {
    data: Data,
    /// Of a superblock.
    sums: usize,
    pub(super) count: usize,
    pub(super) height: usize,
    /// Of 32 inputs.
    pub(super) steps: usize,
}

/// Each `[superblock][tile]` of so many times `[row]`.
#[derive(Default)]
struct Data {
    /// `[part]`, zeros behind the last input.
    bytes: Vec<Line>,
    /// With minima `[pair of steps]`: the sums of their bytes, the first in the low 16 bits. Else `[group]`: what the
    /// weights' offset brings too much, to be added.
    sums: Vec<i32>,
    /// One: what bytes are multiplied with; NaN where an input is no finite number.
    scales: Vec<f32>,
    /// One, of tiles and with minima alone: each step's sum in two bfloat16, exactly, the rest zeros.
    halves: Vec<Line>,
}

thread_local! {
    /// What the last rows were kept in, for the next.
    static DATA: Cell<Data> = Cell::default();
}

impl Drop for Rows {
    fn drop(&mut self) {
        DATA.set(std::mem::take(&mut self.data));
    }
}

/// A superblock of a tile.
#[derive(Clone, Copy)]
pub(super) struct Superblock<'a, const R: usize> {
    pub(super) bytes: &'a [[Line; R]; PARTS],
    pub(super) sums: &'a [[i32; R]],
    pub(super) scales: &'a [f32; R],
}

impl Rows {
    pub(super) fn new(level: Level, x: &Source<'_>, height: usize, wanted: Wanted) -> Self {
        let (count, steps) = (x.count(), x.width().div_ceil(STEP));
        let sums = wanted.sums();
        let tiles = count.div_ceil(height);
        let places = tiles * steps.div_ceil(SUPER_STEPS) * height;
        let mut data = DATA.take();
        grow(&mut data.bytes, places * PARTS, Line([0; PART]));
        grow(&mut data.sums, places * sums, 0);
        grow(&mut data.scales, places, 0.0);
        grow(&mut data.halves, if wanted.has_halves { places } else { 0 }, Line([0; PART]));
        let to = Places {
            bytes: SharedMatrix::new(&mut data.bytes),
            sums: SharedMatrix::new(&mut data.sums),
            scales: SharedMatrix::new(&mut data.scales),
            halves: SharedMatrix::new(&mut data.halves),
        };
        for_each_row_range(count, x.width(), |rows| {
            for row in rows {
                x.with_room(|room| level.run(Round { x, row, tiles, height, wanted, room, to: &to }));
            }
        });
        Self { data, sums, count, height, steps }
    }

    /// Tiles.
    pub(super) fn tiles(&self) -> usize {
        self.count.div_ceil(self.height)
    }

    /// Superblocks a row.
    pub(super) fn superblocks(&self) -> usize {
        self.steps.div_ceil(SUPER_STEPS)
    }

    /// A superblock of a tile of `R` rows, which must be the height.
    #[inline(always)]
    pub(super) fn superblock<const R: usize>(&self, tile: usize, index: usize) -> Superblock<'_, R> {
        assert_eq!(R, self.height);
        let at = self.place(tile, index);
        Superblock {
            bytes: first(self.data.bytes[at * PARTS * R..].as_chunks().0),
            sums: self.data.sums[at * self.sums * R..][..self.sums * R].as_chunks().0,
            scales: first_row(&self.data.scales[at * R..]),
        }
    }

    /// The sums of a superblock's steps as tiles take them.
    #[inline(always)]
    pub(super) fn halves<const R: usize>(&self, tile: usize, index: usize) -> &[Line; R] {
        assert_eq!(R, self.height);
        first_row(&self.data.halves[self.place(tile, index) * R..])
    }

    /// Where a superblock of a tile is.
    #[inline(always)]
    fn place(&self, tile: usize, index: usize) -> usize {
        index * self.tiles() + tile
    }

    /// The rows of a tile.
    pub(super) fn rows_of(&self, tile: usize) -> Range<usize> {
        tile * self.height..self.count.min((tile + 1) * self.height)
    }
}

fn grow<T: Clone>(to: &mut Vec<T>, len: usize, zero: T) {
    to.resize(to.len().max(len), zero);
}

/// The first `N` of a slice, which must be there.
#[inline(always)]
fn first_row<T, const N: usize>(from: &[T]) -> &[T; N] {
    &from.as_chunks().0[0]
}

/// The first of the parts.
#[inline(always)]
fn first<T, const R: usize>(from: &[[T; R]]) -> &[[T; R]; PARTS] {
    first_row(from)
}

/// [`Data`] while rows are written.
struct Places<'a> {
    bytes: SharedMatrix<'a, Line>,
    sums: SharedMatrix<'a, i32>,
    scales: SharedMatrix<'a, f32>,
    halves: SharedMatrix<'a, Line>,
}

/// Rounds a row.
struct Round<'a> {
    x: &'a Source<'a>,
    row: usize,
    tiles: usize,
    height: usize,
    wanted: Wanted,
    room: &'a mut [f32],
    to: &'a Places<'a>,
}

impl Kernel for Round<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { x, row, tiles, height, wanted, room, to } = self;
        let (superblocks, rest) = x.row(simd, row, room).as_chunks::<SUPER>();
        let mut last = [0.0; SUPER];
        last[..rest.len()].copy_from_slice(rest);
        let last = if rest.is_empty() { None } else { Some(&last) };
        for (index, x) in superblocks.iter().chain(last).enumerate() {
            prefetch(simd, x);
            let (bytes, scale) = round(simd, x);
            let eights: [i32; SUPER / 8] = sums_of_pairs(&sums_of_fours(simd, &bytes));
            let halves_of_steps: [i32; SUPER_STEPS * 2] = sums_of_pairs(&eights);
            let steps: [i32; SUPER_STEPS] = sums_of_pairs(&halves_of_steps);
            // Of what stands once, `len` times or on each tile's row.
            let place = |k: usize, len: usize| ((index * tiles + row / height) * len + k) * height + row % height;
            // SAFETY: each row is one task's, and has places of its own.
            unsafe {
                for (k, part) in bytes.iter().enumerate() {
                    to.bytes.slice_mut(place(k, PARTS), 1)[0] = Line(bytemuck::cast(*part));
                }
                let put = |k: usize, sum: i32| to.sums.slice_mut(place(k, wanted.sums()), 1)[0] = sum;
                if wanted.has_mins {
                    for (k, pair) in steps.as_chunks::<2>().0.iter().enumerate() {
                        put(k, bytemuck::cast(pair.map(|sum| sum as i16)));
                    }
                } else {
                    let groups = if wanted.group == STEP { steps.as_slice() } else { halves_of_steps.as_slice() };
                    for (k, sum) in groups.iter().enumerate() {
                        put(k, -wanted.offset * sum);
                    }
                }
                to.scales.slice_mut(place(0, 1), 1)[0] = scale;
                if wanted.has_halves {
                    to.halves.slice_mut(place(0, 1), 1)[0] = halves(&steps);
                }
            }
        }
    }
}

/// Asks for what comes some way behind a superblock, mostly of the next row: those lie one behind the other, but each on
/// pages of its own, where nobody guesses it.
#[inline(always)]
fn prefetch<S: Simd>(simd: S, x: &[f32; SUPER]) {
    let from = std::ptr::from_ref(x).cast::<u8>().wrapping_add(PREFETCH_BYTES);
    for line in 0..size_of_val(x) / LINE {
        simd.prefetch_line(from.wrapping_add(line * LINE));
    }
}

/// Rounds inputs to integers times a scale, ties to even.
#[inline(always)]
fn round<S: Simd>(simd: S, x: &[f32; SUPER]) -> ([[i8; PART]; PARTS], f32) {
    let vectors: &[[f32; LANES]; SUPER / LANES] = bytemuck::cast_ref(x);
    let mut largest = simd.splat_i32(0);
    for x in vectors {
        largest = simd.max_magnitude(largest, simd.load(x));
    }
    let bits = simd.largest_lane(largest);
    let largest = f32::from_bits(bits);
    let mut bytes = [[0; LANES]; SUPER / LANES];
    if bits >= f32::INFINITY.to_bits() {
        return (bytemuck::cast(bytes), f32::NAN);
    }
    if largest < SMALLEST {
        return (bytemuck::cast(bytes), 0.0);
    }
    let inverse = simd.splat(LARGEST / largest);
    for (x, bytes) in vectors.iter().zip(&mut bytes) {
        let shifted = simd.fma(simd.load(x), inverse, simd.splat(MAGIC));
        // The last places' low byte is the integer's: those of MAGIC itself are zeros.
        simd.store_low_bytes(simd.as_integers(shifted), bytes);
    }
    (bytemuck::cast(bytes), largest / LARGEST)
}

/// The sums of each four bytes.
#[inline(always)]
fn sums_of_fours<S: Simd>(simd: S, bytes: &[[i8; PART]; PARTS]) -> [i32; SUPER / 4] {
    let mut sums = [[0; LANES]; PARTS];
    for (bytes, sums) in bytes.iter().zip(&mut sums) {
        let fours = simd.load_bytes(bytemuck::cast_ref::<_, [[u8; 4]; LANES]>(bytes));
        *sums = simd.to_integers(simd.dot_bytes(simd.splat_i32(0), fours, [1; 4]));
    }
    bytemuck::cast(sums)
}

/// The sums of each two.
#[inline(always)]
fn sums_of_pairs<const N: usize, const HALF: usize>(x: &[i32; N]) -> [i32; HALF] {
    const { assert!(N == 2 * HALF) };
    let mut sums = [0; HALF];
    for (sum, [first, second]) in sums.iter_mut().zip(x.as_chunks().0) {
        *sum = first + second;
    }
    sums
}

/// Each step's sum as a multiple of 64 and what is left, which bfloat16 has room for.
#[inline(always)]
fn halves(steps: &[i32; SUPER_STEPS]) -> Line {
    let mut halves = [[0u16; 2]; PART / 4];
    for (halves, sum) in halves.iter_mut().zip(steps) {
        *halves = [sum & !63, sum & 63].map(|half| ((half as f32).to_bits() >> 16) as u16);
    }
    Line(bytemuck::cast(halves))
}

const _: () = assert!(SUPER_STEPS <= PART / 4);
