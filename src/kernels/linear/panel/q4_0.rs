//! Q4_0: 32 nibbles and a half scale; `w = scale * (q - 8)`.

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
use super::{HALF_EXPONENT, Tile, TileSimd};
use super::{
    LANES, PAIRS, PanelFormat, Simd, Sink, ToBf16ByHalf, TwoPairs, WeightFormat, f16_at, for_each_nibble_pair,
    half_exponent, put_nibbles, scaled_half,
};

pub(in super::super) struct Q4_0;

#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub(in super::super) struct Block {
    scales: [u16; LANES],
    quants: [TwoPairs; PAIRS / 2],
}

/// The file has the first sixteen weights in the low nibbles, the other sixteen in the high ones.
fn quant(block: &[u8], k: usize) -> u8 {
    let byte = block[2 + k % 16];
    if k < 16 { byte & 0xf } else { byte >> 4 }
}

impl PanelFormat for Q4_0 {
    type Block = Block;
    const FORMAT: WeightFormat = WeightFormat::Q4_0;

    fn exponent(outputs: &[&[u8]]) -> i32 {
        let blocks = outputs.iter().flat_map(|bytes| bytes.chunks_exact(Self::FORMAT.block_bytes()));
        half_exponent(blocks.map(|block| 8.0 * f16_at(block, 0).to_f32()))
    }

    fn pack(outputs: &[&[u8]], exponent: i32, packed: &mut Block) {
        for (lane, block) in outputs.iter().enumerate() {
            packed.scales[lane] = scaled_half(f16_at(block, 0), exponent);
            put_nibbles(&mut packed.quants, lane, |k| quant(block, k));
        }
    }

    fn decode(block: &[u8], weights: &mut [f32]) {
        let scale = f16_at(block, 0).to_f32();
        for (k, weight) in weights.iter_mut().enumerate() {
            *weight = scale * (f32::from(quant(block, k)) - 8.0);
        }
    }

    #[inline(always)]
    fn unpack<S: Simd>(simd: S, packed: &Block, _: usize, sink: &mut impl Sink<S>) {
        let scale = simd.load_f16(&packed.scales);
        let offset = simd.mul(scale, simd.splat(-8.0));
        for_each_nibble_pair!(simd, packed.quants, |pair, even, odd| {
            sink.put(pair, simd.fma(even, scale, offset), simd.fma(odd, scale, offset));
        });
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
        let numbers = simd.nibble_table(-8);
        for (two, rows) in packed.quants.iter().zip(tile.0.as_chunks_mut::<2>().0) {
            let [first, second] = simd.look_up_nibbles(numbers, two);
            simd.store_cut(simd.multiply_halves(first, scales), &mut rows[0]);
            simd.store_cut(simd.multiply_halves(second, scales), &mut rows[1]);
        }
    }
}
