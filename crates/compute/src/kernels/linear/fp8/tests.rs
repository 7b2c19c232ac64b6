//! Eight-bit floats against the nearest that there are, and products of them against what rounding explains.

use candle_core::{Device, Tensor};
use float8::F8E4M3;
use rand::RngExt;

use super::{Fp8Weight, check_card, check_fp8, filled, portable, rounding::quantize};
use crate::{
    error::Code,
    kernels::{
        linear::{
            Extras, Inputs, PackedWeight, Storage,
            format::{RawTensor, WeightFormat},
            linear, reference,
            tests::weight,
        },
        rms_norm::rms_norm,
        test_data::{assert_close, bits, floats, random, rng, tensor, values},
    },
};

/// The nearest number of the format to one within its range, of two that are as near the one whose last bit is 0: by looking
/// at all of them.
fn nearest(x: f32) -> u8 {
    let far = |bits: &u8| (F8E4M3::from_bits(*bits).to_f64() - f64::from(x.abs())).abs();
    let best = (0..=0x7e_u8).min_by(|a, b| far(a).total_cmp(&far(b)).then((a % 2).cmp(&(b % 2))));
    best.expect("some are") | if x.is_sign_negative() { 0x80 } else { 0 }
}

/// Rounds a row; its bytes and its scale.
pub(super) fn quantized(x: &[f32]) -> (Vec<u8>, f32) {
    let mut numbers = vec![F8E4M3::ZERO; x.len()];
    let scale = quantize(x, &mut numbers);
    (numbers.iter().map(|number| number.to_bits()).collect(), scale)
}

/// Rows of all kinds of numbers.
pub(super) fn rows() -> Vec<Vec<f32>> {
    let mut rng = rng(1);
    let mut rows = vec![
        vec![0.0; 40],
        vec![-0.0, 0.0, 1.0],
        vec![1e-45, -1e-40, 3e-39, 0.0],
        vec![f32::MIN_POSITIVE, 1e-45, -2e-38],
        vec![f32::MAX, 1.0, -3e38, 1e30],
        vec![-7.0],
    ];
    // Under a scale of 1, each number between two neighbours and those beside it.
    let sizes: Vec<f32> = (0..=0x7e).map(|bits| F8E4M3::from_bits(bits).to_f32()).collect();
    let ties = sizes.windows(2).map(|pair| (pair[0] + pair[1]) / 2.0);
    rows.push(ties.flat_map(|tie| [tie.next_down(), tie, -tie, -tie.next_up()]).chain([448.0]).collect());
    for width in [1, 7, 64, 1000] {
        rows.push(floats(&mut rng, width));
        // Of many magnitudes.
        rows.push((0..width).map(|_| rng.random_range(-1.0f32..1.0) * 2f32.powi(rng.random_range(-20..20))).collect());
    }
    rows
}

#[test]
fn rows_are_rounded_to_the_nearest_under_a_scale_by_which_their_largest_is_the_largest() {
    for row in rows() {
        let (numbers, scale) = quantized(&row);
        let largest = row.iter().fold(0f32, |largest, x| largest.max(x.abs()));
        assert_eq!(scale, (largest / 448.0).max(f32::MIN_POSITIVE));
        let want: Vec<u8> = row.iter().map(|x| nearest(x / scale)).collect();
        assert_eq!(numbers, want, "{row:?}");
        // And as the crate of such numbers converts them.
        let want: Vec<u8> = row.iter().map(|x| F8E4M3::from_f32(x / scale).to_bits()).collect();
        assert_eq!(numbers, want, "{row:?}");
        if largest >= 448.0 * f32::MIN_POSITIVE {
            assert!(numbers.iter().any(|number| number & 0x7f == 0x7e), "the whole range is used: {row:?}");
        }
    }
    assert_eq!(quantized(&[0.0; 3]).0, [0; 3], "zeros stay zeros");
    assert_eq!(nearest(0.0), 0);
}

#[test]
fn a_nan_stays_one_and_an_infinity_takes_its_row_along() {
    let row = [0.5, f32::NAN, -2.0, 0.0];
    let (numbers, scale) = quantized(&row);
    let (want, want_scale) = quantized(&[0.5, 0.0, -2.0, 0.0]);
    assert_eq!((numbers[1] & 0x7f, scale), (0x7f, want_scale));
    assert_eq!([numbers[0], numbers[2], numbers[3]], [want[0], want[2], want[3]]);
    assert!(F8E4M3::from_bits(numbers[1]).to_f32().is_nan());

    let (numbers, scale) = quantized(&[1.0, f32::NEG_INFINITY, 0.0]);
    assert_eq!(scale, f32::INFINITY);
    assert_eq!([numbers[0], numbers[1] & 0x7f, numbers[2]], [0, 0x7f, 0]);
    // Such rows are told by their results; their neighbours are not touched.
    let packed = pack(&weight(&mut rng(2), WeightFormat::F32, 5, 3));
    let x = tensor(vec![1.0, 2.0, 3.0, 1.0, f32::NAN, 0.0, f32::INFINITY, 1.0, 1.0, 1.0, 2.0, 3.0], &[4, 3]);
    let y = values(&linear(Inputs::Rows(&x), &packed, Extras::default()).unwrap());
    assert_eq!(y[..5], y[15..]);
    assert!(y[..5].iter().all(|y| y.is_finite()) && y[5..15].iter().all(|y| y.is_nan()), "{y:?}");
}

pub(super) fn pack(raw: &RawTensor<'_>) -> PackedWeight {
    PackedWeight::pack(raw, WeightFormat::Fp8, &Device::Cpu).unwrap()
}

pub(super) fn of(packed: &PackedWeight) -> &Fp8Weight {
    match &packed.storage {
        Storage::Fp8(weight) => weight,
        _ => panic!("packed as something else"),
    }
}

/// Rounded and widened again.
fn rounded(row: &[f32]) -> Vec<f32> {
    let (numbers, scale) = quantized(row);
    numbers.iter().map(|&number| F8E4M3::from_bits(number).to_f32() * scale).collect()
}

/// How far a number of a row can be from itself when it is rounded: a sixteenth of it, as there are three bits behind the first,
/// or half of the smallest step, 2^-9, under the row's scale.
fn far(x: f64, scale: f32) -> f64 {
    // And what dividing by the scale and multiplying with it rounds in float32.
    (x.abs() / 16.0).max(f64::from(scale) / 1024.0) + x.abs() * 2f64.powi(-22)
}

#[test]
fn products_are_those_of_rounded_numbers_and_no_further_from_exact_ones_than_rounding_explains() {
    let mut rng = rng(3);
    for (outputs, inputs) in [(1, 1), (3, 15), (16, 16), (37, 17), (50, 651)] {
        let raw = weight(&mut rng, WeightFormat::F32, outputs, inputs);
        let (w, packed) = (raw.to_f32(), pack(&raw));
        let (x, bias) = (random(&mut rng, &[9, inputs]), random(&mut rng, &[outputs]));
        let y = linear(Inputs::Rows(&x), &packed, Extras { bias: Some(&bias), ..Extras::default() }).unwrap();
        assert_eq!(y.dims(), [9, outputs]);
        let (x, y) = (values(&x), values(&y));
        let all = |rows: &[f32]| -> Vec<f32> { rows.chunks(inputs).flat_map(rounded).collect() };
        let of_rounded = reference::linear(&all(&x), &all(&w), Some(&values(&bias)), inputs);
        assert_close(&y, &of_rounded, 1e-5);
        let exact = reference::linear(&x, &w, Some(&values(&bias)), inputs);
        let mut rounds = false;
        for (k, (y, exact)) in y.iter().zip(&exact).enumerate() {
            let (x, w) = (&x[k / outputs * inputs..][..inputs], &w[k % outputs * inputs..][..inputs]);
            let (x_scale, w_scale) = (quantized(x).1, quantized(w).1);
            let bound: f64 = x
                .iter()
                .zip(w)
                .map(|(&x, &w)| {
                    let (x, w) = (f64::from(x), f64::from(w));
                    let (dx, dw) = (far(x, x_scale), far(w, w_scale));
                    // What rounding adds, and then what adding in float32 does to a chain.
                    let product = x.abs() * dw + w.abs() * dx + dx * dw;
                    product + (x.abs() + dx) * (w.abs() + dw) * inputs as f64 * 2f64.powi(-24)
                })
                .sum();
            let slack = 2f64.powi(-22) * (exact.abs() + 1.0);
            let error = (f64::from(*y) - exact).abs();
            assert!(error <= bound + slack, "[{outputs}, {inputs}], {k}: {error} of {bound}");
            rounds |= error > bound / 1000.0;
        }
        assert!(rounds || inputs == 1, "something was rounded");
    }
}

#[test]
fn a_row_has_the_same_bits_alone_and_in_any_batch() {
    let mut rng = rng(4);
    let packed = pack(&weight(&mut rng, WeightFormat::BF16, 37, 100));
    let (x, onto) = (random(&mut rng, &[23, 100]), random(&mut rng, &[23, 37]));
    let linear = |first: usize, count: usize| {
        let onto = onto.narrow(0, first, count).unwrap();
        let extras = Extras { onto: Some(&onto), ..Extras::default() };
        bits(&linear(Inputs::Rows(&x.narrow(0, first, count).unwrap()), &packed, extras).unwrap())
    };
    let all = linear(0, 23);
    for count in [1, 2, 5, 16, 22] {
        for first in 0..=23 - count {
            assert_eq!(linear(first, count), all[first * 37..(first + count) * 37], "{count} rows from {first}");
        }
    }
}

#[test]
fn what_is_made_of_rows_and_what_is_added_is_as_beside_other_weights() {
    let mut rng = rng(5);
    let packed = pack(&weight(&mut rng, WeightFormat::F16, 20, 50));
    // A slice of something wider, as a fused projection gives it.
    let x = random(&mut rng, &[4, 80]).narrow(1, 10, 50).unwrap();
    let (norm, bias, onto) = (random(&mut rng, &[50]), random(&mut rng, &[20]), random(&mut rng, &[4, 20]));
    let extras = Extras { bias: Some(&bias), onto: Some(&onto), ..Extras::default() };
    let normed = Inputs::Normed { x: &x, weight: &norm, eps: 1e-6 };
    let apart = rms_norm(&x, &norm, 1e-6).unwrap();
    let plain = portable::linear(&apart, of(&packed), None, None).unwrap();
    let want = (plain.broadcast_add(&bias).unwrap() + &onto).unwrap();
    assert_eq!(bits(&linear(normed, &packed, extras).unwrap()), bits(&want));
}

#[test]
fn weights_are_stacked_and_filled_up() {
    let mut rng = rng(6);
    let parts = [30, 7].map(|outputs| weight(&mut rng, WeightFormat::F32, outputs, 50));
    let stacked = PackedWeight::pack_rows(&parts.each_ref(), WeightFormat::Fp8, &Device::Cpu).unwrap();
    assert_eq!((stacked.format(), stacked.out_features(), stacked.in_features()), (WeightFormat::Fp8, 37, 50));
    let x = random(&mut rng, &[3, 50]);
    let linear = |packed: &PackedWeight| linear(Inputs::Rows(&x), packed, Extras::default()).unwrap();
    let apart = parts.each_ref().map(|part| linear(&pack(part)));
    assert_eq!(bits(&linear(&stacked)), bits(&Tensor::cat(&apart, 1).unwrap()));

    assert_eq!(of(&stacked).numbers.dims(), [48, 64]);
    assert_eq!(stacked.bytes(), 48 * 64 + 37 * 4);
    assert_eq!([0, 1, 16, 17].map(filled), [16, 16, 16, 32]);
    let whole = pack(&weight(&mut rng, WeightFormat::F32, 32, 50));
    assert_eq!(WeightFormat::Fp8.matrix_bytes(32, 50), Some(whole.bytes()));
    assert_eq!(WeightFormat::Fp8.matrix_bytes(usize::MAX, 50), None);
}

#[test]
fn what_cannot_be_is_refused_with_the_reason() {
    let error = check_fp8(&Device::Cpu).unwrap_err();
    assert_eq!(error.code, Code::FailedPrecondition);
    assert!(error.message.contains("8.9 or later") && error.message.contains("q8_0"), "{error}");
    for capability in [(8, 0), (8, 6), (7, 5)] {
        let error = check_card("NVIDIA A100", capability).unwrap_err();
        assert_eq!(error.code, Code::FailedPrecondition);
        let says = format!("NVIDIA A100 has compute capability {}.{}", capability.0, capability.1);
        assert!(error.message.starts_with(&says) && error.message.contains("8.9 or later"), "{error}");
    }
    for capability in [(8, 9), (9, 0), (10, 0), (12, 0)] {
        check_card("a later one", capability).unwrap();
    }
    let blocks = weight(&mut rng(7), WeightFormat::Q8_0, 4, 64);
    let error = PackedWeight::pack(&blocks, WeightFormat::Fp8, &Device::Cpu).err().unwrap();
    assert!(error.message.contains("quantized once"), "{error}");
    let plain = weight(&mut rng(7), WeightFormat::F32, 4, 64);
    assert_eq!(pack(&plain).row(1).unwrap_err().code, Code::Internal);
    assert_eq!(plain.converted(WeightFormat::Fp8).unwrap_err().code, Code::Internal);
}
