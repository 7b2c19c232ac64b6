//! The kernels of causal_conv.cu, as host C++, against what the CPU makes.

use candle_core::{Device, Tensor};

use super::{ConvState, causal_conv, launches::CausalConvLaunch};
use crate::{
    ids::StateSlot,
    kernels::{
        activation::Activation,
        cuda::host_twin::{Order, Output, Twin, address},
        recurrent::{StateRows, numbers},
        test_data::{assert_close, floats, random, rng, tensor, values},
    },
};

static TWIN: Twin = Twin::of("causal_conv");

#[test]
fn results_and_states_are_the_cpus_for_ragged_rows_that_begin_and_go_on() {
    if !TWIN.exists() {
        return;
    }
    let mut rng = rng(1);
    for (taps, channels) in [(2, 1), (4, 200), (3, 37), (8, 130)] {
        for activation in [Activation::Silu, Activation::Relu] {
            let stride = channels + 5;
            let (x, weight) = (floats(&mut rng, 17 * stride), floats(&mut rng, taps * channels));
            let before = random(&mut rng, &[6, taps - 1, channels]);
            let rows = StateRows {
                cu_seqlens: &[0, 5, 6, 6, 17],
                context_lens: &[0, 9, 4, 7],
                slots: &[StateSlot(4), StateSlot(0), StateSlot(2), StateSlot(5)],
            };
            let cpu = ConvState { inputs: Tensor::from_vec(values(&before), before.shape(), &Device::Cpu).unwrap() };
            let wide = tensor(x.clone(), &[17, stride]).narrow(1, 0, channels).unwrap();
            let want = causal_conv(&wide, &tensor(weight.clone(), &[taps, channels]), &cpu, rows, activation).unwrap();
            let want: Vec<f64> = values(&want).into_iter().map(f64::from).collect();
            let rows = rows.checked("test", 17, 6).unwrap();
            let numbers = numbers(&rows);
            for order in Order::BOTH {
                let mut out = Output::unwritten(17 * channels, 7.0f32);
                let mut states = Output::of(&values(&before), 7.0f32);
                let launch = CausalConvLaunch {
                    x: (address(&x), stride),
                    weight: address(&weight),
                    states: states.address(),
                    rows: address(&numbers),
                    out: out.address(),
                    num_rows: rows.len(),
                    longest: 11,
                    taps,
                    channels,
                    activation,
                };
                let (results, moved) = launch.calls();
                // SAFETY: the addresses are of buffers of these sizes.
                unsafe {
                    TWIN.run(&results, order);
                    TWIN.run(&moved, order);
                }
                assert_close(out.written(), &want, 1e-6);
                assert_eq!(states.written(), values(&cpu.inputs), "{taps} taps, {channels} channels");
            }
        }
    }
}
