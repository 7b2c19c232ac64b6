//! Float32, float16 and bfloat16.

use super::{LANES, PAIRS, PanelFormat, Simd, Sink, WeightFormat, f16_at};

/// IEEE single.
pub(in super::super) struct F32;
/// IEEE half.
pub(in super::super) struct F16;
/// bfloat16.
pub(in super::super) struct Bf16;

/// Calls `put(pair, which of it, lane, number)` for all numbers of `N` bytes.
fn for_each_number<const N: usize>(outputs: &[&[u8]], mut put: impl FnMut(usize, usize, usize, [u8; N])) {
    for (lane, bytes) in outputs.iter().enumerate() {
        for (k, number) in bytes.as_chunks::<N>().0.iter().enumerate() {
            put(k / 2, k % 2, lane, *number);
        }
    }
}

impl PanelFormat for F32 {
    type Block = [[[f32; LANES]; 2]; PAIRS];
    const FORMAT: WeightFormat = WeightFormat::F32;

    fn pack(outputs: &[&[u8]], _: i32, packed: &mut Self::Block) {
        for_each_number(outputs, |pair, which, lane, bytes| packed[pair][which][lane] = f32::from_le_bytes(bytes));
    }

    fn decode(block: &[u8], weights: &mut [f32]) {
        weights[0] = f32::from_le_bytes([block[0], block[1], block[2], block[3]]);
    }

    #[inline(always)]
    fn unpack<S: Simd>(simd: S, packed: &Self::Block, _: usize, sink: &mut impl Sink<S>) {
        for (pair, [even, odd]) in packed.iter().enumerate() {
            sink.put(pair, simd.load(even), simd.load(odd));
        }
    }

    #[inline(always)]
    fn operands<S: Simd>(simd: S, packed: &Self::Block, step: usize, sink: &mut impl Sink<S>) {
        Self::unpack(simd, packed, step, sink);
    }
}

impl PanelFormat for F16 {
    type Block = [[[u16; LANES]; 2]; PAIRS];
    const FORMAT: WeightFormat = WeightFormat::F16;

    fn pack(outputs: &[&[u8]], _: i32, packed: &mut Self::Block) {
        for_each_number(outputs, |pair, which, lane, bytes| packed[pair][which][lane] = u16::from_le_bytes(bytes));
    }

    fn decode(block: &[u8], weights: &mut [f32]) {
        weights[0] = f16_at(block, 0).to_f32();
    }

    #[inline(always)]
    fn unpack<S: Simd>(simd: S, packed: &Self::Block, _: usize, sink: &mut impl Sink<S>) {
        for (pair, [even, odd]) in packed.iter().enumerate() {
            sink.put(pair, simd.load_f16(even), simd.load_f16(odd));
        }
    }
}

impl PanelFormat for Bf16 {
    type Block = [[[u16; 2]; LANES]; PAIRS];
    const IS_TILE: bool = true;
    const FORMAT: WeightFormat = WeightFormat::BF16;

    fn pack(outputs: &[&[u8]], _: i32, packed: &mut Self::Block) {
        for_each_number(outputs, |pair, which, lane, bytes| packed[pair][lane][which] = u16::from_le_bytes(bytes));
    }

    fn decode(block: &[u8], weights: &mut [f32]) {
        weights[0] = half::bf16::from_le_bytes([block[0], block[1]]).to_f32();
    }

    #[inline(always)]
    fn unpack<S: Simd>(simd: S, packed: &Self::Block, _: usize, sink: &mut impl Sink<S>) {
        for (pair, both) in packed.iter().enumerate() {
            let both = simd.load_u16_pairs(both);
            let even = simd.as_floats(simd.shl::<16>(both));
            sink.put(pair, even, simd.as_floats(simd.and(both, -0x1_0000)));
        }
    }

    #[inline(always)]
    fn operands<S: Simd>(simd: S, packed: &Self::Block, step: usize, sink: &mut impl Sink<S>) {
        Self::unpack(simd, packed, step, sink);
    }
}
