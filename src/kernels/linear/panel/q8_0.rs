//! Q8_0: 32 signed bytes and a half scale; `w = scale * q`.

use super::{LANES, PAIRS, PanelFormat, Simd, Sink, WeightFormat, f16_at};
use crate::kernels::linear::arithmetic::Bfloat16;

pub(in super::super) struct Q8_0;

#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub(in super::super) struct Block {
    scales: [u16; LANES],
    quants: [[[i8; LANES]; 2]; PAIRS],
}

impl PanelFormat for Q8_0 {
    type Block = Block;
    type Arithmetic = Bfloat16;
    const FORMAT: WeightFormat = WeightFormat::Q8_0;

    fn pack(outputs: &[&[u8]], packed: &mut Block) {
        for (lane, block) in outputs.iter().enumerate() {
            packed.scales[lane] = f16_at(block, 0).to_bits();
            for (quants, &q) in packed.quants.as_flattened_mut().iter_mut().zip(&block[2..]) {
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
    fn unpack<S: Simd>(simd: S, packed: &Block, _: usize, sink: &mut impl Sink<S>) {
        let scale = simd.load_f16(&packed.scales);
        for (pair, [even, odd]) in packed.quants.iter().enumerate() {
            let [even, odd] = [simd.to_f32(simd.load_i8(even)), simd.to_f32(simd.load_i8(odd))];
            sink.put(pair, simd.mul(scale, even), simd.mul(scale, odd));
        }
    }
}
