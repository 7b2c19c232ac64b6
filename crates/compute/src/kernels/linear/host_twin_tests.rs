//! The kernels of linear.cu, as host C++, against loops.

use half::{bf16, f16};

use crate::kernels::{
    cuda::{
        Arg, Call, Launch,
        host_twin::{Order, Output, Twin, address},
    },
    test_data::{floats, rng},
};

static TWIN: Twin = Twin::of("linear");

/// What a call writes, fewer blocks than rows, in both orders.
fn run<T: Copy + PartialEq + std::fmt::Debug, const N: usize>(
    kernel: &'static str,
    len: usize,
    margin: T,
    args: impl Fn(u64) -> [Arg; N],
) -> Vec<T> {
    let [forward, reversed] = Order::BOTH.map(|order| {
        let mut out = Output::unwritten(len, margin);
        let launch = Launch { grid: [3, 1, 1], block: [64, 1, 1], shared_bytes: 0 };
        let call = Call { kernel, launch, args: args(out.address()) };
        // SAFETY: the addresses are of buffers of these sizes.
        unsafe { TWIN.run(&call, order) };
        out.written().to_vec()
    });
    assert_eq!(forward, reversed);
    forward
}

#[test]
fn rows_are_rounded_to_the_nearest_of_a_weights_type() {
    if !TWIN.exists() {
        return;
    }
    let (rows, width, stride) = (7, 100, 103);
    let mut x = floats(&mut rng(1), rows * stride);
    x[5..9].copy_from_slice(&[f32::INFINITY, 1e30, -1e-30, 65_520.0]);
    let taken: Vec<f32> = x.chunks(stride).flat_map(|row| &row[..width]).copied().collect();
    let sizes = [Arg::U64(rows as u64), Arg::U64(width as u64)];
    let args = |out| [Arg::Ptr(address(&x)), Arg::U64(stride as u64), Arg::Ptr(out), sizes[0], sizes[1]];
    let got = run("candlewick_linear_round_bf16", rows * width, bf16::MAX, args);
    assert_eq!(got, taken.iter().copied().map(bf16::from_f32).collect::<Vec<_>>());
    let got = run("candlewick_linear_round_f16", rows * width, f16::MAX, args);
    assert_eq!(got, taken.iter().copied().map(f16::from_f32).collect::<Vec<_>>());
}

#[test]
fn what_a_product_is_added_to_is_the_residual_stream_and_the_bias() {
    if !TWIN.exists() {
        return;
    }
    let (rows, width, stride) = (5, 70, 75);
    let (onto, bias) = (floats(&mut rng(2), rows * stride), floats(&mut rng(3), width));
    for (with_onto, with_bias) in [(false, false), (true, false), (false, true), (true, true)] {
        let got = run("candlewick_linear_begin", rows * width, 7.0f32, |out| {
            [
                Arg::Ptr(if with_onto { address(&onto) } else { 0 }),
                Arg::U64(stride as u64),
                Arg::Ptr(if with_bias { address(&bias) } else { 0 }),
                Arg::Ptr(out),
                Arg::U64(rows as u64),
                Arg::U64(width as u64),
            ]
        });
        for (k, got) in got.iter().enumerate() {
            let onto = if with_onto { onto[k / width * stride + k % width] } else { 0.0 };
            assert_eq!(*got, if with_bias { onto + bias[k % width] } else { onto });
        }
    }
}

#[test]
fn rows_of_a_table_are_gathered_and_widened() {
    if !TWIN.exists() {
        return;
    }
    let (vocab, width) = (11, 40);
    let table = floats(&mut rng(4), vocab * width);
    let ids = [3u32, 0, 10, 3, 7];
    let sizes = [Arg::U64(ids.len() as u64), Arg::U64(width as u64)];
    let rows = |table: &[f32]| -> Vec<f32> {
        ids.iter().flat_map(|&id| &table[id as usize * width..][..width]).copied().collect()
    };
    let args = |table: u64, out| [Arg::Ptr(table), Arg::Ptr(address(&ids)), Arg::Ptr(out), sizes[0], sizes[1]];
    let len = ids.len() * width;
    assert_eq!(run("candlewick_linear_gather_f32", len, 7.0f32, |out| args(address(&table), out)), rows(&table));
    let half: Vec<f16> = table.iter().copied().map(f16::from_f32).collect();
    let wide: Vec<f32> = half.iter().map(|x| x.to_f32()).collect();
    assert_eq!(run("candlewick_linear_gather_f16", len, 7.0f32, |out| args(address(&half), out)), rows(&wide));
    let half: Vec<bf16> = table.iter().copied().map(bf16::from_f32).collect();
    let wide: Vec<f32> = half.iter().map(|x| x.to_f32()).collect();
    assert_eq!(run("candlewick_linear_gather_bf16", len, 7.0f32, |out| args(address(&half), out)), rows(&wide));
}

#[test]
fn a_call_that_does_not_fit_its_kernel_is_refused() {
    if !TWIN.exists() {
        return;
    }
    let launch = Launch { grid: [1, 1, 1], block: [32, 1, 1], shared_bytes: 0 };
    let call = Call { kernel: "candlewick_linear_begin", launch, args: [Arg::Ptr(0), Arg::U32(1)] };
    // SAFETY: nothing runs.
    let error = unsafe { TWIN.try_run(&call, Order::Forward) }.unwrap_err();
    assert!(error.contains("2 given, 6 taken"), "{error}");
    let call = Call { kernel: "candlewick_linear_nothing", ..call };
    // SAFETY: nothing runs.
    let error = unsafe { TWIN.try_run(&call, Order::Forward) }.unwrap_err();
    assert!(error.contains("no HOST_TWIN(candlewick_linear_nothing)"), "{error}");
}
