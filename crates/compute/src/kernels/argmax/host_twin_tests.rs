//! The kernels of argmax.cu, as host C++, against a loop.

use super::{launches, most_likely};
use crate::kernels::{
    cuda::host_twin::{Order, Output, Twin, address},
    test_data::{floats, rng},
};

static TWIN: Twin = Twin::of("argmax");

fn run(logits: &[f32], [rows, stride, width]: [usize; 3], order: Order) -> Vec<u32> {
    let mut best = Output::unwritten(rows * launches::PARTS, 7u64);
    let mut places = Output::unwritten(rows, 7u32);
    let parts = launches::parts(address(logits), stride, best.address(), [rows, width]);
    let argmax = launches::argmax(best.address(), places.address(), rows);
    // SAFETY: the addresses are of buffers of these sizes.
    unsafe {
        TWIN.run(&parts, order);
        TWIN.run(&argmax, order);
    }
    best.written();
    places.written().to_vec()
}

#[test]
fn the_largest_wins_and_of_ties_the_first() {
    if !TWIN.exists() {
        return;
    }
    let mut rng = rng(1);
    for (rows, width) in [(1, 1), (3, 31), (2, 5000), (4, 20_001)] {
        let stride = width + 2;
        let mut logits: Vec<f32> = floats(&mut rng, rows * stride).iter().map(|x| x - 2.0).collect();
        // Ties, some across blocks, above all others and below zero; zeros of both signs; what is past a row's end.
        for (row, logits) in logits.chunks_mut(stride).enumerate() {
            logits[width..].fill(100.0);
            logits[width / 3] = f32::NEG_INFINITY;
            if row % 2 == 0 {
                for at in [width - 1, width / 2, width * 2 / 3] {
                    logits[at] = -0.5;
                }
            } else {
                logits[width / 2] = -0.0;
                logits[width - 1] = 0.0;
            }
        }
        let want = logits.chunks(stride).map(|row| most_likely(&row[..width]).map_or(u32::MAX, |id| id.0));
        let want: Vec<u32> = want.collect();
        for order in Order::BOTH {
            assert_eq!(run(&logits, [rows, stride, width], order), want, "{rows} of {width}");
        }
    }
}

#[test]
fn a_row_that_is_unsound_has_none() {
    if !TWIN.exists() {
        return;
    }
    let mut logits = vec![f32::NEG_INFINITY; 5 * 100];
    // Nothing; a NaN, of either sign; infinity; the least number there is.
    logits[170] = f32::NAN;
    logits[200] = -f32::NAN;
    logits[201] = 1.0;
    logits[350] = f32::INFINITY;
    logits[450] = f32::MIN;
    assert_eq!(run(&logits, [5, 100, 100], Order::Forward), [u32::MAX, u32::MAX, u32::MAX, u32::MAX, 50]);
    let want: Vec<u32> = logits.chunks(100).map(|row| most_likely(row).map_or(u32::MAX, |id| id.0)).collect();
    assert_eq!(run(&logits, [5, 100, 100], Order::Reversed), want);
}
