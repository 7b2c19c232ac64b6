//! Q8_0: 32 signed bytes and a half scale; `w = scale * q`.

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
use super::{HALF_EXPONENT, Tile, TileSimd};
use super::{LANES, PAIRS, PanelFormat, Simd, Sink, ToBf16ByHalf, WeightFormat, f16_at, half_exponent, scaled_half};

pub(in super::super) struct Q8_0;

#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub(in super::super) struct Block {
    scales: [u16; LANES],
    quants: [[[i8; 2]; LANES]; PAIRS],
}

impl PanelFormat for Q8_0 {
    type Block = Block;
    const FORMAT: WeightFormat = WeightFormat::Q8_0;

    fn exponent(outputs: &[&[u8]]) -> i32 {
        let blocks = outputs.iter().flat_map(|bytes| bytes.chunks_exact(Self::FORMAT.block_bytes()));
        half_exponent(blocks.map(|block| 128.0 * f16_at(block, 0).to_f32()))
    }

    fn pack(outputs: &[&[u8]], exponent: i32, packed: &mut Block) {
        for (lane, block) in outputs.iter().enumerate() {
            packed.scales[lane] = scaled_half(f16_at(block, 0), exponent);
            for (quants, q) in packed.quants.iter_mut().zip(block[2..].as_chunks::<2>().0) {
                quants[lane] = q.map(|q| q as i8);
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
        for (pair, quants) in packed.quants.iter().enumerate() {
            let [even, odd] = simd.load_i8_pairs(quants);
            sink.put(pair, simd.mul(scale, simd.to_f32(even)), simd.mul(scale, simd.to_f32(odd)));
        }
    }

    #[inline(always)]
    fn operands<S: Simd>(simd: S, packed: &Block, step: usize, sink: &mut impl Sink<S>) {
        Self::unpack(simd, packed, step, &mut ToBf16ByHalf { simd, sink });
    }

    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    const TILE_EXPONENT: i32 = HALF_EXPONENT;

    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    #[inline(always)]
    fn write_tile(simd: TileSimd, packed: &Block, _: usize, tile: &mut Tile) {
        let scales = simd.twice_each(&packed.scales);
        for (quants, row) in packed.quants.iter().zip(&mut tile.0) {
            simd.store_cut(simd.multiply_halves(simd.halves_from_i8(quants), scales), row);
        }
    }
}
