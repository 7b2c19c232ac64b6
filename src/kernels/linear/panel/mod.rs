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

use super::{arithmetic::Arithmetic, format::WeightFormat};
use crate::kernels::simd::{LANES, Simd};

/// Inputs a step: what one bfloat16 tile takes.
pub(super) const STEP: usize = 32;
/// Pairs of neighbouring inputs a step.
pub(super) const PAIRS: usize = STEP / 2;

/// One storage format, in a file and packed.
pub(super) trait PanelFormat: 'static {
    /// Sixteen outputs' weights beside each other; a panel is one of these for each [`STEPS`](Self::STEPS) along the
    /// input, the last one filled up with zeros.
    type Block: bytemuck::Pod + Send + Sync;
    /// How its products are summed.
    type Arithmetic: Arithmetic;
    /// The name of the format.
    const FORMAT: WeightFormat;
    /// Steps a block.
    const STEPS: usize = 1;

    /// Lays up to sixteen outputs' bytes of a file, each of as many inputs as a block has or are left, beside each
    /// other. `packed` comes zeroed.
    fn pack(outputs: &[&[u8]], packed: &mut Self::Block);

    /// The weights of one block of the file.
    fn decode(block: &[u8], weights: &mut [f32]);

    /// Widens one step of a packed block into `sink`, inputs ascending. The values are those of
    /// [`decode`](Self::decode).
    fn unpack<S: Simd>(simd: S, packed: &Self::Block, step: usize, sink: &mut impl Sink<S>);

    /// The block as the bfloat16 tile that it is, where it is one: pairs of inputs of sixteen outputs.
    #[inline(always)]
    fn as_tile(_packed: &Self::Block) -> Option<&[[[u16; 2]; LANES]; PAIRS]> {
        None
    }
}

/// Takes the weights of a step as they are widened. Implementations are `#[inline(always)]`, which a closure cannot be.
pub(super) trait Sink<S: Simd> {
    /// The weights of inputs `2 * pair` and `2 * pair + 1` of the step for the panel's sixteen outputs.
    fn put(&mut self, pair: usize, even: S::F, odd: S::F);
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
