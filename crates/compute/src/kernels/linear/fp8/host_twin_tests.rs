//! The kernels around a product of eight-bit floats, as host C++, with the launches that a card gets.

use candle_core::{Device, Tensor};
use float8::F8E4M3;

use super::{
    filled,
    launches::{Quantize, Rescale, rows_of_products},
    portable,
    tests::{of, pack, quantized, rows},
};
use crate::kernels::{
    cuda::{
        Call,
        host_twin::{Order, Output, Twin, address},
    },
    linear::{format::WeightFormat, tests::weight},
    test_data::{bits, floats, rng, values},
};

static TWIN: Twin = Twin::of("linear");

/// As a card would run it, and with fewer blocks than there is work.
fn launches<const N: usize>(call: Call<N>) -> [Call<N>; 2] {
    let mut fewer = call;
    fewer.launch.grid = [2, 1, 1];
    [call, fewer]
}

/// The bytes and the scales of rows that lie `stride` apart, filled up to so many.
fn quantize(x: &[f32], stride: usize, width: usize, filled_rows: usize) -> (Vec<u8>, Vec<f32>) {
    let rows = x.len() / stride;
    let run = |order: Order, which: usize| {
        let mut numbers = Output::unwritten(filled_rows * filled(width), 0xa5u8);
        let mut scales = Output::unwritten(rows, -7.0f32);
        let (at, scales_at) = (numbers.address(), scales.address());
        let quantize = Quantize { x: address(x), stride, numbers: at, scales: scales_at, rows, width, filled_rows };
        // SAFETY: the addresses are of buffers of these sizes.
        unsafe { TWIN.run(&launches(quantize.call())[which], order) };
        (numbers.written().to_vec(), scales.written().to_vec())
    };
    let want = run(Order::Forward, 0);
    for (order, which) in [(Order::Reversed, 0), (Order::Forward, 1), (Order::Reversed, 1)] {
        let (numbers, scales) = run(order, which);
        assert_eq!(numbers, want.0, "{order:?} {which}");
        assert_eq!(scales, want.1, "{order:?} {which}");
    }
    want
}

/// A NaN of either sign is one.
fn without_signs_of_nan(numbers: &[u8]) -> Vec<u8> {
    numbers.iter().map(|&number| if number & 0x7f == 0x7f { 0x7f } else { number }).collect()
}

#[test]
fn rows_get_the_bytes_and_scales_of_the_reference_and_what_fills_up_is_zeros() {
    if !TWIN.exists() {
        return;
    }
    let mut kinds = rows();
    kinds.extend([vec![1.0, f32::NAN, -3.0], vec![1.0, f32::INFINITY, 0.0], vec![f32::NAN; 5]]);
    for row in &kinds {
        let (numbers, scales) = quantize(row, row.len(), row.len(), 3);
        let (want, scale) = quantized(row);
        assert_eq!(scales, [scale], "{row:?}");
        assert_eq!(without_signs_of_nan(&numbers[..row.len()]), without_signs_of_nan(&want), "{row:?}");
        assert!(numbers[row.len()..].iter().all(|&number| number == 0), "{row:?}");
    }
    let mut rng = rng(11);
    for (rows, width, stride) in [(1, 1, 1), (5, 100, 103), (16, 16, 40), (7, 129, 129), (2, 5000, 5001)] {
        let x = floats(&mut rng, rows * stride);
        let (filled_rows, _) = rows_of_products(rows, None);
        let (numbers, scales) = quantize(&x, stride, width, filled_rows);
        for row in 0..filled_rows {
            let (own, rest) = numbers[row * filled(width)..][..filled(width)].split_at(width);
            assert!(rest.iter().all(|&number| number == 0), "[{rows}, {width}], row {row}");
            if row < rows {
                let (want, scale) = quantized(&x[row * stride..][..width]);
                assert_eq!((own, scales[row]), (want.as_slice(), scale), "[{rows}, {width}], row {row}");
            } else {
                assert!(own.iter().all(|&number| number == 0), "[{rows}, {width}], row {row}");
            }
        }
    }
}

/// Sums `[rows, filled(width)]` that became results, apart from the sums or in their place.
fn rescale(
    sums: &[f32],
    (row_scales, scales): (&[f32], &[f32]),
    bias: Option<&[f32]>,
    (onto, onto_stride): (Option<&[f32]>, usize),
    in_place: bool,
) -> Vec<f32> {
    let (rows, width) = (row_scales.len(), scales.len());
    let run = |order: Order, which: usize| {
        let mut sums = Output::of(sums, -7.0f32);
        let mut out = Output::unwritten(rows * width, -9.0f32);
        let sums_at = sums.address();
        let rescale = Rescale {
            sums: sums_at,
            row_scales: address(row_scales),
            scales: address(scales),
            bias: bias.map_or(0, address),
            onto: onto.map_or(0, address),
            onto_stride,
            out: if in_place { sums_at } else { out.address() },
            rows,
            width,
        };
        // SAFETY: the addresses are of buffers of these sizes.
        unsafe { TWIN.run(&launches(rescale.call())[which], order) };
        if in_place { sums.written()[..rows * width].to_vec() } else { out.written().to_vec() }
    };
    let want = run(Order::Forward, 0);
    for (order, which) in [(Order::Reversed, 0), (Order::Forward, 1), (Order::Reversed, 1)] {
        assert_eq!(run(order, which), want, "{order:?} {which}");
    }
    want
}

#[test]
fn sums_are_multiplied_by_both_scales_and_then_added_to() {
    if !TWIN.exists() {
        return;
    }
    let mut rng = rng(12);
    for (rows, width) in [(1usize, 1), (3, 16), (5, 70), (2, 2500)] {
        let sums = floats(&mut rng, rows.next_multiple_of(16) * filled(width));
        let (row_scales, scales) = (floats(&mut rng, rows), floats(&mut rng, width));
        let (bias, onto) = (floats(&mut rng, width), floats(&mut rng, rows * (width + 3)));
        for (with_bias, with_onto) in [(false, false), (true, false), (false, true), (true, true)] {
            let added = (with_bias.then_some(&*bias), (with_onto.then_some(&*onto), width + 3));
            let want: Vec<f32> = (0..rows * width)
                .map(|k| {
                    let (row, column) = (k / width, k % width);
                    let y = sums[row * filled(width) + column] * row_scales[row] * scales[column];
                    let y = if with_bias { y + bias[column] } else { y };
                    if with_onto { y + onto[row * (width + 3) + column] } else { y }
                })
                .collect();
            assert_eq!(rescale(&sums, (&row_scales, &scales), added.0, added.1, false), want, "[{rows}, {width}]");
            if filled(width) == width {
                assert_eq!(rescale(&sums, (&row_scales, &scales), added.0, added.1, true), want, "[{rows}, {width}]");
            }
        }
    }
}

#[test]
fn a_linear_of_these_kernels_has_the_bits_of_the_portable_one() {
    if !TWIN.exists() {
        return;
    }
    let mut rng = rng(13);
    for (outputs, inputs, rows) in [(32, 48, 1), (37, 100, 5), (5, 17, 20)] {
        let packed = pack(&weight(&mut rng, WeightFormat::F32, outputs, inputs));
        let weight = of(&packed);
        let x = floats(&mut rng, rows * inputs);
        let (filled_rows, _) = rows_of_products(rows, Some(64));
        let (numbers, row_scales) = quantize(&x, inputs, inputs, filled_rows);
        // What cuBLASLt would do, in the order of the portable loops, over everything that fills up too.
        let w = weight.numbers.flatten_all().unwrap().to_vec1::<F8E4M3>().unwrap();
        let sums: Vec<f32> = numbers
            .chunks(filled(inputs))
            .flat_map(|x| {
                w.chunks(filled(inputs)).map(move |w| {
                    let products = x.iter().zip(w).map(|(x, w)| F8E4M3::from_bits(*x).to_f32() * w.to_f32());
                    products.fold(0f32, |sum, product| sum + product)
                })
            })
            .collect();
        let onto = floats(&mut rng, rows * outputs);
        let scales = values(&weight.scales);
        let got = rescale(&sums, (&row_scales, &scales), None, (Some(&onto), outputs), false);
        let [x, onto] = [(x, inputs), (onto, outputs)]
            .map(|(data, width)| Tensor::from_vec(data, (rows, width), &Device::Cpu).unwrap());
        let want = portable::linear(&x, weight, None, Some(&onto)).unwrap();
        assert_eq!(got.iter().map(|y| y.to_bits()).collect::<Vec<_>>(), bits(&want), "[{outputs}, {inputs}] × {rows}");
    }
}
