//! safetensors files that lie, by hand.

use candlewick::{
    error::Result,
    weights::{TensorSource, safetensors::SafetensorsSource},
};

use super::{assert_names, capped, named};

const FILE: &str = "tiny.safetensors";

/// A file of a header and `data_bytes` zeros.
pub(super) fn file(header: &str, data_bytes: usize) -> Vec<u8> {
    let length = header.len() as u64;
    [&length.to_le_bytes(), header.as_bytes(), &vec![0; data_bytes]].concat()
}

fn open(bytes: Vec<u8>) -> Result<SafetensorsSource> {
    capped(|| SafetensorsSource::from_bytes(named(FILE), bytes.into()))
}

#[track_caller]
fn assert_refused(bytes: Vec<u8>, field: &str, why: &str) {
    assert_names(&open(bytes).err().expect("the file lies"), FILE, field, why);
}

/// A file of one tensor `t` and `data_bytes` zeros.
fn one(dtype: &str, shape: &str, data_offsets: &str, data_bytes: usize) -> Vec<u8> {
    file(&format!(r#"{{"t":{{"dtype":{dtype},"shape":{shape},"data_offsets":{data_offsets}}}}}"#), data_bytes)
}

#[test]
fn a_good_file_opens() {
    let source = open(one(r#""F32""#, "[2,1]", "[0,8]", 8)).expect("a good file");
    assert_eq!(source.get("t").expect("is there").shape, [2, 1]);
}

#[test]
fn a_header_length_beyond_the_file_or_the_format_is_refused() {
    for (length, why) in [(100, "truncated"), (1 << 31, "more than"), (1 << 63, "more than"), (u64::MAX, "more than")] {
        let mut bytes = file("{}", 0);
        bytes[..8].copy_from_slice(&length.to_le_bytes());
        assert_refused(bytes, "header length", why);
    }
}

#[test]
fn a_file_cut_at_any_byte_is_refused() {
    let bytes = one(r#""F32""#, "[2,1]", "[0,8]", 8);
    for length in 0..bytes.len() {
        let error = open(bytes[..length].to_vec()).err().expect("is cut");
        assert!(error.message.starts_with("tiny.safetensors: "), "{error}");
    }
    assert_refused(bytes[..bytes.len() - 1].to_vec(), "tensor t: data_offsets", "is it truncated?");
}

#[test]
fn a_header_that_is_no_json_object_is_refused() {
    for header in ["", "[]", "null", "{", "{}{}", r#"{"t"}"#, "\u{fffd}"] {
        assert_refused(file(header, 0), "header", "line 1");
    }
}

#[test]
fn reversed_offsets_are_refused() {
    assert_refused(one(r#""F32""#, "[2]", "[8,0]", 8), "tensor t: data_offsets", "are reversed");
}

#[test]
fn offsets_out_of_the_file_are_refused() {
    for end in ["9", "4294967296", "18446744073709551615"] {
        let bytes = one(r#""F32""#, "[2]", &format!("[0,{end}]"), 8);
        assert_refused(bytes, "tensor t: data_offsets", "leave the file");
    }
}

#[test]
fn a_size_that_does_not_fit_the_shape_is_refused() {
    assert_refused(one(r#""F32""#, "[3]", "[0,8]", 8), "tensor t: data_offsets", "shape [3] of F32 takes 12");
    assert_refused(one(r#""F16""#, "[2]", "[0,8]", 8), "tensor t: data_offsets", "takes 4");
}

#[test]
fn a_shape_whose_product_overflows_is_refused() {
    for shape in
        ["[4294967296,4294967296]", "[18446744073709551615,2]", "[9223372036854775807]", "[2305843009213693952]"]
    {
        assert_refused(one(r#""F32""#, shape, "[0,8]", 8), "tensor t: shape", "overflows");
    }
}

#[test]
fn a_shape_of_too_many_dimensions_is_refused() {
    let shape = format!("[{}1]", "1,".repeat(100_000));
    assert_refused(one(r#""F32""#, &shape, "[0,4]", 4), "tensor t: shape", "more than 8 dimensions");
}

#[test]
fn fields_of_another_type_or_missing_are_named() {
    assert_refused(one("7", "[2]", "[0,8]", 8), "tensor t: dtype", "invalid type");
    assert_refused(one(r#""F32""#, "[-1]", "[0,8]", 8), "tensor t: shape", "invalid value");
    assert_refused(one(r#""F32""#, r#""2""#, "[0,8]", 8), "tensor t: shape", "invalid type");
    assert_refused(one(r#""F32""#, "[2]", "[0]", 8), "tensor t: data_offsets", "invalid length");
    assert_refused(one(r#""F32""#, "[2]", "[0,8,9]", 8), "tensor t: data_offsets", "");
    assert_refused(one(r#""F32""#, "[2]", "[0.5,8]", 8), "tensor t: data_offsets", "invalid type");
    assert_refused(file(r#"{"t":{"dtype":"F32","shape":[2]}}"#, 8), "tensor t: data_offsets", "is missing");
    assert_refused(file(r#"{"t":{"dtype":"F32","dtype":"F16"}}"#, 8), "tensor t: dtype", "appears twice");
    assert_refused(file(r#"{"t":[]}"#, 8), "tensor t", "expected an object");
}

#[test]
fn overlapping_tensors_are_refused() {
    let header = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}"#;
    assert_refused(file(header, 12), "tensor b: data_offsets", "overlaps tensor a");
}

#[test]
fn bytes_that_belong_to_no_tensor_are_refused() {
    assert_refused(one(r#""F32""#, "[1]", "[4,8]", 8), "tensor t: data_offsets", "4 bytes before it");
    assert_refused(one(r#""F32""#, "[1]", "[0,4]", 8), "data", "4 bytes that belong to no tensor");
}

#[test]
fn a_tensor_that_appears_twice_is_refused() {
    let tensor = r#""t":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}"#;
    assert_refused(file(&format!("{{{tensor},{tensor}}}"), 4), "tensor t", "appears twice");
}

#[test]
fn an_unknown_dtype_is_an_error_only_when_its_tensor_is_asked_for() {
    let source = open(one(r#""F4_NEW""#, "[3]", "[0,8]", 8)).expect("opens all the same");
    assert!(source.get("t").is_none());
    assert!(source.refusal("t").expect("says why").contains("is stored as F4_NEW"));
}

#[test]
fn a_long_name_with_control_characters_is_cut_and_escaped_in_messages() {
    let name = format!(r"\u001b[31m{}", "x".repeat(100_000));
    let error = open(file(&format!(r#"{{"{name}":{{}}}}"#), 0)).err().expect("has no fields");
    assert!(error.message.len() < 500 && !error.message.contains('\u{1b}'), "{error}");
}
