//! Linear against its reference and candle's own readers, and its invariance.

use std::borrow::Cow;

use candle_core::{
    DType, Device,
    quantized::{QStorage, QTensor},
};
use rand::{RngExt, rngs::StdRng};

use super::{
    format::{RawTensor, WeightFormat},
    quantize::ggml_dtype,
    *,
};
use crate::{
    error::Code,
    ids::TokenId,
    kernels::{
        activation::{Activation, Gate},
        test_data::{assert_close, assert_tensors_close, bits, floats, on_threads, random, rng, values},
    },
};

const FORMATS: [WeightFormat; 8] = WeightFormat::ALL;

fn with_bias(bias: &Tensor) -> Extras<'_> {
    Extras { bias: Some(bias), ..Extras::default() }
}

/// A weight as a file has it: any bits, but for scales, which are small.
pub(super) fn weight(rng: &mut StdRng, format: WeightFormat, outputs: usize, inputs: usize) -> RawTensor<'static> {
    let small = |rng: &mut StdRng| half::f16::from_f32(rng.random_range(-0.01..0.01)).to_le_bytes();
    let scales_at: &[usize] = match format {
        WeightFormat::F32 | WeightFormat::F16 | WeightFormat::BF16 | WeightFormat::Fp8 => &[],
        WeightFormat::Q4_0 | WeightFormat::Q8_0 => &[0],
        WeightFormat::Q4K | WeightFormat::Q5K => &[0, 2],
        WeightFormat::Q6K => &[208],
    };
    let mut bytes = Vec::new();
    for _ in 0..outputs * inputs / format.block_len() {
        match format {
            WeightFormat::F32 => bytes.extend(floats(rng, 1)[0].to_le_bytes()),
            WeightFormat::F16 => bytes.extend(half::f16::from_f32(floats(rng, 1)[0]).to_le_bytes()),
            WeightFormat::BF16 => bytes.extend(half::bf16::from_f32(floats(rng, 1)[0]).to_le_bytes()),
            _ => {
                let mut block: Vec<u8> = (0..format.block_bytes()).map(|_| rng.random()).collect();
                for &at in scales_at {
                    block[at..at + 2].copy_from_slice(&small(rng));
                }
                bytes.extend(block);
            }
        }
    }
    RawTensor { format: format.into(), shape: vec![outputs, inputs], bytes: Cow::Owned(bytes) }
}

/// The weights by candle's reading of the same bytes.
fn dequantized(raw: &RawTensor<'_>) -> Vec<f32> {
    let storage = QStorage::from_data(Cow::Borrowed(&raw.bytes), &Device::Cpu, ggml_dtype(raw.format.kept())).unwrap();
    values(&QTensor::new(storage, raw.shape.clone()).unwrap().dequantize(&Device::Cpu).unwrap())
}

pub(super) fn pack(raw: &RawTensor<'_>) -> PackedWeight {
    PackedWeight::pack(raw, raw.format.kept(), &Device::Cpu).unwrap()
}

/// Inputs a format can have that is no multiple of anything but its block, and more than one chunk of steps.
fn odd_inputs(format: WeightFormat) -> usize {
    match format.block_len() {
        1 => 651,
        32 => 32 * 21,
        len => len * 3,
    }
}

/// The inputs that the format's arithmetic multiplies.
fn rounded_inputs(format: WeightFormat, x: &[f32], inputs: usize) -> Vec<f32> {
    match format {
        WeightFormat::F32 => x.to_vec(),
        WeightFormat::F16 | WeightFormat::BF16 => x.iter().map(|&x| half::bf16::from_f32(x).to_f32()).collect(),
        _ => x.chunks(inputs).flat_map(|row| row.chunks(256).flat_map(bytes_with_a_scale)).collect(),
    }
}

/// The nearest multiples of a 127th of the largest.
fn bytes_with_a_scale(x: &[f32]) -> Vec<f32> {
    let largest = x.iter().fold(0f32, |largest, x| largest.max(x.abs()));
    let (scale, inverse) = (largest / 127.0, 127.0 / largest);
    x.iter().map(|x| (f64::from(*x) * f64::from(inverse)).round_ties_even() as f32 * scale).collect()
}

/// The weights that the format's arithmetic multiplies.
fn rounded_weights(packed: &PackedWeight) -> Vec<f32> {
    let weights = all_rows(packed);
    if packed.format().is_float() { rounded_inputs(packed.format(), &weights, packed.in_features()) } else { weights }
}

/// All rows of a weight.
fn all_rows(packed: &PackedWeight) -> Vec<f32> {
    let ids: Vec<TokenId> = (0..packed.out_features() as u32).map(TokenId).collect();
    values(&packed.gather_rows(&ids).unwrap())
}

/// Asserts that weights are those of a file, but for a half of a part of the largest scale of a superblock.
fn assert_same_weights(format: WeightFormat, got: &[f32], want: &[f32], inputs: usize) {
    let parts = match format {
        WeightFormat::Q8_0 => 255.0,
        WeightFormat::Q4_0 => 4095.0,
        _ => return assert_eq!(got, want, "{format}"),
    };
    let mut differ = 0;
    for (got, want) in got.chunks(inputs).zip(want.chunks(inputs)).flat_map(|(a, b)| a.chunks(256).zip(b.chunks(256))) {
        // Half a unit times the largest integer, which the largest weight has at least half of; a unit is rounded up.
        let largest = want.iter().fold(0f32, |largest, w| largest.max(w.abs()));
        for (got, want) in got.iter().zip(want) {
            assert!((got - want).abs() <= 2.0 * 1.01 * largest / (2.0 * parts), "{format}: {got} for {want}");
            differ += usize::from(got != want);
        }
    }
    assert!(differ > 0, "{format}: nothing was rounded");
}

#[test]
fn every_row_is_what_candle_reads_from_the_same_bytes() {
    let mut rng = rng(1);
    for format in FORMATS {
        let inputs = odd_inputs(format);
        let raw = weight(&mut rng, format, 37, inputs);
        let packed = pack(&raw);
        let want = dequantized(&raw);
        let ids: Vec<TokenId> = (0..37).map(TokenId).collect();
        assert_same_weights(format, &values(&packed.gather_rows(&ids).unwrap()), &want, inputs);
        assert_same_weights(format, &values(&packed.row(36).unwrap()), &want[36 * inputs..], inputs);
        for target in [WeightFormat::F32, WeightFormat::BF16, WeightFormat::F16] {
            let packed = PackedWeight::pack(&raw, target, &Device::Cpu).unwrap();
            assert_eq!(packed.format(), target);
            let dtype = if target == WeightFormat::F16 { DType::F16 } else { DType::BF16 };
            let mut want = candle_core::Tensor::from_vec(want.clone(), (37, inputs), &Device::Cpu).unwrap();
            if target != WeightFormat::F32 {
                want = want.to_dtype(dtype).unwrap().to_dtype(DType::F32).unwrap();
            }
            assert_eq!(values(&packed.gather_rows(&ids).unwrap()), values(&want), "{format} as {target}");
        }
    }
}

#[test]
fn it_is_the_reference_for_every_format_and_ragged_shape() {
    let mut rng = rng(2);
    for format in FORMATS {
        for outputs in [1, 16, 37, 150] {
            let inputs = odd_inputs(format);
            let raw = weight(&mut rng, format, outputs, inputs);
            let packed = pack(&raw);
            let w = rounded_weights(&packed);
            assert_eq!((packed.out_features(), packed.in_features()), (outputs, inputs));
            assert!(packed.bytes() >= raw.bytes.len());
            for m in [1, 2, 5, 13, 32, 67] {
                let (x, bias) = (random(&mut rng, &[m, inputs]), random(&mut rng, &[outputs]));
                let y = linear(Inputs::Rows(&x), &packed, with_bias(&bias)).unwrap();
                assert_eq!(y.dims(), [m, outputs]);
                let x_rounded = rounded_inputs(format, &values(&x), inputs);
                let want = reference::linear(&x_rounded, &w, Some(&values(&bias)), inputs);
                assert_close(&values(&y), &want, 2e-5);
                let plain = linear(Inputs::Rows(&x), &packed, Extras::default()).unwrap();
                let want = reference::linear(&x_rounded, &w, None, inputs);
                assert_close(&values(&plain), &want, 2e-5);
            }
        }
    }
}

#[test]
fn a_row_has_the_same_bits_alone_and_in_any_batch_on_every_instruction_set() {
    let mut rng = rng(3);
    for format in FORMATS {
        let inputs = odd_inputs(format);
        let packed = pack(&weight(&mut rng, format, 200, inputs));
        let (x, bias) = (random(&mut rng, &[70, inputs]), random(&mut rng, &[200]));
        let all = linear(Inputs::Rows(&x), &packed, with_bias(&bias)).unwrap();
        let want = |range: std::ops::Range<usize>| bits(&all.narrow(0, range.start, range.len()).unwrap());
        for level in Level::tested() {
            for chunk in [1, 2, 3, 7, 12, 16, 24, 33, 70] {
                for start in (0..70).step_by(chunk) {
                    let range = start..70.min(start + chunk);
                    let part = x.narrow(0, range.start, range.len()).unwrap();
                    let y = linear_at(level, Inputs::Rows(&part), &packed, with_bias(&bias)).unwrap();
                    assert_eq!(bits(&y), want(range.clone()), "{format}, rows {range:?}, {level:?}");
                }
            }
        }
        for threads in [1, 2, 3] {
            let again = on_threads(threads, || linear(Inputs::Rows(&x), &packed, with_bias(&bias)).unwrap());
            assert_eq!(bits(&again), want(0..70), "{format}, {threads} threads");
            let one = on_threads(threads, || {
                linear(Inputs::Rows(&x.narrow(0, 7, 1).unwrap()), &packed, with_bias(&bias)).unwrap()
            });
            assert_eq!(bits(&one), want(7..8), "{format}, {threads} threads");
        }
    }
}

#[test]
fn inputs_in_two_terms_lose_nothing_that_a_float_has_room_for() {
    let mut rng = rng(10);
    for format in FORMATS.into_iter().filter(|format| format.is_float()) {
        let inputs = odd_inputs(format);
        let raw = weight(&mut rng, format, 37, inputs);
        let packed = pack(&raw);
        let w = rounded_weights(&packed);
        let (x, bias) = (random(&mut rng, &[19, inputs]), random(&mut rng, &[37]));
        let extras = Extras { terms: Terms::Two, ..with_bias(&bias) };
        let all = linear(Inputs::Rows(&x), &packed, extras).unwrap();
        let want = reference::linear(&values(&x), &w, Some(&values(&bias)), inputs);
        assert_close(&values(&all), &want, 2e-5);
        for level in Level::tested() {
            for row in [0, 7, 18] {
                let alone = x.narrow(0, row, 1).unwrap();
                let alone = linear_at(level, Inputs::Rows(&alone), &packed, extras).unwrap();
                assert_eq!(bits(&alone), bits(&all.narrow(0, row, 1).unwrap()), "{format}, row {row}, {level:?}");
            }
        }
    }
}

#[test]
fn rows_of_several_blocks_have_the_bits_of_rows_of_one() {
    let mut rng = rng(11);
    // Sums of 512 rows are put aside at the most.
    let (rows, inputs) = (1030, 256);
    for format in FORMATS {
        let packed = pack(&weight(&mut rng, format, 40, inputs));
        let x = random(&mut rng, &[rows, inputs]);
        let all = linear_at(Level::tested()[0], Inputs::Rows(&x), &packed, Extras::default()).unwrap();
        for level in Level::tested() {
            let y = linear_at(level, Inputs::Rows(&x), &packed, Extras::default()).unwrap();
            assert!(bits(&y) == bits(&all), "{format}, {level:?}");
            for start in [0, 511, 1029] {
                let one = linear_at(level, Inputs::Rows(&x.narrow(0, start, 1).unwrap()), &packed, Extras::default());
                assert_eq!(
                    bits(&one.unwrap()),
                    bits(&y.narrow(0, start, 1).unwrap()),
                    "{format}, row {start}, {level:?}"
                );
            }
        }
    }
}

#[test]
fn what_is_no_number_is_none_in_its_own_row_and_nowhere_else() {
    let mut rng = rng(12);
    // A quiet one, one whose rounding would carry into the sign, one that has no high bits, and infinities.
    let poisons = [0x7fc0_0000, 0x7fff_ffff, 0xffff_ffff, 0x7f80_0001, 0x7f80_0000, 0xff80_0000].map(f32::from_bits);
    for format in FORMATS.into_iter().filter(|format| format.is_float()) {
        let inputs = odd_inputs(format);
        let packed = pack(&weight(&mut rng, format, 37, inputs));
        let clean = values(&random(&mut rng, &[6, inputs]));
        for (terms, level) in
            Level::tested().into_iter().flat_map(|level| [Terms::One, Terms::Two].map(|terms| (terms, level)))
        {
            let of = |x: &[f32]| {
                let x = Tensor::from_slice(x, (6, inputs), &Device::Cpu).unwrap();
                let y = linear_at(level, Inputs::Rows(&x), &packed, Extras { terms, ..Extras::default() }).unwrap();
                y.to_vec2::<f32>().unwrap()
            };
            let want = of(&clean);
            for (poison, place) in
                poisons.into_iter().flat_map(|poison| [0, 330, inputs - 1].map(|place| (poison, place)))
            {
                let mut x = clean.clone();
                x[2 * inputs + place] = poison;
                let mut got = of(&x);
                let row = std::mem::replace(&mut got[2], want[2].clone());
                let is_lost = |y: &f32| if poison.is_nan() { y.is_nan() } else { !y.is_finite() };
                assert!(row.iter().all(is_lost), "{format}, {terms:?}, {level:?}, {:x} at {place}", poison.to_bits());
                assert_eq!(got, want, "{format}, {terms:?}, {level:?}");
            }
        }
    }
}

#[test]
fn what_is_made_of_rows_on_the_way_is_what_operations_of_their_own_make() {
    let mut rng = rng(13);
    for (format, rows) in FORMATS.into_iter().flat_map(|format| [1, 20, 40].map(|rows| (format, rows))) {
        let inputs = odd_inputs(format);
        let packed = pack(&weight(&mut rng, format, 37, inputs));
        let [x, onto] = [inputs, 37].map(|width| random(&mut rng, &[rows, width]));
        let (both, norm) = (random(&mut rng, &[rows, 2 * inputs]), random(&mut rng, &[inputs]));
        let bias = random(&mut rng, &[37]);
        let normed = crate::kernels::rms_norm::rms_norm(&x, &norm, 1e-6).unwrap();
        let silu = Gate::Of(Activation::Silu);
        let gated = crate::kernels::activation::gated(&both, silu).unwrap();
        let layer_normed = crate::kernels::layer_norm::layer_norm(&x, &norm, Some(&norm), 1e-6).unwrap();
        let relu = crate::kernels::activation::activated(&x, Activation::Relu).unwrap();
        let made = [
            (Inputs::Normed { x: &x, weight: &norm, eps: 1e-6 }, &normed),
            (Inputs::LayerNormed { x: &x, weight: &norm, bias: Some(&norm), eps: 1e-6 }, &layer_normed),
            (Inputs::Gated(&both, silu), &gated),
            (Inputs::Activated(&x, Activation::Relu), &relu),
        ];
        for level in Level::tested() {
            for (fused, apart) in made {
                let want = linear_at(level, Inputs::Rows(apart), &packed, with_bias(&bias)).unwrap();
                let extras = Extras { onto: Some(&onto), ..with_bias(&bias) };
                let got = linear_at(level, fused, &packed, extras).unwrap();
                assert_eq!(bits(&got), bits(&(want + &onto).unwrap()), "{format}, {rows} rows, {level:?}");
            }
        }
    }
}

#[test]
fn stacked_weights_give_what_each_gives_by_itself() {
    let mut rng = rng(4);
    for format in FORMATS {
        let inputs = odd_inputs(format);
        let parts = [40, 7, 19].map(|outputs| weight(&mut rng, format, outputs, inputs));
        let stacked = PackedWeight::pack_rows(&parts.each_ref(), format, &Device::Cpu).unwrap();
        let x = random(&mut rng, &[3, inputs]);
        let all = linear(Inputs::Rows(&x), &stacked, Extras::default()).unwrap();
        let mut start = 0;
        for part in &parts {
            let alone = linear(Inputs::Rows(&x), &pack(part), Extras::default()).unwrap();
            assert_eq!(bits(&all.narrow(1, start, part.shape[0]).unwrap().contiguous().unwrap()), bits(&alone));
            start += part.shape[0];
        }
        assert_eq!(all.dims(), [3, start]);
    }
}

#[test]
fn the_portable_form_agrees() {
    let mut rng = rng(5);
    for format in FORMATS {
        let inputs = odd_inputs(format);
        let raw = weight(&mut rng, format, 37, inputs);
        let packed = pack(&raw);
        let on_device = weight::on_device_for_tests(&[&raw]);
        let (x, bias, onto) = (random(&mut rng, &[5, inputs]), random(&mut rng, &[37]), random(&mut rng, &[5, 37]));
        let extras = Extras { bias: Some(&bias), onto: Some(&onto), ..Extras::default() };
        let want = linear(Inputs::Rows(&x), &packed, extras).unwrap();
        // Ours are products of bfloat16 or bytes, the portable ones float32, the weight's own or of other bytes.
        let tolerance = if format == WeightFormat::F32 { 1e-5 } else { 2e-2 };
        assert_tensors_close(&on_device.linear(&x, Some(&bias), Some(&onto)).unwrap(), &want, tolerance);
        let ids = [TokenId(36), TokenId(0), TokenId(36)];
        let placed = on_device.ids_beside(&ids).unwrap();
        let (rows, packed_rows) = (on_device.gather_rows(&placed).unwrap(), packed.gather_rows(&ids).unwrap());
        assert_same_weights(format, &values(&packed_rows), &values(&rows), inputs);
        assert_eq!(bits(&packed.gather_placed_rows(&placed).unwrap()), bits(&packed_rows));
        assert_eq!(on_device.bytes(), raw.bytes.len(), "it takes what the file takes");
    }
}

#[test]
fn the_portable_form_stacks_parts_and_takes_blocks_of_any_alignment() {
    let mut rng = rng(7);
    for format in FORMATS {
        let inputs = odd_inputs(format);
        let (first, second) = (weight(&mut rng, format, 3, inputs), weight(&mut rng, format, 5, inputs));
        // One byte past where an allocation begins.
        let shifted: Vec<u8> = [&[0], first.bytes.as_ref()].concat();
        let first = RawTensor { bytes: shifted[1..].into(), ..first };
        let ids = [TokenId(7), TokenId(2), TokenId(3)];
        let rows = |parts: &[&RawTensor<'_>], ids: &[TokenId]| {
            let weight = weight::on_device_for_tests(parts);
            weight.gather_rows(&weight.ids_beside(ids).unwrap()).unwrap()
        };
        let stacked = rows(&[&first, &second], &ids);
        assert_eq!(bits(&stacked.narrow(0, 1, 1).unwrap()), bits(&rows(&[&first], &[TokenId(2)])));
        let others = rows(&[&second], &[TokenId(4), TokenId(0)]);
        assert_eq!(bits(&stacked.narrow(0, 0, 1).unwrap()), bits(&others.narrow(0, 0, 1).unwrap()), "{format}");
        assert_eq!(bits(&stacked.narrow(0, 2, 1).unwrap()), bits(&others.narrow(0, 1, 1).unwrap()), "{format}");
    }
}

#[test]
fn an_empty_batch_gives_nothing() {
    let packed = pack(&weight(&mut rng(6), WeightFormat::F32, 20, 10));
    let x = random(&mut rng(6), &[0, 10]);
    assert_eq!(linear(Inputs::Rows(&x), &packed, Extras::default()).unwrap().dims(), [0, 20]);
}

#[test]
fn weights_that_cannot_be_packed_are_refused_with_the_reason() {
    let mut rng = rng(8);
    let good = weight(&mut rng, WeightFormat::Q8_0, 4, 64);
    let with = |shape: &[usize], bytes: usize| RawTensor {
        format: WeightFormat::Q8_0.into(),
        shape: shape.to_vec(),
        bytes: Cow::Owned(vec![0; bytes]),
    };
    let pack = |raw: &RawTensor<'_>, format| PackedWeight::pack(raw, format, &Device::Cpu).err().unwrap();
    for (error, message) in [
        (pack(&with(&[4, 40], 4 * 34), WeightFormat::Q8_0), "40 inputs"),
        (pack(&with(&[4], 4 * 34), WeightFormat::Q8_0), "[out, in]"),
        (pack(&with(&[4, 32], 4 * 34 - 1), WeightFormat::Q8_0), "135 bytes"),
        (pack(&with(&[usize::MAX, 32], 34), WeightFormat::Q8_0), "34 bytes"),
        (pack(&good, WeightFormat::Q4_0), "quantized once"),
        (pack(&weight(&mut rng, WeightFormat::BF16, 3, 96), WeightFormat::Q4K), "blocks of 256"),
        (PackedWeight::pack_rows(&[], WeightFormat::F32, &Device::Cpu).err().unwrap(), "no weight"),
    ] {
        assert_eq!(error.code, Code::FailedPrecondition);
        assert!(error.message.contains(message), "{error}");
    }
    let narrow = weight(&mut rng, WeightFormat::Q8_0, 4, 32);
    assert!(PackedWeight::pack_rows(&[&good, &narrow], WeightFormat::Q8_0, &Device::Cpu).is_err());
}

#[test]
fn inputs_that_do_not_fit_are_refused() {
    let packed = pack(&weight(&mut rng(9), WeightFormat::F32, 4, 10));
    let x = random(&mut rng(9), &[2, 11]);
    assert!(linear(Inputs::Rows(&x), &packed, Extras::default()).unwrap_err().message.contains("[2, 11]"));
    let x = random(&mut rng(9), &[2, 10]);
    assert!(
        linear(Inputs::Rows(&x), &packed, with_bias(&random(&mut rng(9), &[5]))).unwrap_err().message.contains("[5]")
    );
    let narrow = random(&mut rng(9), &[9]);
    let normed = Inputs::Normed { x: &x, weight: &narrow, eps: 1e-6 };
    assert!(linear(normed, &packed, Extras::default()).unwrap_err().message.contains("its norm [9]"));
    assert!(
        linear(Inputs::Gated(&x, Gate::Of(Activation::Silu)), &packed, Extras::default())
            .unwrap_err()
            .message
            .contains("[2, 5]")
    );
    let extras = Extras { onto: Some(&x), ..Extras::default() };
    assert!(linear(Inputs::Rows(&x), &packed, extras).unwrap_err().message.contains("must be [2, 4]"));
    assert!(packed.gather_rows(&[TokenId(4)]).unwrap_err().message.contains("token 4"));
}

#[test]
fn weights_quantized_at_load_are_those_of_a_file_that_was_quantized_before() {
    let mut rng = rng(12);
    let raw = weight(&mut rng, WeightFormat::F32, 21, 512);
    let plain = Tensor::from_vec(dequantized(&raw), (21, 512), &Device::Cpu).unwrap();
    let ids: Vec<TokenId> = (0..21).map(TokenId).collect();
    for format in FORMATS.into_iter().filter(|format| !format.is_float()) {
        let packed = PackedWeight::pack(&raw, format, &Device::Cpu).unwrap();
        assert_eq!(packed.format(), format);
        let before = QTensor::quantize(&plain, ggml_dtype(format)).unwrap().dequantize(&Device::Cpu).unwrap();
        assert_same_weights(format, &values(&packed.gather_rows(&ids).unwrap()), &values(&before), 512);
        // Few bits or many, it is still the same matrix.
        let error = values(&before).iter().zip(values(&plain)).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(error > 0.0 && error < 0.2, "{format}: {error}");
    }
}
