//! Q8_0: 32 signed bytes and a half scale; `w = scale * q`.

use super::{PAIR, PanelFormat, QUADS, Quad, Quantized, STEP, Simd, WeightFormat, f16_at, units::Units};

/// What a scale may be times its unit, so that its product with -128 has 16 bits.
const LIMIT: f32 = 255.0;
/// Bytes of a block in the file.
const BLOCK: usize = 2 + STEP;

pub(in super::super) struct Q8_0;

impl PanelFormat for Q8_0 {
    type Head = [Units; PAIR];
    /// As the file has them.
    type Step = [[Quad; QUADS]; PAIR];
    const FORMAT: WeightFormat = WeightFormat::Q8_0;

    fn pack(outputs: &[&[u8]], panel: usize, head: Option<&mut Self::Head>, steps: &mut [Self::Step]) {
        let Some(head) = head else { return };
        for (lane, output) in outputs.iter().enumerate() {
            let blocks = output.as_chunks::<BLOCK>().0;
            head[panel].put(lane, blocks.iter().map(|block| f16_at(block, 0)), LIMIT);
            for (step, block) in steps.iter_mut().zip(blocks) {
                for (quad, q) in step[panel].iter_mut().zip(block[2..].as_chunks::<4>().0) {
                    quad[lane] = *q;
                }
            }
        }
    }

    fn decode(block: &[u8], weights: &mut [f32]) {
        let scale = f16_at(block, 0).to_f32();
        for (weight, &q) in weights.iter_mut().zip(&block[2..]) {
            *weight = scale * f32::from(q as i8);
        }
    }

    fn gather(head: Option<&Self::Head>, steps: &[Self::Step], panel: usize, lane: usize, weights: &mut [f32]) {
        let Some(head) = head else { return };
        for (index, (step, weights)) in steps.iter().zip(weights.chunks_mut(STEP)).enumerate() {
            let scale = head[panel].get(lane, index);
            for (k, weight) in weights.iter_mut().enumerate() {
                *weight = scale * f32::from(step[panel][k / 4][lane][k % 4] as i8);
            }
        }
    }
}

impl Quantized for Q8_0 {
    type Scales = Units;
    const OFFSET: u8 = 128;

    #[inline(always)]
    fn unsigned<S: Simd>(simd: S, step: &Self::Step, panel: usize) -> [S::I; QUADS] {
        let mut quads = [simd.splat_i32(0); QUADS];
        for k in 0..QUADS {
            quads[k] = simd.sub_bytes(simd.load_bytes(&step[panel][k]), Self::OFFSET);
        }
        quads
    }
}
