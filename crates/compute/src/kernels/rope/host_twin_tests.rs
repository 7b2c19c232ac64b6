//! The kernel of rope.cu, as host C++, against the reference and the CPU's.

use candle_core::Device;

use super::{HeadNorm, RopeStyle, RopeTable, launches::RopeLaunch, reference, rope};
use crate::kernels::{
    cuda::host_twin::{Order, Output, Twin, address},
    test_data::{assert_close, floats, rng, tensor, values},
};

static TWIN: Twin = Twin::of("rope");

#[test]
fn it_is_the_reference_for_both_styles_and_partial_rotation_with_and_without_a_norm() {
    if !TWIN.exists() {
        return;
    }
    let mut rng = rng(1);
    let positions = [0, 1, 7, 4000, 100];
    for (heads, head_dim, pairs) in [(1, 8, 4), (3, 80, 40), (2, 100, 10), (4, 128, 64), (2, 33, 5)] {
        let inv_freq: Vec<f32> = (0..pairs).map(|k| 1.0 / 10_000f32.powf(k as f32 / pairs as f32)).collect();
        let table = RopeTable::new(&inv_freq, 4096, 1.0, &Device::Cpu).unwrap();
        let angles = values(&table.table);
        let stride = heads * head_dim + 6;
        let x = floats(&mut rng, positions.len() * stride);
        let taken: Vec<f32> = x.chunks(stride).flat_map(|row| &row[..heads * head_dim]).copied().collect();
        let weight = floats(&mut rng, head_dim);
        for (style, normed) in
            [RopeStyle::Halves, RopeStyle::Interleaved].into_iter().flat_map(|s| [(s, false), (s, true)])
        {
            let [got, reversed] = Order::BOTH.map(|order| {
                let mut out = Output::unwritten(taken.len(), 7.0f32);
                let launch = RopeLaunch {
                    x: address(&x),
                    stride,
                    positions: address(&positions),
                    table: address(&angles),
                    norm: (if normed { address(&weight) } else { 0 }, 1e-6),
                    out: out.address(),
                    rows: positions.len(),
                    heads,
                    head_dim,
                    pairs,
                    style,
                };
                // SAFETY: the addresses are of buffers of these sizes.
                unsafe { TWIN.run(&launch.call(), order) };
                out.written().to_vec()
            });
            assert_eq!(got, reversed);
            if normed {
                let x = tensor(taken.clone(), &[positions.len(), heads, head_dim]);
                let weight = tensor(weight.clone(), &[head_dim]);
                let norm = Some(HeadNorm { weight: &weight, eps: 1e-6 });
                let want = values(&rope(&x, norm, &positions, &table, style).unwrap());
                assert_close(&got, &want.into_iter().map(f64::from).collect::<Vec<_>>(), 1e-6);
            } else {
                assert_close(&got, &reference::rope(&taken, heads, &positions, &inv_freq, style), 1e-6);
            }
        }
    }
}
