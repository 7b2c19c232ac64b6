//! The convolution on the CPU. Channels do not know of each other, so that a sequence's are shared out over threads.

use super::{CausalConv, StateRow, TAPS};
use crate::kernels::{
    activation::{Activation, cpu::activate},
    cpu_tensor::{Rows, SharedMatrix, written},
    pool::for_each_task,
    simd::{Kernel, LANES, Simd},
};

/// Channels a task.
const PIECE: usize = 512;
/// Inputs that pay for waking another thread.
const WORTH_SHARING: usize = 16 * 1024;

pub(super) fn causal_conv(op: &CausalConv<'_>, states: &mut [f32], x: Rows<'_>) -> Vec<f32> {
    let channels = x.width;
    let pieces = channels.div_ceil(PIECE);
    let states = SharedMatrix::new(states);
    let write = |out: &SharedMatrix<'_, _>| {
        for_each_task(op.rows.len() * pieces, x.count * channels > WORTH_SHARING, |task| {
            let (row, first) = (&op.rows[task / pieces], task % pieces * PIECE);
            let piece = Piece { op, x, row, first, len: PIECE.min(channels - first) };
            let kept = piece.op.weight.count - 1;
            let mut history = vec![0.0; kept * piece.len];
            for (k, history) in history.chunks_exact_mut(piece.len).enumerate() {
                // SAFETY: a state is one row's alone, and these channels of it this task's; the slice lives for a line.
                let state = unsafe { states.slice_mut((row.slot * kept + k) * channels + first, piece.len) };
                if !row.begins {
                    history.copy_from_slice(state);
                }
            }
            for token in 0..row.tokens.len() {
                let start = (row.tokens.start + token) * channels + first;
                // SAFETY: tokens are one row's alone, and these channels of them this task's.
                let out = unsafe { out.cleared_mut(start, piece.len) };
                let mut inputs = [&[][..]; *TAPS.end()];
                let inputs = &mut inputs[..=kept];
                inputs.iter_mut().enumerate().for_each(|(tap, input)| *input = piece.input(&history, token + tap));
                op.level.run(Token { inputs, weight: op.weight, first, activation: op.activation, out });
            }
            for k in 0..kept {
                let newest = piece.input(&history, row.tokens.len() + k);
                // SAFETY: as above.
                unsafe { states.slice_mut((row.slot * kept + k) * channels + first, piece.len) }
                    .copy_from_slice(newest);
            }
        });
    };
    // SAFETY: the rows cover all tokens, and the pieces all channels.
    unsafe { written(x.count * channels, write) }
}

/// Some channels of a row.
struct Piece<'a> {
    op: &'a CausalConv<'a>,
    x: Rows<'a>,
    row: &'a StateRow,
    first: usize,
    len: usize,
}

impl Piece<'_> {
    /// The inputs at a place among those that were kept and those of the row's tokens, in order.
    fn input<'a>(&'a self, history: &'a [f32], place: usize) -> &'a [f32] {
        let kept = self.op.weight.count - 1;
        match place.checked_sub(kept) {
            None => &history[place * self.len..][..self.len],
            Some(token) => &self.x.row(self.row.tokens.start + token)[self.first..][..self.len],
        }
    }
}

/// One token's channels from `first` on.
struct Token<'a> {
    /// Oldest first.
    inputs: &'a [&'a [f32]],
    weight: Rows<'a>,
    first: usize,
    activation: Activation,
    out: &'a mut [f32],
}

impl Kernel for Token<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { inputs, weight, first, activation, out } = self;
        for (vector, out) in out.chunks_mut(LANES).enumerate() {
            let at = vector * LANES;
            let mut sum = simd.zero();
            for (tap, input) in inputs.iter().enumerate() {
                let weight = &weight.row(tap)[first + at..][..out.len()];
                sum = simd.fma(lanes(simd, &input[at..][..out.len()]), lanes(simd, weight), sum);
            }
            let y = activate(simd, activation, sum);
            match out.as_chunks_mut().0 {
                [out] => simd.store(y, out),
                _ => simd.store_partial(y, out),
            }
        }
    }
}

/// Up to sixteen floats, zeros behind them.
#[inline(always)]
fn lanes<S: Simd>(simd: S, x: &[f32]) -> S::F {
    match x.first_chunk() {
        Some(x) => simd.load(x),
        None => simd.load_partial(x, 0.0),
    }
}
