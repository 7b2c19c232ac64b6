//! The convolution against its reference, and its invariance.

use super::*;
use crate::{
    ids::StateSlot,
    kernels::{
        activation,
        test_data::{assert_close, assert_tensors_close, bits, on_threads, random, rng, values},
    },
};

const CHANNELS: usize = 37;

fn state(taps: usize, channels: usize) -> ConvState {
    ConvState::new(5, taps, channels, &Device::Cpu).unwrap()
}

/// All of `x` as one row after `context` tokens.
fn run(level: Level, x: &Tensor, weight: &Tensor, state: &ConvState, context: usize) -> Tensor {
    let (tokens, context) = (x.dims()[0] as u32, context as u32);
    let rows = StateRows { cu_seqlens: &[0, tokens], context_lens: &[context], slots: &[StateSlot(3)] };
    causal_conv_at(level, x, weight, state, rows, Activation::Silu).unwrap()
}

fn silu(x: f64) -> f64 {
    activation::reference::activation(x, Activation::Silu)
}

#[test]
fn it_is_the_reference_for_every_number_of_taps_and_channels() {
    let mut rng = rng(1);
    for (taps, channels, tokens) in [(2, 1, 1), (4, 16, 9), (3, 37, 2), (4, 1100, 5), (8, 50, 20)] {
        let (x, weight) = (random(&mut rng, &[tokens, channels]), random(&mut rng, &[taps, channels]));
        let want = reference::causal_conv(&values(&x), &values(&weight), channels, silu);
        let (ours, theirs) = (state(taps, channels), state(taps, channels));
        let y = run(Level::best(), &x, &weight, &ours, 0);
        assert_close(&values(&y), &want, 1e-6);

        let rows = StateRows { cu_seqlens: &[0, tokens as u32], context_lens: &[0], slots: &[StateSlot(3)] };
        let rows = rows.checked("test", tokens, 5).unwrap();
        let portable = portable::causal_conv(&x, &weight, &theirs, &rows, Activation::Silu).unwrap();
        assert_tensors_close(&portable, &y, 1e-5);
        assert_eq!(values(&theirs.inputs), values(&ours.inputs));
    }
}

#[test]
fn a_sequence_has_the_same_bits_however_it_is_cut_and_on_every_instruction_set() {
    let mut rng = rng(2);
    let (x, weight) = (random(&mut rng, &[23, CHANNELS]), random(&mut rng, &[4, CHANNELS]));
    let whole = run(Level::best(), &x, &weight, &state(4, CHANNELS), 0);
    for level in Level::tested() {
        for chunk in [1, 2, 3, 5, 23] {
            for threads in [1, 2] {
                let state = state(4, CHANNELS);
                let mut pieces = Vec::new();
                for first in (0..23).step_by(chunk) {
                    let piece = x.narrow(0, first, chunk.min(23 - first)).unwrap();
                    pieces.push(on_threads(threads, || run(level, &piece, &weight, &state, first)));
                }
                let cut = Tensor::cat(&pieces, 0).unwrap();
                assert_eq!(bits(&cut), bits(&whole), "{level:?}, chunks of {chunk}, {threads} threads");
            }
        }
    }
}

#[test]
fn a_sequence_has_the_same_bits_among_others_and_begins_from_zeros_in_a_used_state() {
    let mut rng = rng(3);
    let weight = random(&mut rng, &[4, CHANNELS]);
    // Of a wider tensor, as a slice of a fused projection.
    let x = random(&mut rng, &[12, CHANNELS + 9]).narrow(1, 4, CHANNELS).unwrap();
    let used = ConvState { inputs: random(&mut rng, &[5, 3, CHANNELS]) };
    let rows = StateRows {
        cu_seqlens: &[0, 5, 6, 6, 12],
        context_lens: &[0, 9, 4, 0],
        slots: &[StateSlot(4), StateSlot(0), StateSlot(2), StateSlot(3)],
    };
    let untouched = [1, 2].map(|slot| bits(&used.inputs.narrow(0, slot, 1).unwrap()));
    let all = causal_conv(&x, &weight, &used, rows, Activation::Silu).unwrap();
    for (first, count) in [(0, 5), (6, 6)] {
        let alone = run(Level::best(), &x.narrow(0, first, count).unwrap(), &weight, &state(4, CHANNELS), 0);
        assert_eq!(bits(&all.narrow(0, first, count).unwrap()), bits(&alone), "from token {first}");
    }
    assert_eq!([1, 2].map(|slot| bits(&used.inputs.narrow(0, slot, 1).unwrap())), untouched);
}

#[test]
fn shapes_that_do_not_fit_are_refused() {
    let mut rng = rng(4);
    let rows = StateRows { cu_seqlens: &[0, 2], context_lens: &[0], slots: &[StateSlot(0)] };
    let (x, weight) = (random(&mut rng, &[2, 8]), random(&mut rng, &[4, 8]));
    for (x, weight, state) in [
        (random(&mut rng, &[2, 7]), weight.clone(), state(4, 8)),
        (x.clone(), random(&mut rng, &[3, 8]), state(4, 8)),
        (x.clone(), weight.clone(), state(4, 9)),
    ] {
        let error = causal_conv(&x, &weight, &state, rows, Activation::Silu).unwrap_err();
        assert!(error.message.contains("causal_conv: x has shape"), "{error}");
    }
    assert!(ConvState::new(1, 1, 8, &Device::Cpu).unwrap_err().message.contains("1 taps"));
}
