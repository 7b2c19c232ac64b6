//! The kernel of gated_delta.cu, as host C++, against the reference and what the CPU makes.

use candle_core::Device;

use super::{DeltaGates, DeltaHeads, DeltaState, Sharing, gated_delta, launches::GatedDeltaLaunch, reference};
use crate::{
    ids::StateSlot,
    kernels::{
        cuda::host_twin::{Order, Output, Twin, address},
        recurrent::{StateRows, numbers},
        test_data::{assert_close, floats, rng, tensor, values},
    },
};

static TWIN: Twin = Twin::of("gated_delta");

const SIZES: [DeltaHeads; 4] = [
    heads(1, 1, (5, 3), Sharing::Neighbours),
    heads(2, 4, (64, 40), Sharing::Neighbours),
    heads(2, 6, (9, 4), Sharing::Strided),
    heads(1, 2, (200, 16), Sharing::Neighbours),
];

const fn heads(
    key_heads: usize,
    value_heads: usize,
    (key_dim, value_dim): (usize, usize),
    sharing: Sharing,
) -> DeltaHeads {
    DeltaHeads { key_heads, value_heads, key_dim, value_dim, sharing }
}

struct Case {
    qkv: Vec<f32>,
    gating: Vec<f32>,
    gates: DeltaGates,
    heads: DeltaHeads,
}

impl Case {
    fn new(heads: DeltaHeads, tokens: usize) -> Self {
        let mut rng = rng(1);
        let gates = DeltaGates {
            rates: floats(&mut rng, heads.value_heads).iter().map(|x| -1.0 - x.abs()).collect(),
            biases: floats(&mut rng, heads.value_heads),
        };
        let (qkv, gating) = (floats(&mut rng, tokens * heads.qkv()), floats(&mut rng, tokens * 2 * heads.value_heads));
        Self { qkv, gating, gates, heads }
    }

    /// Results and states of a step that computes so many tokens from `first` on.
    fn run(&self, rows: StateRows<'_>, first: usize, states: &mut Output<f32>, order: Order) -> Vec<f32> {
        let (heads, tokens) = (self.heads, rows.cu_seqlens[rows.cu_seqlens.len() - 1] as usize);
        let checked = rows.checked("test", tokens, 5).unwrap();
        let numbers = numbers(&checked);
        let mut out = Output::unwritten(tokens * heads.values(), 7.0f32);
        let launch = GatedDeltaLaunch {
            qkv: (address(&self.qkv[first * heads.qkv()..]), heads.qkv()),
            gating: (address(&self.gating[first * 2 * heads.value_heads..]), 2 * heads.value_heads),
            rates: address(&self.gates.rates),
            biases: address(&self.gates.biases),
            states: states.address(),
            rows: address(&numbers),
            out: out.address(),
            num_rows: checked.len(),
            heads,
        };
        // SAFETY: the addresses are of buffers of these sizes.
        unsafe { TWIN.run(&launch.call(), order) };
        out.written().to_vec()
    }
}

fn states(heads: &DeltaHeads) -> Output<f32> {
    Output::of(&vec![0.0; 5 * DeltaState::bytes_per_slot(heads) / 4], 7.0)
}

#[test]
fn it_is_the_reference_and_leaves_the_states_that_the_cpu_leaves() {
    if !TWIN.exists() {
        return;
    }
    for heads in SIZES {
        let case = Case::new(heads, 9);
        let rows = StateRows { cu_seqlens: &[0, 9], context_lens: &[0], slots: &[StateSlot(3)] };
        let want = reference::gated_delta(&case.qkv, &case.gating, &case.gates, heads);
        let cpu = DeltaState::new(5, heads, &Device::Cpu).unwrap();
        let qkv = tensor(case.qkv.clone(), &[9, heads.qkv()]);
        gated_delta(&qkv, &tensor(case.gating.clone(), &[9, 2 * heads.value_heads]), &case.gates, &cpu, rows).unwrap();
        let left: Vec<f64> = values(&cpu.matrices).into_iter().map(f64::from).collect();
        for order in Order::BOTH {
            let mut states = states(&heads);
            assert_close(&case.run(rows, 0, &mut states, order), &want, 1e-5);
            assert_close(states.written(), &left, 1e-5);
        }
    }
}

#[test]
fn a_sequence_has_the_same_bits_however_it_is_cut_and_among_others() {
    if !TWIN.exists() {
        return;
    }
    for heads in SIZES {
        let case = Case::new(heads, 9);
        let whole = StateRows { cu_seqlens: &[0, 9], context_lens: &[0], slots: &[StateSlot(3)] };
        let want = case.run(whole, 0, &mut states(&heads), Order::Forward);
        // Two tokens of one sequence, among others; then the rest of it.
        let mut kept = states(&heads);
        let [part, rest] = [&want[..2 * heads.values()], &want[2 * heads.values()..]];
        let rows = StateRows {
            cu_seqlens: &[0, 2, 3, 9],
            context_lens: &[0, 0, 5],
            slots: &[StateSlot(1), StateSlot(4), StateSlot(0)],
        };
        assert_eq!(&case.run(rows, 0, &mut kept, Order::Forward)[..part.len()], part);
        let rows = StateRows { cu_seqlens: &[0, 7], context_lens: &[2], slots: &[StateSlot(1)] };
        assert_eq!(case.run(rows, 2, &mut kept, Order::Reversed), rest);
    }
}
