//! Q8_0: 32 signed bytes and a half scale; `w = scale * q`.

use super::{LANES, PanelFormat, Simd, Sink, WeightFormat, f16_at};

const LEN: usize = 32;

pub(in super::super) struct Q8_0;

#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub(in super::super) struct Block {
    scales: [u16; LANES],
    quants: [[i8; LANES]; LEN],
}

impl PanelFormat for Q8_0 {
    type Block = Block;
    const FORMAT: WeightFormat = WeightFormat::Q8_0;

    fn pack(blocks: &[&[u8]], packed: &mut Block) {
        for (lane, block) in blocks.iter().enumerate() {
            packed.scales[lane] = f16_at(block, 0).to_bits();
            for (quants, &q) in packed.quants.iter_mut().zip(&block[2..]) {
                quants[lane] = q as i8;
            }
        }
    }

    fn decode(block: &[u8], weights: &mut [f32]) {
        let scale = f16_at(block, 0).to_f32();
        for (weight, &q) in weights.iter_mut().zip(&block[2..]) {
            *weight = scale * f32::from(q as i8);
        }
    }

    #[inline(always)]
    fn unpack<S: Simd>(simd: S, packed: &Block, sink: &mut impl Sink<S>) {
        let scale = simd.load_f16(&packed.scales);
        for (k, quants) in packed.quants.iter().enumerate() {
            sink.put(k, simd.mul(scale, simd.to_f32(simd.load_i8(quants))));
        }
    }
}
