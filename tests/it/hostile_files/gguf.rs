//! GGUF files that lie, by hand.

use std::sync::Arc;

use candlewick::{
    arch::{generation_config::GenerationDefaults, pooling_config},
    error::Result,
    params::Pooling,
    weights::{
        TensorSource, Weights,
        gguf::{Gguf, GgufSource},
    },
};

use super::{
    assert_names, capped,
    gguf_file::{GgufFile, array, array_head, sized, string, typed, u32},
    named,
};

const FILE: &str = "tiny.gguf";

fn open(bytes: Vec<u8>) -> Result<Gguf> {
    capped(|| Gguf::from_bytes(named(FILE), bytes.into()))
}

/// The tiny file with one thing changed.
fn tiny(change: impl FnOnce(&mut GgufFile)) -> Vec<u8> {
    let mut file = GgufFile::tiny();
    change(&mut file);
    file.bytes()
}

/// Puts a value in place of a key's.
fn setting(key: &str, value: Vec<u8>) -> impl FnOnce(&mut GgufFile) {
    move |file| {
        file.set(key, value);
    }
}

#[track_caller]
fn assert_refused(change: impl FnOnce(&mut GgufFile), field: &str, why: &str) {
    let error = open(tiny(change)).expect_err("the file lies");
    assert_names(&error, FILE, field, why);
}

fn source(change: impl FnOnce(&mut GgufFile)) -> Result<GgufSource> {
    let gguf = Arc::new(open(tiny(change)).expect("a file that holds together"));
    capped(|| GgufSource::new(gguf))
}

#[test]
fn the_tiny_file_itself_is_good() {
    let source = source(|_| {}).expect("a good file");
    assert_eq!(source.names().len(), 13);
    let q = source.get("model.layers.0.self_attn.q_proj.weight").expect("is there");
    assert_eq!((q.shape, q.bytes.len()), (vec![32, 256], 32 * 8 * 34));
    let gguf = source.gguf();
    assert_eq!(gguf.u64("types.u8").expect("a number"), Some(8));
    assert_eq!(gguf.f32("types.i8").expect("a number"), Some(-1.0));
    assert_eq!(gguf.u64("types.u16").expect("a number"), Some(0x0201));
    assert_eq!(gguf.f32("types.f64").expect("a number"), Some(1.5));
    assert_eq!(gguf.bool("tokenizer.ggml.add_bos_token").expect("a boolean"), Some(true));
    assert_eq!(gguf.bool("absent").expect("is absent"), None);
    assert_eq!(gguf.token_id("tokenizer.ggml.padding_token_id").expect("an id"), None);
    let types = gguf.array_i64("tokenizer.ggml.token_type").expect("integers").expect("is there");
    assert_eq!(types.collect::<Vec<_>>(), [2, 3, 3, 6, 1, 1, 1, 1]);
    let tokens = gguf.array_strings("tokenizer.ggml.tokens").expect("strings").expect("is there");
    assert_eq!(tokens.skip(4).collect::<Vec<_>>(), ["\u{2581}a", "b", "ab", "\u{2581}ab"]);
}

#[test]
fn a_file_cut_at_any_byte_is_refused() {
    let bytes = tiny(|_| {});
    // The last tensor's format is unknown, so that its length is too: the one before it must be whole.
    let needed = bytes.len() - 96;
    for length in 0..needed {
        let error = open(bytes[..length].to_vec()).expect_err("is cut");
        assert!(error.message.starts_with("tiny.gguf: "), "{error}");
        assert_eq!(error.violations.len(), 1, "{error}");
    }
}

#[test]
fn a_wrong_magic_names_the_magic() {
    assert_refused(|file| file.magic = *b"GGML", "magic", "not a GGUF file");
}

#[test]
fn other_versions_are_named() {
    assert_refused(|file| file.version = 1, "version", "convert the model again");
    assert_refused(|file| file.version = 4, "version", "only 2 and 3");
    assert_refused(|file| file.version = 3u32.swap_bytes(), "version", "big-endian");
}

#[test]
fn a_lying_count_of_keys_is_refused_before_anything_is_allocated() {
    for count in [1 << 31, 1 << 32, 1 << 63, u64::MAX] {
        assert_refused(|file| file.metadata_count = Some(count), "metadata_kv_count", "bytes that follow hold at most");
    }
}

#[test]
fn a_lying_count_of_tensors_is_refused_before_anything_is_allocated() {
    for count in [1 << 31, 1 << 32, 1 << 63, u64::MAX] {
        assert_refused(|file| file.tensor_count = Some(count), "tensor_count", "bytes that follow hold at most");
    }
}

#[test]
fn a_string_longer_than_the_file_names_its_key() {
    for length in [1 << 31, 1 << 63, u64::MAX] {
        let value = typed(8, &u64::to_le_bytes(length));
        assert_refused(setting("general.name", value), "metadata general.name", "but the file ends after");
    }
}

#[test]
fn a_key_longer_than_the_file_or_not_utf8_is_named_by_its_number() {
    let number = GgufFile::tiny().metadata.len();
    let field = format!("metadata[{number}]: key");
    assert_refused(|file| file.metadata.push((vec![0xff, 0xfe], u32(1))), &field, "is not UTF-8");
    assert_refused(|file| file.metadata.push((vec![b'k'; 65_536], u32(1))), &field, "longer than 65535");
}

#[test]
fn an_array_that_claims_more_than_the_file_holds_names_its_key_and_count() {
    for kind in [0, 4, 8, 9, 12] {
        for count in [1 << 31, 1 << 61, 1 << 63, u64::MAX] {
            assert_refused(
                setting("a", typed(9, &array_head(kind, count))),
                "metadata a: count",
                "bytes that follow hold at most",
            );
        }
    }
}

#[test]
fn a_string_inside_an_array_that_leaves_the_file_is_named_by_its_number() {
    let elements = [sized(b"one"), u64::MAX.to_le_bytes().to_vec()].concat();
    assert_refused(setting("a", array(8, 2, &elements)), "metadata a[1]", "needs 18446744073709551615 bytes");
}

#[test]
fn an_unknown_type_names_its_key() {
    assert_refused(setting("a", typed(13, &[0; 8])), "metadata a: type", "is 13");
    assert_refused(setting("a", array(u32::MAX, 0, &[])), "metadata a: type", "is 4294967295");
}

#[test]
fn a_boolean_of_neither_0_nor_1_is_refused() {
    assert_refused(setting("a", typed(7, &[2])), "metadata a", "neither 0 nor 1");
}

#[test]
fn arrays_nested_without_end_do_not_overflow_the_stack() {
    let depth = 100_000;
    let nested = array_head(9, 1).repeat(depth);
    assert_refused(setting("a", typed(9, &nested)), "metadata a", "more than 4 deep");
}

#[test]
fn a_key_that_appears_twice_is_refused() {
    assert_refused(
        |file| file.metadata.push((b"general.alignment".into(), u32(32))),
        "metadata general.alignment",
        "twice",
    );
}

#[test]
fn an_alignment_of_0_or_no_power_of_two_is_refused() {
    for alignment in [0, 3, 48, u32::MAX, 1 << 31] {
        let field = "metadata general.alignment";
        assert_refused(setting("general.alignment", u32(alignment)), field, "power of two");
    }
    assert_refused(setting("general.alignment", string("32")), "metadata general.alignment", "integer");
}

#[test]
fn more_than_four_dimensions_are_refused() {
    for n_dims in [5, u32::MAX] {
        let field = "tensor blk.0.attn_q.weight: n_dims";
        assert_refused(|file| file.tensor("blk.0.attn_q.weight").n_dims = Some(n_dims), field, "at most 4");
    }
}

#[test]
fn dimensions_whose_product_overflows_are_refused() {
    let field = "tensor token_embd.weight: dimensions";
    for dims in [vec![1 << 32, 1 << 32], vec![u64::MAX, 2], vec![1 << 62, 2], vec![1 << 31; 4]] {
        assert_refused(|file| file.tensor("token_embd.weight").dims = dims, field, "overflow");
    }
}

#[test]
fn a_row_that_is_no_whole_number_of_blocks_is_refused() {
    let field = "tensor blk.0.ffn_gate.weight: dimension 0";
    assert_refused(|file| file.tensor("blk.0.ffn_gate.weight").dims = vec![128, 64], field, "blocks of 256");
}

#[test]
fn an_offset_off_the_alignment_is_refused() {
    let field = "tensor output_norm.weight: offset";
    assert_refused(|file| file.tensor("output_norm.weight").offset += 4, field, "no multiple of the alignment 32");
}

#[test]
fn an_offset_out_of_the_file_is_refused() {
    let field = "tensor output_norm.weight: offset";
    for offset in [1 << 20, 1 << 32, 1 << 63, !31] {
        assert_refused(|file| file.tensor("output_norm.weight").offset = offset, field, "leave the file");
    }
}

#[test]
fn a_tensor_larger_than_the_file_is_refused() {
    let field = "tensor token_embd.weight: offset";
    assert_refused(|file| file.tensor("token_embd.weight").dims = vec![256, 1 << 40], field, "leave the file");
}

#[test]
fn overlapping_tensors_are_refused() {
    let field = "tensor output_norm.weight: offset";
    assert_refused(|file| file.tensor("output_norm.weight").offset = 480, field, "overlaps tensor token_embd.weight");
}

#[test]
fn a_tensor_that_appears_twice_is_refused() {
    assert_refused(
        |file| file.tensor("output.weight").name = "output_norm.weight".into(),
        "tensor output_norm.weight",
        "twice",
    );
    let two_names = source(|file| file.tensor("unknown.weight").name = "lm_head.weight".into());
    assert_names(&two_names.err().expect("both names"), FILE, "tensor output.weight", "twice");
}

#[test]
fn an_unknown_format_is_an_error_only_when_its_tensor_is_asked_for() {
    let source = source(|file| file.tensor("output.weight").kind = 24).expect("opens all the same");
    assert!(source.get("lm_head.weight").is_none());
    let weights = Weights::new(Box::new(source));
    assert!(weights.contains("lm_head.weight"), "is not taken for absent");
    let error = weights.get("lm_head.weight", &[1, 256]).expect_err("is I8");
    assert_names(&error, FILE, "tensor lm_head.weight", "is stored as I8, which is no kind of weights");
}

#[test]
fn one_part_of_a_split_model_says_that_others_are_missing() {
    let error = source(setting("split.count", typed(2, &[3, 0]))).err().expect("one of three");
    assert_names(&error, FILE, "metadata split.count", "one of 3 files");
}

#[test]
fn head_counts_that_do_not_divide_the_rows_are_refused() {
    for count in [0, 3, 32, u32::MAX] {
        let error = source(setting("llama.attention.head_count", u32(count))).err().expect("does not fit");
        assert!(
            error.message.contains("head_count: is no number") || error.message.contains("attn_q.weight: dimensions")
        );
    }
    let error = source(|file| file.metadata.retain(|(key, _)| !key.ends_with(b"head_count"))).err().expect("none");
    assert_names(&error, FILE, "metadata llama.attention.head_count", "is missing");
}

#[test]
fn metadata_of_another_type_names_the_key_when_it_is_asked_for() {
    let gguf = open(tiny(|file| {
        file.set("words", array(8, 1, &sized(&[0xff]))).set("name", typed(8, &sized(&[0xff])));
    }))
    .expect("holds together");
    for (error, field, why) in [
        (gguf.string("general.alignment").err(), "metadata general.alignment", "is 32, must be a string"),
        (gguf.u64("types.i8").err(), "metadata types.i8", "is -1, must be an integer of at least 0"),
        (gguf.f32("general.architecture").err(), "metadata general.architecture", "is a string, must be a number"),
        (gguf.bool("types.u8").err(), "metadata types.u8", "must be a boolean"),
        (gguf.token_id("types.u64").err(), "metadata types.u64", "which no token id can be"),
        (
            gguf.array_strings("tokenizer.ggml.scores").err(),
            "metadata tokenizer.ggml.scores",
            "must be an array of strings",
        ),
        (
            gguf.array_f32("tokenizer.ggml.tokens").map(drop).err(),
            "metadata tokenizer.ggml.tokens",
            "an array of floats",
        ),
        (gguf.array_i64("types.nested").map(drop).err(), "metadata types.nested", "must be an array of integers"),
        (gguf.array_strings("words").err(), "metadata words[0]", "is not UTF-8"),
        (gguf.string("name").err(), "metadata name", "is not UTF-8"),
    ] {
        assert_names(&error.expect("is of another type"), FILE, field, why);
    }
}

#[test]
fn what_a_file_recommends_for_sampling_is_read_and_checked() {
    let float = |x: f32| typed(6, &x.to_le_bytes());
    let defaults = |key: &'static str, value: Vec<u8>| {
        let gguf = open(tiny(|file| {
            file.set("general.sampling.top_k", typed(5, &(-1i32).to_le_bytes())).set(key, value);
        }));
        GenerationDefaults::from_gguf(&gguf.expect("holds together"))
    };
    let params = defaults("general.sampling.temp", float(0.3)).expect("good numbers").sampling_params();
    assert_eq!((params.temperature, params.top_k, params.top_p), (0.3, 0, 1.0));
    for (key, value) in [
        ("general.sampling.temp", float(f32::NAN)),
        ("general.sampling.top_p", float(0.0)),
        ("general.sampling.min_p", float(1.5)),
        ("general.sampling.penalty_repeat", float(f32::INFINITY)),
        ("general.sampling.penalty_repeat", string("much")),
    ] {
        let error = defaults(key, value).expect_err("is impossible");
        assert_names(&error, FILE, &format!("metadata {key}"), "must be");
    }
}

#[test]
fn how_a_file_pools_is_read_by_llama_cpps_numbers() {
    let read = |value: Option<Vec<u8>>| {
        let gguf = open(tiny(|file| {
            if let Some(value) = value {
                file.set("llama.pooling_type", value);
            }
        }));
        pooling_config::from_gguf(&gguf.expect("holds together"))
    };
    assert_eq!(read(None).expect("nothing said"), Some(Pooling::Last));
    let numbers = [Some(Pooling::Last), Some(Pooling::Mean), None, Some(Pooling::Last), None];
    for (number, pooling) in (0..).zip(numbers) {
        assert_eq!(read(Some(u32(number))).expect("a number"), pooling, "{number}");
    }
    let error = read(Some(string("mean"))).expect_err("is no number");
    assert_names(&error, FILE, "metadata llama.pooling_type", "must be");
}
