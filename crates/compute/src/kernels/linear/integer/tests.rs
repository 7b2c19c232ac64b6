//! Products of bytes: the same bits everywhere, at the ends of their ranges and where inputs are no numbers.

use std::borrow::Cow;

use candle_core::{Device, Tensor};

use super::super::{
    Extras, Inputs, PackedWeight,
    format::{RawTensor, WeightFormat},
    linear_at,
    tests::{pack, weight},
};
use crate::kernels::{
    simd::Level,
    test_data::{bits, floats, random, rng, tensor, values},
};

fn quantized() -> impl Iterator<Item = WeightFormat> {
    WeightFormat::ALL.into_iter().filter(|format| !format.is_float())
}

/// Rows `first..first + count` by themselves.
fn some(level: Level, x: &Tensor, weight: &PackedWeight, first: usize, count: usize) -> Vec<u32> {
    let x = x.narrow(0, first, count).unwrap();
    bits(&linear_at(level, Inputs::Rows(&x), weight, Extras::default()).unwrap())
}

#[test]
fn a_row_has_the_same_bits_among_1_7_32_and_512() {
    let mut rng = rng(21);
    for format in quantized() {
        // More steps than are unpacked at once, and panels that fill no group.
        let packed = pack(&weight(&mut rng, format, 70, 768));
        let x = random(&mut rng, &[512, 768]);
        let all = some(Level::best(), &x, &packed, 0, 512);
        for level in Level::tested() {
            for (first, count) in [(0, 1), (511, 1), (100, 7), (3, 32), (480, 32)] {
                let got = some(level, &x, &packed, first, count);
                assert_eq!(got, all[first * 70..(first + count) * 70], "{format}, {level:?}, {count} rows");
            }
        }
    }
}

#[test]
fn a_row_has_the_same_bits_in_every_block_of_rows() {
    let mut rng = rng(25);
    for format in quantized() {
        // More rows than are taken over a superblock at once, and more pairs of panels than are written together.
        let packed = pack(&weight(&mut rng, format, 150, 256));
        let x = random(&mut rng, &[1030, 256]);
        for level in Level::tested() {
            let all = some(level, &x, &packed, 0, 1030);
            for first in [0, 500, 510, 1023] {
                let got = some(Level::best(), &x, &packed, first, 7);
                assert_eq!(got, all[first * 150..(first + 7) * 150], "{format}, {level:?}, rows from {first}");
            }
        }
    }
}

#[test]
fn a_row_that_is_not_all_numbers_gives_none_and_leaves_the_others_alone() {
    let mut rng = rng(22);
    for format in quantized() {
        let packed = pack(&weight(&mut rng, format, 20, 512));
        let clean = floats(&mut rng, 40 * 512);
        for (poison, level) in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY]
            .into_iter()
            .flat_map(|poison| Level::tested().into_iter().map(move |level| (poison, level)))
        {
            for rows in [3, 40] {
                let mut x = clean[..rows * 512].to_vec();
                x[512 + 300] = poison;
                let extras = Extras::default();
                let y = linear_at(level, Inputs::Rows(&tensor(x, &[rows, 512])), &packed, extras).unwrap();
                let want = tensor(clean[..rows * 512].to_vec(), &[rows, 512]);
                let want = linear_at(level, Inputs::Rows(&want), &packed, extras).unwrap();
                for row in 0..rows {
                    let (got, want) = (y.narrow(0, row, 1).unwrap(), want.narrow(0, row, 1).unwrap());
                    if row == 1 {
                        assert!(values(&got).iter().all(|y| y.is_nan()), "{format}, {level:?}");
                    } else {
                        assert_eq!(bits(&got), bits(&want), "{format}, row {row}, {level:?}");
                    }
                }
            }
        }
    }
}

#[test]
fn the_largest_integers_do_not_saturate() {
    // A scale of one and the largest magnitudes of either sign, with inputs that are all the largest.
    for (quant, sign) in [(-128i8, 1.0), (-128, -1.0), (127, 1.0), (127, -1.0)] {
        let block = [0x00, 0x3c].into_iter().chain([quant as u8; 32]).collect::<Vec<_>>();
        let raw = RawTensor {
            format: WeightFormat::Q8_0.into(),
            shape: vec![16, 512],
            bytes: Cow::Owned(block.repeat(16 * 16)),
        };
        let packed = PackedWeight::pack(&raw, WeightFormat::Q8_0, &Device::Cpu).unwrap();
        for (level, rows) in Level::tested().into_iter().flat_map(|level| [(level, 1), (level, 20)]) {
            let x = tensor(vec![127.0 * sign; rows * 512], &[rows, 512]);
            let y = linear_at(level, Inputs::Rows(&x), &packed, Extras::default()).unwrap();
            // The scale of one is a multiple of its unit, but for a rounding.
            let want = values(&packed.row(0).unwrap())[0] * 127.0 * sign * 512.0;
            assert!((want / (f32::from(quant) * 127.0 * sign * 512.0) - 1.0).abs() < 0.003);
            let near = |y: f32| (y / want - 1.0).abs() < 1e-6;
            assert!(values(&y).into_iter().all(near), "{quant}, {level:?}: {:?} for {want}", values(&y));
        }
    }
}

#[test]
fn zeros_and_inputs_next_to_them_give_zeros() {
    let mut rng = rng(23);
    for format in quantized() {
        let packed = pack(&weight(&mut rng, format, 20, 256));
        for level in Level::tested() {
            for (x, rows) in [0.0, 1e-40, -1e-30].into_iter().flat_map(|x| [(x, 1), (x, 20)]) {
                let x = tensor(vec![x; rows * 256], &[rows, 256]);
                let y = linear_at(level, Inputs::Rows(&x), &packed, Extras::default()).unwrap();
                assert!(bits(&y).iter().all(|&y| y == 0), "{format}, {level:?}: {:?}", values(&y));
            }
        }
    }
}

#[test]
fn a_weight_of_no_inputs_gives_zeros() {
    for format in quantized() {
        let raw = RawTensor { format: format.into(), shape: vec![20, 0], bytes: Cow::Borrowed(&[]) };
        let packed = PackedWeight::pack(&raw, format, &Device::Cpu).unwrap();
        for (level, rows) in Level::tested().into_iter().flat_map(|level| [(level, 1), (level, 20)]) {
            let x = tensor(Vec::new(), &[rows, 0]);
            let y = linear_at(level, Inputs::Rows(&x), &packed, Extras::default()).unwrap();
            assert_eq!(bits(&y), vec![0; rows * 20], "{format}, {level:?}, {rows} rows");
        }
    }
}

#[test]
fn a_weight_takes_next_to_nothing_more_than_in_its_file() {
    let mut rng = rng(24);
    for format in quantized() {
        let raw = weight(&mut rng, format, 128, 512);
        let bytes = pack(&raw).bytes();
        assert!(bytes * 100 <= raw.bytes.len() * 103, "{format}: {bytes} for {}", raw.bytes.len());
    }
}
