//! The kernel of combine.cu, as host C++, against the CPU's, bit for bit: both are one chain of multiply-adds.

use super::{combine, launches::CombineLaunch};
use crate::kernels::{
    cuda::host_twin::{Order, Output, Twin, address},
    test_data::{floats, rng, tensor, values},
};

static TWIN: Twin = Twin::of("combine");

#[test]
fn it_is_what_the_cpu_makes_with_and_without_something_to_add_to() {
    if !TWIN.exists() {
        return;
    }
    let mut rng = rng(1);
    for (width, each, count) in [(1, 1, 1), (37, 3, 20), (500, 8, 5)] {
        let (stride, onto_stride) = (width + 3, width + 5);
        let (rows, onto) = (floats(&mut rng, 9 * stride), floats(&mut rng, count * onto_stride));
        let places: Vec<u32> = (0..(count * each) as u32).map(|k| k * 7 % 9).collect();
        let weights = floats(&mut rng, count * each);
        let wide = tensor(rows.clone(), &[9, stride]).narrow(1, 0, width).unwrap();
        let wide_onto = tensor(onto.clone(), &[count, onto_stride]).narrow(1, 0, width).unwrap();
        for with_onto in [false, true] {
            let want = values(&combine(&wide, &places, &weights, each, with_onto.then_some(&wide_onto)).unwrap());
            for order in Order::BOTH {
                let mut out = Output::unwritten(count * width, 7.0f32);
                let launch = CombineLaunch {
                    rows: (address(&rows), stride),
                    places: address(&places),
                    weights: address(&weights),
                    onto: if with_onto { (address(&onto), onto_stride) } else { (0, 0) },
                    out: out.address(),
                    count,
                    each,
                    width,
                };
                // SAFETY: the addresses are of buffers of these sizes.
                unsafe { TWIN.run(&launch.call(), order) };
                assert_eq!(out.written(), want, "{width}, {each} each, onto: {with_onto}");
            }
        }
    }
}
