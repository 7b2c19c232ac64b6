//! The formats that are only read, beside what the PyPI package `gguf` reads out of the same blocks
//! (`tests/fixtures/ggml_blocks`).

use std::borrow::Cow;

use candle_core::Device;

use super::{super::format::RawTensor, *};
use crate::{
    ids::TokenId,
    kernels::{linear::PackedWeight, test_data::values},
};

static BLOCKS: &[u8] = include_bytes!("../../../../../../tests/fixtures/ggml_blocks/blocks.bin");

/// Some blocks of one format and their weights.
struct Fixture {
    format: StoredFormat,
    blocks: Vec<u8>,
    weights: Vec<f32>,
}

fn fixtures() -> Vec<Fixture> {
    let mut rest = BLOCKS;
    let mut take = |bytes: usize| {
        let (taken, after) = rest.split_at(bytes);
        rest = after;
        (taken, after.is_empty())
    };
    let mut fixtures = Vec::new();
    loop {
        let name_len = u32_at(take(4).0, 0) as usize;
        let name = String::from_utf8(take(name_len).0.to_ascii_lowercase()).unwrap();
        let [size, len, count] = [0; 3].map(|_| u32_at(take(4).0, 0) as usize);
        let kept = WeightFormat::ALL.into_iter().find(|format| format.to_string() == name).map(StoredFormat::Kept);
        let read = READ_ONLY.into_iter().find(|format| format.name == name).map(StoredFormat::ReadOnly);
        let format = kept.or(read).unwrap_or_else(|| panic!("{name} is not read"));
        assert_eq!((format.block_bytes(), format.block_len()), (size, len), "{name}");
        let blocks = take(size * count).0.to_vec();
        let (weights, last) = take(4 * len * count);
        let weights = weights.as_chunks().0.iter().map(|number| f32::from_le_bytes(*number)).collect();
        fixtures.push(Fixture { format, blocks, weights });
        if last {
            return fixtures;
        }
    }
}

#[test]
fn every_format_is_read_bit_for_bit_as_the_gguf_package_reads_it() {
    let fixtures = fixtures();
    for format in READ_ONLY {
        assert!(fixtures.iter().any(|fixture| fixture.format == StoredFormat::ReadOnly(format)), "{}", format.name);
    }
    for Fixture { format, blocks, weights } in fixtures {
        let raw = RawTensor { format, shape: vec![weights.len()], bytes: Cow::Owned(blocks) };
        let got = raw.to_f32();
        assert_eq!(got.len(), weights.len(), "{format}");
        for (k, (got, want)) in got.iter().zip(&weights).enumerate() {
            let same = got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan();
            assert!(same, "{format}: weight {k} is {got}, must be {want}");
        }
    }
}

/// How far a packed weight may be from what the file says, beside the largest of its 32.
fn tolerance(format: &ReadOnly) -> f32 {
    match (&format.blocks, format.kept) {
        // Their scales are halves already, or powers of two within a half's range.
        (Blocks::Integers { .. }, WeightFormat::Q4_0) => 0.0,
        (Blocks::Integers { .. }, WeightFormat::Q6K) => 0.0,
        (Blocks::Integers { group_len: 32, .. }, _) if !matches!(format.name, "iq4_xs" | "iq2_xxs" | "iq3_xxs") => 0.0,
        // The last bits of a scale.
        (Blocks::Integers { group_len, .. }, _) if *group_len >= 32 => 0.5f32.powi(11),
        // Half a step of Q8_0, whose scale is rounded too.
        _ => 0.51 / 127.0 + 0.5f32.powi(11),
    }
}

#[test]
fn packed_they_keep_the_files_error() {
    for Fixture { format, blocks, .. } in fixtures() {
        let StoredFormat::ReadOnly(read_only) = format else { continue };
        // Powers of two beyond a half's range are kept as zero or infinity; trained weights have none.
        let blocks = if read_only.name == "mxfp4" { blocks[3 * 17..].to_vec() } else { blocks };
        let inputs = blocks.len() / format.block_bytes() * format.block_len();
        let raw = RawTensor { format, shape: vec![1, inputs], bytes: Cow::Owned(blocks) };
        let packed = PackedWeight::pack(&raw, format.kept(), &Device::Cpu).unwrap();
        assert_eq!(packed.format(), format.kept());
        let got = values(&packed.gather_rows(&[TokenId(0)]).unwrap());
        let largest = |weights: &[f32]| weights.iter().fold(0f32, |largest, weight| largest.max(weight.abs()));
        let want = raw.to_f32();
        for (got, want) in got.chunks(256).zip(want.chunks(256)) {
            // Where scales of a file become integers: half a 255th.
            let of_scales = 0.0021 * largest(want);
            for (got, want) in got.chunks(32).zip(want.chunks(32)) {
                let most = tolerance(read_only) * largest(want) + of_scales;
                for (got, want) in got.iter().zip(want) {
                    assert!((got - want).abs() <= most, "{format}: {got} for {want}, {most} at most");
                }
            }
        }
    }
}

#[test]
fn what_is_read_can_be_widened_but_not_quantized_to_another_kind() {
    let Fixture { blocks, weights, .. } =
        fixtures().into_iter().find(|fixture| fixture.format == StoredFormat::ReadOnly(&IQ2_S)).unwrap();
    let raw = RawTensor { format: StoredFormat::ReadOnly(&IQ2_S), shape: vec![5, 256], bytes: Cow::Owned(blocks) };
    let plain = PackedWeight::pack(&raw, WeightFormat::F32, &Device::Cpu).unwrap();
    let ids: Vec<TokenId> = (0..5).map(TokenId).collect();
    assert_eq!(values(&plain.gather_rows(&ids).unwrap()), weights);
    let error = PackedWeight::pack(&raw, WeightFormat::Q4K, &Device::Cpu).err().unwrap();
    assert!(error.message.contains("a iq2_s weight cannot be loaded as q4_k"), "{error}");
}
