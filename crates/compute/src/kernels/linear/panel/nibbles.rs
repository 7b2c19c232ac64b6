//! Steps of integers of four bits, two fours of inputs in each 64 bytes.

use super::{QUADS, Quad, Simd};

/// A step of sixteen outputs: the first of two fours of inputs in the low halves of bytes, the second in the high ones.
pub(super) type Nibbles = [Quad; QUADS / 2];

/// Puts an output's integer of an input in its place, which must be zero.
pub(super) fn put(packed: &mut Nibbles, lane: usize, k: usize, quant: u8) {
    packed[k / 8][lane][k % 4] |= (quant & 0xf) << (k / 4 % 2 * 4);
}

/// An output's integer of an input.
pub(super) fn get(packed: &Nibbles, lane: usize, k: usize) -> u8 {
    packed[k / 8][lane][k % 4] >> (k / 4 % 2 * 4) & 0xf
}

/// All of them, in bytes.
#[inline(always)]
pub(super) fn load<S: Simd>(simd: S, packed: &Nibbles) -> [S::I; QUADS] {
    const LOW: i32 = 0x0f0f_0f0f;
    let mut quads = [simd.splat_i32(0); QUADS];
    for k in 0..QUADS / 2 {
        let both = simd.load_bytes(&packed[k]);
        quads[2 * k] = simd.and(both, LOW);
        quads[2 * k + 1] = simd.and(simd.shr::<4>(both), LOW);
    }
    quads
}
