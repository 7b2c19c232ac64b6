//! Rows of float32 to rows of bytes with scales.

use std::cell::Cell;

use super::{
    super::{Terms, inputs::Source, panel::STEP},
    MAGIC,
};
use crate::kernels::{
    cpu_tensor::{SharedMatrix, for_each_row_range},
    simd::{Kernel, LANES, Level, Simd},
};

/// What the largest input of a step becomes.
const LARGEST: f32 = 127.0;
/// How much finer the second term is: what the first one loses is at most half of its unit.
const FINER: f32 = 2.0 * LARGEST;
/// Inputs that are all smaller count as zero, so that no sum of products is too small for a float.
const SMALLEST: f32 = 1.0 / (1u128 << 90) as f32;

/// The inputs of a step of a row, in one cache line.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
pub(super) struct Step {
    /// The inputs are these times `scale`.
    pub(super) quants: [i8; STEP],
    /// What the sums of each group's products with weights that have no sign begin with: the bits of [`MAGIC`], and what
    /// the weights' offset brings too much.
    pub(super) begins: [i32; 2],
    /// NaN where an input is no finite number.
    pub(super) scale: f32,
    /// What minima of weights are multiplied with: minus the sum of the inputs.
    pub(super) minus_sum: f32,
    rest: [u32; 4],
}

impl Step {
    const ZERO: Self = Self { quants: [0; STEP], begins: [0; 2], scale: 0.0, minus_sum: 0.0, rest: [0; 4] };
}

thread_local! {
    /// What the last rows were kept in, for the next.
    static STEPS: Cell<Vec<Step>> = const { Cell::new(Vec::new()) };
}

/// Rows in tiles of `height`, each `[step][term][row]`. What is missing of the last tile is what was there before.
pub(super) struct Rows {
    data: Vec<Step>,
    pub(super) count: usize,
    pub(super) height: usize,
    pub(super) steps: usize,
    pub(super) terms: usize,
}

impl Drop for Rows {
    fn drop(&mut self) {
        STEPS.set(std::mem::take(&mut self.data));
    }
}

impl Rows {
    /// Rounds rows for weights to which `offset` is added, of which `group` inputs have a scale in common.
    pub(super) fn new(level: Level, x: &Source<'_>, height: usize, terms: Terms, offset: u8, group: usize) -> Self {
        let (count, steps, terms) = (x.count(), x.width().div_ceil(STEP), terms.count());
        let (tiles, tile_len) = (count.div_ceil(height), steps * terms * height);
        let mut data = STEPS.take();
        data.resize(data.len().max(tiles * tile_len), Step::ZERO);
        let shared = SharedMatrix::new(&mut data);
        for_each_row_range(count, x.width(), |rows| {
            for row in rows {
                let begin = row / height * tile_len + row % height;
                x.with_room(|room| level.run(Round { x, row, height, terms, offset, group, room, begin, to: &shared }));
            }
        });
        Self { data, count, height, steps, terms }
    }

    /// Tiles.
    pub(super) fn tiles(&self) -> usize {
        self.count.div_ceil(self.height)
    }

    /// `[step][term][row]` of a tile, rows of `R`, which must be the height.
    #[inline(always)]
    pub(super) fn tile<const R: usize>(&self, tile: usize) -> &[[Step; R]] {
        assert_eq!(R, self.height);
        let len = self.steps * self.terms * R;
        self.data[tile * len..(tile + 1) * len].as_chunks().0
    }

    /// The rows of a tile.
    pub(super) fn rows_of(&self, tile: usize) -> std::ops::Range<usize> {
        tile * self.height..self.count.min((tile + 1) * self.height)
    }
}

/// Rounds a row.
struct Round<'a> {
    x: &'a Source<'a>,
    row: usize,
    height: usize,
    terms: usize,
    offset: u8,
    group: usize,
    room: &'a mut [f32],
    begin: usize,
    to: &'a SharedMatrix<'a, Step>,
}

impl Kernel for Round<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let (steps, rest) = self.x.row(simd, self.row, self.room).as_chunks::<STEP>();
        let mut last = [0.0; STEP];
        last[..rest.len()].copy_from_slice(rest);
        let last = if rest.is_empty() { None } else { Some(&last) };
        let begins = |sums: [i32; 2]| {
            let offset = i32::from(self.offset);
            let magic = MAGIC.to_bits() as i32;
            if self.group == STEP {
                [magic - offset * (sums[0] + sums[1]); 2]
            } else {
                sums.map(|sum| magic - offset * sum)
            }
        };
        for (index, x) in steps.iter().chain(last).enumerate() {
            for (term, rounded) in round(simd, x).into_iter().take(self.terms).enumerate() {
                let place = self.begin + (index * self.terms + term) * self.height;
                // SAFETY: each row is one task's, and has places of its own.
                let [step] = (unsafe { self.to.slice_mut(place, 1) }) else { return };
                let Rounded { quants, sums, scale } = rounded;
                let minus_sum = -(scale * (sums[0] + sums[1]) as f32);
                *step = Step { quants, begins: begins(sums), scale, minus_sum, rest: [0; 4] };
            }
        }
    }
}

/// Inputs of a step: integers, the sums of both halves of them, and what they are multiplied with.
struct Rounded {
    quants: [i8; STEP],
    sums: [i32; 2],
    scale: f32,
}

/// Rounds inputs to integers times a scale, ties to even, and what that loses likewise.
#[inline(always)]
fn round<S: Simd>(simd: S, x: &[f32; STEP]) -> [Rounded; 2] {
    let [low, high] = bytemuck::cast_ref::<_, [[f32; LANES]; 2]>(x);
    let (low, high) = (simd.load(low), simd.load(high));
    let bits = simd.largest_magnitude(low, high);
    let nothing = |scale| Rounded { quants: [0; STEP], sums: [0; 2], scale };
    if bits >= f32::INFINITY.to_bits() {
        return [nothing(f32::NAN), nothing(f32::NAN)];
    }
    let largest = f32::from_bits(bits);
    if largest < SMALLEST {
        return [nothing(0.0), nothing(0.0)];
    }
    let (scale, inverse) = (largest / LARGEST, LARGEST / largest);
    let (low_shifted, high_shifted) = (shifted(simd, low, inverse), shifted(simd, high, inverse));
    let first = rounded(simd, low_shifted, high_shifted, scale);
    let (low, high) = (lost(simd, low, low_shifted, scale), lost(simd, high, high_shifted, scale));
    let inverse = inverse * FINER;
    [first, rounded(simd, shifted(simd, low, inverse), shifted(simd, high, inverse), scale / FINER)]
}

/// Integers, in the last places of [`MAGIC`].
#[inline(always)]
fn shifted<S: Simd>(simd: S, x: S::F, inverse: f32) -> S::F {
    simd.fma(x, simd.splat(inverse), simd.splat(MAGIC))
}

/// What rounding to such integers loses.
#[inline(always)]
fn lost<S: Simd>(simd: S, x: S::F, shifted: S::F, scale: f32) -> S::F {
    simd.fma(simd.sub(shifted, simd.splat(MAGIC)), simd.splat(-scale), x)
}

/// The integers out of the last places.
#[inline(always)]
fn rounded<S: Simd>(simd: S, low: S::F, high: S::F, scale: f32) -> Rounded {
    let mut quants = [[0; LANES]; 2];
    let minus_magic = (MAGIC.to_bits() as i32).wrapping_neg();
    let low = simd.add_i32(simd.as_integers(low), minus_magic);
    let high = simd.add_i32(simd.as_integers(high), minus_magic);
    simd.store_low_bytes(low, &mut quants[0]);
    simd.store_low_bytes(high, &mut quants[1]);
    Rounded { quants: bytemuck::cast(quants), sums: [simd.sum_integers(low), simd.sum_integers(high)], scale }
}

const _: () = assert!(2 * LANES == STEP && size_of::<Step>() == 64);
