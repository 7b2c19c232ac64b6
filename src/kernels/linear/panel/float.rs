//! Float32, float16 and bfloat16: one weight a block.

use super::{LANES, PanelFormat, Simd, Sink, WeightFormat, f16_at};

/// IEEE single.
pub(in super::super) struct F32;
/// IEEE half.
pub(in super::super) struct F16;
/// bfloat16.
pub(in super::super) struct Bf16;

impl PanelFormat for F32 {
    type Block = [f32; LANES];
    const FORMAT: WeightFormat = WeightFormat::F32;

    fn pack(blocks: &[&[u8]], packed: &mut Self::Block) {
        for (packed, block) in packed.iter_mut().zip(blocks) {
            *packed = f32::from_le_bytes([block[0], block[1], block[2], block[3]]);
        }
    }

    fn decode(block: &[u8], weights: &mut [f32]) {
        weights[0] = f32::from_le_bytes([block[0], block[1], block[2], block[3]]);
    }

    #[inline(always)]
    fn unpack<S: Simd>(simd: S, packed: &Self::Block, sink: &mut impl Sink<S>) {
        sink.put(0, simd.load(packed));
    }
}

impl PanelFormat for F16 {
    type Block = [u16; LANES];
    const FORMAT: WeightFormat = WeightFormat::F16;

    fn pack(blocks: &[&[u8]], packed: &mut Self::Block) {
        for (packed, block) in packed.iter_mut().zip(blocks) {
            *packed = u16::from_le_bytes([block[0], block[1]]);
        }
    }

    fn decode(block: &[u8], weights: &mut [f32]) {
        weights[0] = f16_at(block, 0).to_f32();
    }

    #[inline(always)]
    fn unpack<S: Simd>(simd: S, packed: &Self::Block, sink: &mut impl Sink<S>) {
        sink.put(0, simd.load_f16(packed));
    }
}

impl PanelFormat for Bf16 {
    type Block = [u16; LANES];
    const FORMAT: WeightFormat = WeightFormat::BF16;

    fn pack(blocks: &[&[u8]], packed: &mut Self::Block) {
        F16::pack(blocks, packed);
    }

    fn decode(block: &[u8], weights: &mut [f32]) {
        weights[0] = half::bf16::from_le_bytes([block[0], block[1]]).to_f32();
    }

    #[inline(always)]
    fn unpack<S: Simd>(simd: S, packed: &Self::Block, sink: &mut impl Sink<S>) {
        sink.put(0, simd.load_bf16(packed));
    }
}
