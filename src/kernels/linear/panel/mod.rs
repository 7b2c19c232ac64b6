//! How weights of each format lie in memory: panels of sixteen outputs, so that one vector holds the same input's
//! weight of sixteen outputs. A format is one file here and one row in [`with_format`].

mod float;
mod q4_0;
mod q4_k;
mod q6_k;
mod q8_0;

pub(super) use float::{Bf16, F16, F32};
pub(super) use q4_0::Q4_0;
pub(super) use q4_k::Q4K;
pub(super) use q6_k::Q6K;
pub(super) use q8_0::Q8_0;

use super::format::WeightFormat;
use crate::kernels::simd::{LANES, Simd};

/// One storage format, in a file and packed.
pub(super) trait PanelFormat: 'static {
    /// Sixteen outputs' blocks beside each other; a panel is one of these for each block along the input.
    type Block: bytemuck::Pod + Send + Sync;
    /// The name of the format.
    const FORMAT: WeightFormat;

    /// Lays the file's blocks of up to sixteen outputs (one block each) beside each other. `packed` comes zeroed.
    fn pack(blocks: &[&[u8]], packed: &mut Self::Block);

    /// The weights of one block of the file.
    fn decode(block: &[u8], weights: &mut [f32]);

    /// Widens a packed block into `sink`, inputs ascending. The values are those of [`decode`](Self::decode).
    fn unpack<S: Simd>(simd: S, packed: &Self::Block, sink: &mut impl Sink<S>);
}

/// Takes the weights of a block as they are widened. Implementations are `#[inline(always)]`, which a closure cannot be.
pub(super) trait Sink<S: Simd> {
    /// The weights of input `k` of the block for the panel's sixteen outputs.
    fn put(&mut self, k: usize, weights: S::F);
}

/// Evaluates an expression with the [`PanelFormat`] of a [`WeightFormat`].
macro_rules! with_format {
    ($format:expr, $F:ident => $body:expr) => {
        $crate::kernels::linear::panel::with_format!(@ $format, $F => $body;
            F32 => F32, F16 => F16, BF16 => Bf16, Q4_0 => Q4_0, Q8_0 => Q8_0, Q4K => Q4K, Q6K => Q6K)
    };
    (@ $format:expr, $F:ident => $body:expr; $($name:ident => $panel:ident),*) => {
        match $format {
            $($crate::kernels::linear::format::WeightFormat::$name => {
                type $F = $crate::kernels::linear::panel::$panel;
                $body
            })*
        }
    };
}
pub(super) use with_format;

/// A little-endian half at `at`.
fn f16_at(bytes: &[u8], at: usize) -> half::f16 {
    half::f16::from_le_bytes([bytes[at], bytes[at + 1]])
}

/// Puts two numbers of four bits into a byte.
fn nibbles(low: u8, high: u8) -> u8 {
    low & 0xf | high << 4
}

/// Weights `2k` (low nibbles) and `2k + 1` (high nibbles) of sixteen outputs.
type NibblePair = [u8; LANES];
