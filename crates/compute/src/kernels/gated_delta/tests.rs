//! The gated delta rule against its reference, and its invariance.

use super::*;
use crate::{
    ids::StateSlot,
    kernels::test_data::{assert_close, assert_tensors_close, bits, floats, on_threads, random, rng, values},
};

/// Keys and values that are no whole vectors, and shared keys.
const HEADS: DeltaHeads =
    DeltaHeads { key_heads: 2, value_heads: 6, key_dim: 22, value_dim: 21, sharing: Sharing::Neighbours };

struct Case {
    qkv: Tensor,
    gating: Tensor,
    gates: DeltaGates,
}

fn case(seed: u64, heads: DeltaHeads, tokens: usize) -> Case {
    let mut rng = rng(seed);
    let rates = floats(&mut rng, heads.value_heads).into_iter().map(|x| -(x + 1.1)).collect();
    let biases = floats(&mut rng, heads.value_heads);
    let qkv = random(&mut rng, &[tokens, heads.qkv()]);
    let gating = (random(&mut rng, &[tokens, 2 * heads.value_heads]) * 3.0).unwrap();
    Case { qkv, gating, gates: DeltaGates { rates, biases } }
}

fn state(heads: DeltaHeads) -> DeltaState {
    DeltaState::new(5, heads, &Device::Cpu).unwrap()
}

impl Case {
    /// Some of its tokens as one row that goes on from the state.
    fn run(&self, level: Level, tokens: std::ops::Range<usize>, state: &DeltaState) -> Tensor {
        let (first, count) = (tokens.start, tokens.len());
        let (qkv, gating) = (self.qkv.narrow(0, first, count).unwrap(), self.gating.narrow(0, first, count).unwrap());
        let rows = StateRows { cu_seqlens: &[0, count as u32], context_lens: &[first as u32], slots: &[StateSlot(3)] };
        gated_delta_at(level, &qkv, &gating, &self.gates, state, rows).unwrap()
    }
}

#[test]
fn it_is_the_reference_for_every_size_of_heads() {
    let heads = |key_heads, value_heads, key_dim, value_dim| DeltaHeads {
        key_heads,
        value_heads,
        key_dim,
        value_dim,
        sharing: Sharing::Neighbours,
    };
    let strided = DeltaHeads { sharing: Sharing::Strided, ..HEADS };
    let sizes = [heads(1, 1, 1, 1), heads(2, 4, 16, 24), heads(1, 2, 128, 128), heads(3, 3, 7, 16), HEADS, strided];
    for (heads, tokens) in sizes.into_iter().zip([3, 40, 9, 1, 70, 5]) {
        let case = case(1, heads, tokens);
        let (ours, theirs) = (state(heads), state(heads));
        let y = case.run(Level::best(), 0..tokens, &ours);
        let want = reference::gated_delta(&values(&case.qkv), &values(&case.gating), &case.gates, heads);
        assert_close(&values(&y), &want, 2e-6);

        let rows = StateRows { cu_seqlens: &[0, tokens as u32], context_lens: &[0], slots: &[StateSlot(3)] };
        let rows = rows.checked("test", tokens, 5).unwrap();
        let portable = portable::gated_delta(&case.qkv, &case.gating, &case.gates, &theirs, &rows).unwrap();
        assert_tensors_close(&portable, &y, 1e-5);
        assert_tensors_close(&theirs.matrices, &ours.matrices, 1e-5);
    }
}

#[test]
fn a_sequence_has_the_same_bits_however_it_is_cut_and_on_every_instruction_set() {
    const TOKENS: usize = 23;
    let case = case(2, HEADS, TOKENS);
    let whole = case.run(Level::best(), 0..TOKENS, &state(HEADS));
    for level in Level::tested() {
        for chunk in [1, 2, 5, TOKENS] {
            for threads in [1, 2] {
                let state = state(HEADS);
                let chunks = (0..TOKENS).step_by(chunk).map(|first| first..TOKENS.min(first + chunk));
                let pieces: Vec<_> =
                    chunks.map(|tokens| on_threads(threads, || case.run(level, tokens, &state))).collect();
                let cut = Tensor::cat(&pieces, 0).unwrap();
                assert_eq!(bits(&cut), bits(&whole), "{level:?}, chunks of {chunk}, {threads} threads");
            }
        }
    }
}

#[test]
fn a_sequence_has_the_same_bits_among_others_and_begins_from_zeros_in_a_used_state() {
    let case = case(3, HEADS, 12);
    let used = DeltaState { matrices: random(&mut rng(4), state(HEADS).matrices.dims()), ..state(HEADS) };
    let untouched = [1, 2].map(|slot| bits(&used.matrices.narrow(0, slot, 1).unwrap()));
    let rows = StateRows {
        cu_seqlens: &[0, 5, 6, 6, 12],
        context_lens: &[0, 9, 4, 0],
        slots: &[StateSlot(4), StateSlot(0), StateSlot(2), StateSlot(3)],
    };
    let all = gated_delta(&case.qkv, &case.gating, &case.gates, &used, rows).unwrap();
    for (first, count) in [(0, 5), (6, 6)] {
        let of_row = |x: &Tensor| x.narrow(0, first, count).unwrap();
        let row = Case { qkv: of_row(&case.qkv), gating: of_row(&case.gating), gates: case.gates.clone() };
        let alone = row.run(Level::best(), 0..count, &state(HEADS));
        assert_eq!(bits(&of_row(&all)), bits(&alone), "from token {first}");
    }
    assert_eq!([1, 2].map(|slot| bits(&used.matrices.narrow(0, slot, 1).unwrap())), untouched);
}

#[test]
fn gates_saturate() {
    let gates = DeltaGates { rates: vec![-1.0], biases: vec![0.0] };
    assert_eq!(gates.of(0, 200.0, -200.0), [1.0, 1.0]);
    assert_eq!(gates.of(0, -800.0, 800.0), [0.0, 0.0]);
    let [decay, share] = gates.of(0, 0.0, 0.0);
    assert_eq!((decay, share), (0.5, 0.5));
}

#[test]
fn shapes_that_do_not_fit_are_refused() {
    let Case { qkv, gating, gates, .. } = case(5, HEADS, 2);
    let rows = StateRows { cu_seqlens: &[0, 2], context_lens: &[0], slots: &[StateSlot(0)] };
    let few = DeltaGates { rates: vec![-1.0], biases: vec![0.0] };
    let narrow = |x: &Tensor| x.narrow(1, 0, 5).unwrap();
    for (qkv, gating, gates) in [
        (narrow(&qkv), gating.clone(), &gates),
        (qkv.clone(), narrow(&gating), &gates),
        (qkv.clone(), gating.narrow(0, 0, 1).unwrap(), &gates),
        (qkv.clone(), gating.clone(), &few),
    ] {
        let error = gated_delta(&qkv, &gating, gates, &state(HEADS), rows).unwrap_err();
        assert!(error.message.contains("gated_delta: qkv has shape"), "{error}");
    }
    for heads in [
        DeltaHeads { key_heads: 4, ..HEADS },
        DeltaHeads { key_heads: 0, ..HEADS },
        DeltaHeads { key_dim: 257, ..HEADS },
        DeltaHeads { value_dim: 0, ..HEADS },
    ] {
        assert!(DeltaState::new(1, heads, &Device::Cpu).is_err(), "{heads:?}");
    }
}
