//! Rotary embedding against its reference, and its invariance.

use super::*;
use crate::kernels::test_data::{assert_close, assert_tensors_close, bits, on_threads, random, rng, values};

fn inv_freq(pairs: usize) -> Vec<f32> {
    (0..pairs).map(|k| 1.0 / 10_000f32.powf(k as f32 / pairs as f32)).collect()
}

const STYLES: [RopeStyle; 2] = [RopeStyle::Halves, RopeStyle::Interleaved];

#[test]
fn it_is_the_reference_for_both_styles_and_partial_rotation() {
    let mut rng = rng(1);
    let positions = [0, 1, 7, 4000, 100];
    for (heads, head_dim, pairs) in [(1, 8, 4), (3, 80, 40), (2, 100, 10), (4, 128, 64), (2, 96, 24)] {
        let inv_freq = inv_freq(pairs);
        let table = RopeTable::new(&inv_freq, 4096, 1.0, &Device::Cpu).unwrap();
        let x = random(&mut rng, &[positions.len(), heads, head_dim]);
        for style in STYLES {
            let y = rope(&x, None, &positions, &table, style).unwrap();
            assert_eq!(y.dims(), x.dims());
            assert_close(&values(&y), &reference::rope(&values(&x), heads, &positions, &inv_freq, style), 1e-6);
            assert_tensors_close(&portable::rope(&x, &positions, &table.table, style).unwrap(), &y, 1e-6);
        }
    }
}

#[test]
fn a_row_has_the_same_bits_alone_and_in_any_batch() {
    let mut rng = rng(2);
    let table = RopeTable::new(&inv_freq(64), 100, 1.0, &Device::Cpu).unwrap();
    let positions: Vec<u32> = (0..60).map(|k| k * 37 % 100).collect();
    let x = random(&mut rng, &[60, 8, 128]);
    for style in STYLES {
        let all = rope(&x, None, &positions, &table, style).unwrap();
        for row in [0, 3, 59] {
            let alone = rope(&x.narrow(0, row, 1).unwrap(), None, &positions[row..=row], &table, style).unwrap();
            assert_eq!(bits(&alone), bits(&all.narrow(0, row, 1).unwrap()));
        }
        for level in Level::tested() {
            for threads in [1, 2] {
                let again = on_threads(threads, || rope_at(level, &x, None, &positions, &table, style).unwrap());
                assert_eq!(bits(&again), bits(&all), "{level:?}, {threads} threads");
            }
        }
    }
}

#[test]
fn the_attention_factor_scales_what_is_turned() {
    let x = random(&mut rng(3), &[1, 1, 8]);
    let inv_freq = inv_freq(2);
    let [plain, scaled] = [1.0, 1.5].map(|factor| RopeTable::new(&inv_freq, 10, factor, &Device::Cpu).unwrap());
    let [plain, scaled] =
        [plain, scaled].map(|table| values(&rope(&x, None, &[3], &table, RopeStyle::Halves).unwrap()));
    for k in 0..8 {
        let want = if k < 4 { plain[k] * 1.5 } else { plain[k] };
        assert!((scaled[k] - want).abs() < 1e-6, "{plain:?} {scaled:?}");
    }
}

#[test]
fn a_slice_of_a_fused_projection_needs_no_copy() {
    let wide = random(&mut rng(4), &[3, 6, 16]);
    let table = RopeTable::new(&inv_freq(8), 10, 1.0, &Device::Cpu).unwrap();
    let slice = wide.narrow(1, 4, 2).unwrap();
    let want = rope(&slice.contiguous().unwrap(), None, &[1, 2, 3], &table, RopeStyle::Halves).unwrap();
    assert_eq!(bits(&rope(&slice, None, &[1, 2, 3], &table, RopeStyle::Halves).unwrap()), bits(&want));
}

#[test]
fn a_position_past_the_table_is_refused() {
    let table = RopeTable::new(&inv_freq(4), 10, 1.0, &Device::Cpu).unwrap();
    let x = random(&mut rng(5), &[1, 1, 8]);
    assert!(rope(&x, None, &[10], &table, RopeStyle::Halves).unwrap_err().message.contains("position 10"));
    assert!(rope(&x, None, &[1, 2], &table, RopeStyle::Halves).is_err());
}

#[test]
fn heads_are_normed_first_where_there_is_a_norm() {
    let mut rng = rng(6);
    let table = RopeTable::new(&[1.0, 0.1, 0.01, 0.001], 10, 1.0, &Device::Cpu).unwrap();
    for style in [RopeStyle::Halves, RopeStyle::Interleaved] {
        let (x, weight) = (random(&mut rng, &[3, 4, 24]), random(&mut rng, &[24]));
        let normed = rms_norm(&x, &weight, 1e-6).unwrap();
        let want = rope(&normed, None, &[7, 0, 2], &table, style).unwrap();
        for level in Level::tested() {
            let norm = Some(HeadNorm { weight: &weight, eps: 1e-6 });
            let got = rope_at(level, &x, norm, &[7, 0, 2], &table, style).unwrap();
            assert_eq!(bits(&got), bits(&want), "{style:?}, {level:?}");
        }
        let narrow = random(&mut rng, &[23]);
        assert!(rope(&x, Some(HeadNorm { weight: &narrow, eps: 1e-6 }), &[7, 0, 2], &table, style).is_err());
    }
}
