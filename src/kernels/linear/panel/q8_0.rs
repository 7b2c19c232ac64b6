//! Q8_0: 32 signed bytes and a half scale; `w = scale * q`.

use super::{LANES, PAIR, PanelFormat, QUADS, Quad, Quantized, Simd, WeightFormat, f16_at, scale_at, widened};

pub(in super::super) struct Q8_0;

#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub(in super::super) struct Block {
    scales: [[u16; LANES]; PAIR],
    /// As the file has them: a tile.
    quants: [[Quad; QUADS]; PAIR],
}

impl PanelFormat for Q8_0 {
    type Block = Block;
    const FORMAT: WeightFormat = WeightFormat::Q8_0;

    fn pack(outputs: &[&[u8]], panel: usize, packed: &mut Block) {
        for (lane, block) in outputs.iter().enumerate() {
            packed.scales[panel][lane] = scale_at(block, 0);
            for (quad, q) in packed.quants[panel].iter_mut().zip(block[2..].as_chunks::<4>().0) {
                quad[lane] = *q;
            }
        }
    }

    fn decode(block: &[u8], weights: &mut [f32]) {
        let scale = f16_at(block, 0).to_f32();
        for (weight, &q) in weights.iter_mut().zip(&block[2..]) {
            *weight = scale * f32::from(q as i8);
        }
    }

    fn gather(packed: &Block, panel: usize, lane: usize, weights: &mut [f32]) {
        let scale = widened(packed.scales[panel][lane]);
        for (k, weight) in weights.iter_mut().enumerate() {
            *weight = scale * f32::from(packed.quants[panel][k / 4][lane][k % 4] as i8);
        }
    }
}

impl Quantized for Q8_0 {
    const OFFSET: u8 = 128;

    #[inline(always)]
    fn unsigned<S: Simd>(simd: S, packed: &Block, panel: usize, _: usize) -> [S::I; QUADS] {
        let mut quads = [simd.splat_i32(0); QUADS];
        for k in 0..QUADS {
            quads[k] = simd.sub_bytes(simd.load_bytes(&packed.quants[panel][k]), Self::OFFSET);
        }
        quads
    }

    #[inline(always)]
    fn scales<S: Simd>(simd: S, packed: &Block, panel: usize, _: usize, _: usize) -> S::F {
        simd.load_f16(&packed.scales[panel])
    }

    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    #[inline(always)]
    fn tile(packed: &Block, panel: usize) -> Option<&[Quad; QUADS]> {
        Some(&packed.quants[panel])
    }
}
