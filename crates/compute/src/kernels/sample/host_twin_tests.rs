//! The kernel of sample.cu, as host C++, against a draw in float64.

use super::{Draw, launches::SampleLaunch, portable};
use crate::kernels::{
    cuda::host_twin::{Order, Output, Twin, address},
    test_data::{floats, rng},
};

static TWIN: Twin = Twin::of("sample");

fn run(logits: &[f32], width: usize, draws: &[Draw], order: Order) -> Vec<u32> {
    let of = |of: fn(&Draw) -> f32| draws.iter().map(of).collect::<Vec<_>>();
    let (temperatures, min_ps, top_ps) = (of(|draw| draw.temperature), of(|draw| draw.min_p), of(|draw| draw.top_p));
    let top_ks: Vec<u32> = draws.iter().map(|draw| draw.top_k).collect();
    let uniforms: Vec<f64> = draws.iter().map(|draw| draw.uniform).collect();
    let mut tokens = Output::unwritten(draws.len(), 7_777_777u32);
    let launch = SampleLaunch {
        logits: (address(logits), logits.len() / draws.len()),
        rows: draws.len(),
        width,
        temperatures: address(&temperatures),
        min_ps: address(&min_ps),
        top_ks: address(&top_ks),
        top_ps: address(&top_ps),
        uniforms: address(&uniforms),
        tokens: tokens.address(),
    };
    // SAFETY: the addresses are of buffers of these sizes.
    unsafe { TWIN.run(&launch.call(), order) };
    tokens.written().to_vec()
}

#[test]
fn it_draws_the_token_that_a_draw_in_float64_has_whatever_the_knobs() {
    if !TWIN.exists() {
        return;
    }
    let mut rng = rng(1);
    let knobs =
        [(0.0, 0, 1.0), (0.0, 40, 1.0), (0.0, 0, 0.9), (0.02, 0, 1.0), (0.01, 20, 0.7), (0.0, 1, 1.0), (0.9, 3, 0.1)];
    for (width, temperature) in [(1, 1.0), (50, 0.7), (3000, 1.0), (5001, 2.5)] {
        let stride = width + 3;
        let uniforms: Vec<f64> = floats(&mut rng, knobs.len()).iter().map(|x| f64::from(x.abs()).min(0.999)).collect();
        let draw = |((min_p, top_k, top_p), uniform)| Draw { temperature, min_p, top_k, top_p, uniform };
        let draws: Vec<Draw> = knobs.into_iter().zip(uniforms).map(draw).collect();
        let mut logits: Vec<f32> = floats(&mut rng, draws.len() * stride).iter().map(|x| x * 12.0).collect();
        for logits in logits.chunks_mut(stride) {
            // Past the row's end; masked; ties at the top.
            logits[width..].fill(1e9);
            if width > 40 {
                logits[3..9].fill(f32::NEG_INFINITY);
                for at in [11, 30, width - 1] {
                    logits[at] = 12.5;
                }
            }
        }
        let want =
            logits.chunks(stride).zip(&draws).map(|(row, draw)| portable::sample(&row[..width], draw).unwrap().0);
        let want: Vec<u32> = want.collect();
        for order in Order::BOTH {
            assert_eq!(run(&logits, width, &draws, order), want, "{width} at {temperature}, {order:?}");
        }
    }
}

#[test]
fn of_equally_likely_tokens_the_lower_ids_are_kept_and_each_gets_its_share() {
    if !TWIN.exists() {
        return;
    }
    let draw =
        |k: u32| Draw { temperature: 1.0, min_p: 0.0, top_k: 7, top_p: 1.0, uniform: (f64::from(k) + 0.5) / 7.0 };
    let draws: Vec<Draw> = (0..7).map(draw).collect();
    assert_eq!(run(&vec![1.5; 7 * 2000], 2000, &draws, Order::Forward), [0, 1, 2, 3, 4, 5, 6]);
    // 6.5 of 2,000, and so the first seven, as a share.
    let draws: Vec<Draw> = draws.iter().map(|&draw| Draw { top_k: 0, top_p: 6.5 / 2000.0, ..draw }).collect();
    assert_eq!(run(&vec![1.5; 7 * 2000], 2000, &draws, Order::Reversed), [0, 1, 2, 3, 4, 5, 6]);
}

#[test]
fn a_row_that_is_unsound_has_none() {
    if !TWIN.exists() {
        return;
    }
    let draw = Draw { temperature: 1.0, min_p: 0.0, top_k: 2, top_p: 0.5, uniform: 0.5 };
    let mut logits = vec![f32::NEG_INFINITY; 4 * 100];
    logits[150] = f32::NAN;
    logits[160] = 2.0;
    logits[250] = f32::INFINITY;
    logits[350] = f32::MIN;
    assert_eq!(run(&logits, 100, &[draw; 4], Order::Forward), [u32::MAX, u32::MAX, u32::MAX, 50]);
}
