//! What `candlewick convert` makes of sentencepiece tokenizers: a GGUF file that gives the ids and texts of the directory.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::PathBuf,
};

use base64::{Engine, prelude::BASE64_STANDARD};
use candle_core::{DType, Device, Tensor, safetensors};
use candlewick::{
    convert::Draft,
    engine::load::load_tokenizer,
    error::{Code, Result},
    ids::TokenId,
    text::{TokenType, Tokenizer},
    weights::{
        files::{ModelFiles, model_files},
        gguf::Gguf,
        safetensors::SafetensorsSource,
    },
};
use rand::{SeedableRng, rngs::SmallRng};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{place::repository, tokenizers};

/// Tokens of the model; the vocabularies have fewer.
const SIZE: usize = 800;
const SPACE: char = '\u{2581}';
const LINE: &str = "The candlewick server streams tokens.";

/// A small vocabulary.
fn fixture(name: &str) -> Vec<u8> {
    fs::read(repository("tests/data/tokenizers").join(name)).unwrap()
}

/// The directory of a model with these files besides.
fn directory(files: &[(&str, &[u8])]) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": SIZE, "hidden_size": 32,
        "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1,
        "head_dim": 32, "max_position_embeddings": 64, "rms_norm_eps": 1e-6,
    });
    fs::write(directory.path().join("config.json"), config.to_string()).unwrap();
    let norm = Tensor::zeros(32, DType::F32, &Device::Cpu).unwrap();
    let tensors = HashMap::from([("model.norm.weight", norm)]);
    safetensors::save(&tensors, directory.path().join("model.safetensors")).unwrap();
    for (name, bytes) in files {
        fs::write(directory.path().join(name), bytes).unwrap();
    }
    directory
}

fn converted(directory: &TempDir) -> Result<PathBuf> {
    let ModelFiles::Directory(files) = model_files(directory.path())? else { panic!("is a directory") };
    let source = SafetensorsSource::open(directory.path())?;
    let path = directory.path().join("new.gguf");
    Draft::from_directory(&files, &source)?.write(&path, None, &mut |_, _| ())?;
    Ok(path)
}

/// Texts that are hard on tokenizers, and random ones.
fn texts() -> Vec<String> {
    let vectors: tokenizers::Vectors = tokenizers::read("vectors.json");
    let fixed = ["<s>", "a<s> b</s>c", "   <h1>  x\n\n\ny", "<tool> <tool>x  <|im_start|> \t", "\t\t a", "     five"];
    let mut rng = SmallRng::seed_from_u64(8);
    let random = (0..1500).map(|_| tokenizers::random_text(&mut rng, 24));
    vectors.texts.into_iter().chain(fixed.map(str::to_owned)).chain(random).collect()
}

/// Holds that the file gives the ids and the texts of the directory for every text that `takes` it. Gives the file. Of ways
/// through a text that are as likely as each other, unigram may take another; and what stands for unknown text reads as it likes.
fn assert_same(name: &str, directory: &TempDir, takes: impl Fn(&str) -> bool) -> Gguf {
    let path = converted(directory).unwrap();
    let own = Tokenizer::from_directory(directory.path()).unwrap().expect("a tokenizer");
    let new = load_tokenizer(Some(&path)).unwrap();
    let gguf = Gguf::open(&path).unwrap();
    let unk = gguf.token_id("tokenizer.ggml.unknown_token_id").unwrap();
    let scores: Vec<f32> = gguf.array_f32("tokenizer.ggml.scores").unwrap().map(Iterator::collect).unwrap_or_default();
    let is_unigram = gguf.string("tokenizer.ggml.model").unwrap() == Some("t5");
    let mut tied = 0;
    let texts: Vec<String> = texts().into_iter().filter(|text| takes(text)).collect();
    assert!(texts.len() > 300, "{name}: {} texts", texts.len());
    for text in &texts {
        for framed in [false, true] {
            let ids = own.encode(text, framed).unwrap();
            let got = new.encode(text, framed).unwrap();
            let sum = |ids: &[TokenId]| ids.iter().map(|id| f64::from(scores[id.index()])).sum::<f64>();
            if got != ids && is_unigram && (sum(&got) - sum(&ids)).abs() < 1e-4 {
                tied += 1;
                continue;
            }
            assert_eq!(got, ids, "{name}: {text:?}, framed {framed}");
            if unk.is_some_and(|unk| ids.contains(&unk)) {
                continue;
            }
            for skip_special in [false, true] {
                let decoded = own.decode(&ids, skip_special);
                assert_eq!(new.decode(&ids, skip_special), decoded, "{name}: {text:?}, {skip_special}");
            }
        }
    }
    assert!(tied * 20 < texts.len(), "{name}: {tied} of {} texts", texts.len());
    gguf
}

/// One more piece at the end of a sentencepiece model: protobuf messages are put together by writing one behind the other.
fn piece(text: &str, kind: TokenType) -> Vec<u8> {
    let number = u8::try_from(kind.number()).unwrap();
    let text_field = [&[0x0a, u8::try_from(text.len()).unwrap()][..], text.as_bytes()].concat();
    let fields = [text_field, vec![0x15, 0, 0, 0, 0, 0x18, number]].concat();
    [vec![0x0a, u8::try_from(fields.len()).unwrap()], fields].concat()
}

/// `normalizer_spec`'s boolean with this number.
fn rule(number: u8, value: bool) -> Vec<u8> {
    vec![0x1a, 2, number << 3, u8::from(value)]
}

const DUMMY_PREFIX: u8 = 3;
const REMOVE_EXTRA_WHITESPACES: u8 = 4;

type Pieces = Vec<(String, f32, TokenType)>;
/// What is done to a tokenizer.json.
type Change<'a> = &'a dyn Fn(&mut Value);

/// The pieces of the small model.
fn pieces() -> Pieces {
    let vocab = Tokenizer::from_file(&repository("tests/data/tokenizers/bpe.model")).unwrap().to_gguf().unwrap();
    let scored = vocab.tokens.into_iter().zip(vocab.scores);
    scored.zip(vocab.token_types).map(|((token, score), kind)| (token, score, kind)).collect()
}

/// Pieces as in Gemma: runs of spaces and lines, and tags, that are always whole, and the tab in the place of its byte.
fn gemma_pieces() -> Pieces {
    let mut pieces = pieces();
    for whole in ["\n", "\n\n", "\n\n\n", "\u{2581}\u{2581}", "\u{2581}\u{2581}\u{2581}", "▁▁▁▁", "<h1>"] {
        match pieces.iter_mut().find(|(piece, ..)| piece == whole) {
            Some(piece) => (piece.1, piece.2) = (0.0, TokenType::UserDefined),
            None => pieces.push((whole.to_owned(), 0.0, TokenType::UserDefined)),
        }
    }
    let tab = pieces.iter().position(|(piece, ..)| piece == "<0x09>").unwrap();
    pieces[tab] = ("\t".to_owned(), 0.0, TokenType::Normal);
    pieces
}

/// A tokenizer.json as transformers' converters write it of a sentencepiece model: all pairs of pieces that make a third, by its
/// score and then the longer halves.
fn tokenizer_json(pieces: &Pieces, puts_space: bool) -> Value {
    let ids: BTreeMap<&str, usize> = pieces.iter().enumerate().map(|(id, (piece, ..))| (piece.as_str(), id)).collect();
    let mut merges = Vec::new();
    for (piece, score, _) in pieces {
        let pairs = piece.char_indices().skip(1).map(|(at, _)| piece.split_at(at));
        let both = pairs.filter(|(left, right)| ids.contains_key(left) && ids.contains_key(right));
        merges.extend(both.map(|(left, right)| (*score, left.chars().count(), right.chars().count(), left, right)));
    }
    merges.sort_by(|one, other| other.0.total_cmp(&one.0).then((other.1, other.2).cmp(&(one.1, one.2))));
    let added = pieces.iter().enumerate().filter_map(|(id, (content, _, kind))| {
        let special = matches!(kind, TokenType::Control | TokenType::Unknown);
        (special || *kind == TokenType::UserDefined).then(|| added(id, content, special))
    });
    let replace = |from: &str, to: &str| json!({"type": "Replace", "pattern": {"String": from}, "content": to});
    let mut normalizers = vec![replace(" ", "\u{2581}")];
    let mut decoders = vec![replace("\u{2581}", " "), json!({"type": "ByteFallback"}), json!({"type": "Fuse"})];
    if puts_space {
        normalizers.insert(0, json!({"type": "Prepend", "prepend": "\u{2581}"}));
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    json!({
        "added_tokens": added.collect::<Vec<_>>(),
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": null,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [ids["<s>"]], "tokens": ["<s>"]}},
        },
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {
            "type": "BPE", "unk_token": "<unk>", "fuse_unk": true, "byte_fallback": true, "vocab": ids,
            "merges": merges.iter().map(|(.., left, right)| json!([left, right])).collect::<Vec<_>>(),
        },
    })
}

fn added(id: usize, content: &str, special: bool) -> Value {
    json!({
        "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
        "special": special,
    })
}

/// A directory with that tokenizer.json and the names of its tokens.
fn with_json(file: &Value) -> TempDir {
    let config = json!({"bos_token": "<s>", "eos_token": {"content": "</s>"}, "pad_token": "<unk>"}).to_string();
    directory(&[("tokenizer.json", file.to_string().as_bytes()), ("tokenizer_config.json", config.as_bytes())])
}

fn types(gguf: &Gguf) -> Vec<TokenType> {
    let types = gguf.array_i64("tokenizer.ggml.token_type").unwrap().expect("types");
    types.map(TokenType::from_number).collect()
}

#[test]
fn a_sentencepiece_model_gives_its_ids_from_a_file() {
    let model = fixture("bpe.model");
    let alone = directory(&[("tokenizer.model", &model)]);
    let gguf = assert_same("alone", &alone, |_| true);
    let text = |key: &str| gguf.string(&format!("tokenizer.ggml.{key}")).unwrap().map(str::to_owned);
    assert_eq!((text("model").as_deref(), text("pre").as_deref()), (Some("llama"), Some("default")));
    let id = |key: &str| gguf.token_id(&format!("tokenizer.ggml.{key}_token_id")).unwrap();
    assert_eq!(["unknown", "bos", "eos"].map(id), [0, 1, 2].map(|id| Some(TokenId(id))));
    let flag = |key: &str| gguf.bool(&format!("tokenizer.ggml.{key}")).unwrap();
    assert_eq!(["add_bos_token", "add_eos_token", "add_space_prefix"].map(flag), [Some(true), Some(false), Some(true)]);
    let count = pieces().len();
    let types = types(&gguf);
    assert_eq!(types.len(), SIZE);
    assert_eq!(types[..4], [TokenType::Unknown, TokenType::Control, TokenType::Control, TokenType::Byte]);
    assert!(types[count..].iter().all(|kind| *kind == TokenType::Unused));
    let tokens = gguf.array_strings("tokenizer.ggml.tokens").unwrap().expect("tokens");
    assert_eq!(tokens.last(), Some("[PAD799]"));
}

#[test]
fn what_was_added_to_a_sentencepiece_model_is_found_whole() {
    let model = fixture("bpe.model");
    let count = pieces().len();
    let special = |content: &str| json!({"content": content, "special": true});
    let decoder = json!({
        "1": special("<s>"), "2": special("</s>"), (count + 1).to_string(): special("<|im_start|>"),
        (count + 2).to_string(): {"content": "<tool>"},
    });
    let config = json!({
        "bos_token": "<s>", "eos_token": "<|im_start|>", "pad_token": "<tool>", "add_bos_token": false, "add_eos_token": true,
        "added_tokens_decoder": decoder,
    });
    let newer = directory(&[("tokenizer.model", &model), ("tokenizer_config.json", config.to_string().as_bytes())]);
    let gguf = assert_same("added_tokens_decoder", &newer, |_| true);
    let kinds = [TokenType::Unused, TokenType::Control, TokenType::UserDefined, TokenType::Unused];
    assert_eq!(types(&gguf)[count..count + 4], kinds);
    let id = |key: &str| gguf.token_id(&format!("tokenizer.ggml.{key}_token_id")).unwrap().unwrap().index();
    assert_eq!(["eos", "padding"].map(id), [count + 1, count + 2]);

    let config = json!({"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<|im_start|>"}).to_string();
    let added = json!({"<tool>": count, "<|im_start|>": count + 1}).to_string();
    let older = directory(&[
        ("tokenizer.model", &model),
        ("tokenizer_config.json", config.as_bytes()),
        ("added_tokens.json", added.as_bytes()),
    ]);
    let gguf = assert_same("added_tokens.json", &older, |_| true);
    assert_eq!(types(&gguf)[count..count + 2], [TokenType::UserDefined, TokenType::Control]);
}

#[test]
fn pieces_of_a_model_that_are_always_whole_stay_so() {
    let whole = ["\n", "\n\n", "\u{2581}\u{2581}", "\u{2581}\u{2581}\u{2581}", "<h1>"];
    let whole = whole.map(|text| piece(text, TokenType::UserDefined)).concat();
    let model = [fixture("bpe.model"), rule(DUMMY_PREFIX, false), whole].concat();
    // A character that stands for a space in pieces is one in the model, and itself in a file's tokens.
    let gguf = assert_same("whole", &directory(&[("tokenizer.model", &model)]), |text| !text.contains('\u{2581}'));
    let count = pieces().len();
    assert_eq!(types(&gguf)[count..count + 5], [TokenType::UserDefined; 5]);
    assert_eq!(gguf.array_strings("tokenizer.ggml.tokens").unwrap().expect("tokens").nth(count + 3), Some("   "));
}

#[test]
fn merges_of_a_tokenizer_json_become_scores() {
    let llama = with_json(&tokenizer_json(&pieces(), true));
    let gguf = assert_same("Llama", &llama, |_| true);
    let flag = |key: &str| gguf.bool(&format!("tokenizer.ggml.{key}")).unwrap();
    assert_eq!(["add_bos_token", "add_space_prefix"].map(flag), [Some(true), Some(true)]);
    assert_eq!(gguf.token_id("tokenizer.ggml.padding_token_id").unwrap(), Some(TokenId(0)));
    assert_eq!(types(&gguf)[..4], [TokenType::Unknown, TokenType::Control, TokenType::Control, TokenType::Byte]);
    // Pieces stand as they stood by the model's scores.
    let scores: Vec<f32> = gguf.array_f32("tokenizer.ggml.scores").unwrap().expect("scores").collect();
    let mut made: Vec<(f32, f32)> = pieces().iter().zip(&scores).map(|((_, own, _), new)| (*own, *new)).collect();
    let worst = scores.iter().copied().fold(0.0, f32::min);
    made.retain(|(_, new)| *new > worst);
    made.sort_by(|one, other| one.0.total_cmp(&other.0));
    assert!(made.len() > 200 && made.is_sorted_by_key(|(_, new)| *new), "{made:?}");

    // As older files have it: by id, and pairs as one text.
    let written = Tokenizer::from_file(&repository("tests/data/tokenizers/bpe.model")).unwrap().to_json().unwrap();
    let mut older: Value = serde_json::from_str(&written).unwrap();
    for merge in older["model"]["merges"].as_array_mut().unwrap() {
        *merge = json!(format!("{} {}", merge[0].as_str().unwrap(), merge[1].as_str().unwrap()));
    }
    assert_same("older Llama", &with_json(&older), |_| true);

    let mut gemma = tokenizer_json(&gemma_pieces(), false);
    gemma["pre_tokenizer"] =
        json!({"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": false});
    let gguf = assert_same("Gemma", &with_json(&gemma), |_| true);
    assert_eq!(gguf.bool("tokenizer.ggml.add_space_prefix").unwrap(), Some(false));
    let tokens: Vec<&str> = gguf.array_strings("tokenizer.ggml.tokens").unwrap().expect("tokens").collect();
    let kind = |token: &str| types(&gguf)[tokens.iter().position(|other| *other == token).unwrap()];
    assert_eq!(kind("<0x09>"), TokenType::Byte);
    assert_eq!(["\n\n", "<h1>"].map(kind), [TokenType::UserDefined; 2]);
}

#[test]
fn a_tokenizer_json_goes_before_the_model_beside_it() {
    let mut pieces = pieces();
    pieces.push(("<tool>".to_owned(), 0.0, TokenType::Control));
    let both = with_json(&tokenizer_json(&pieces, true));
    fs::write(both.path().join("tokenizer.model"), fixture("bpe.model")).unwrap();
    let gguf = assert_same("both", &both, |_| true);
    assert_eq!(types(&gguf)[pieces.len() - 1], TokenType::Control);
}

#[test]
fn a_metaspace_gives_the_ids_of_texts_that_have_no_space_first() {
    let with = |scheme: &str| {
        let mut file = tokenizer_json(&pieces(), scheme != "never");
        file["normalizer"] = Value::Null;
        file["pre_tokenizer"] =
            json!({"type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": scheme, "split": false});
        with_json(&file)
    };
    assert_same("never", &with("never"), |_| true);
    // GGUF has no word for a space where there is none: it puts one before every text, and behind a special token.
    let begins_with_text =
        |text: &str| !text.starts_with([' ', '\u{2581}']) && !text.contains("</s>") && !text.contains("<s>");
    for scheme in ["first", "always"] {
        let directory = with(scheme);
        assert_same(scheme, &directory, begins_with_text);
        let own = Tokenizer::from_directory(directory.path()).unwrap().unwrap();
        let new = load_tokenizer(Some(&directory.path().join("new.gguf"))).unwrap();
        let count = |tokenizer: &Tokenizer| tokenizer.encode(&format!(" {LINE}"), false).unwrap().len();
        assert_eq!(count(&new), count(&own) + 1, "{scheme}");
    }
}

/// A table that makes spaces of lines and tabs, as that of T5 does: units of a trie, which say their byte, that something ends
/// there, and how far the next is.
fn lines_as_spaces() -> Vec<u8> {
    const ROOT: u32 = 16;
    let mut units = [0; 256];
    units[0] = ROOT << 10;
    for (byte, end) in (48..).zip(b"\n\r\t").map(|(end, &byte)| (u32::from(byte), end)) {
        let at = ROOT ^ byte;
        units[at as usize] = byte | 1 << 8 | (at ^ end) << 10;
        units[end as usize] = 1 << 31;
    }
    let units = units.iter().flat_map(|unit| unit.to_le_bytes());
    1024u32.to_le_bytes().into_iter().chain(units).chain(*b" \0").collect()
}

#[test]
fn unigram_keeps_its_pieces_and_what_happens_to_a_text_first() {
    // Of what looks like spaces before a text, sentencepiece leaves out all, and GGUF's readers one.
    let is_plain = |text: &str| !text.contains('\u{2581}');
    let gguf = assert_same("unigram.model", &directory(&[("tokenizer.model", &fixture("unigram.model"))]), is_plain);
    let key = |name: &str| format!("tokenizer.ggml.{name}");
    let said = |gguf: &Gguf| {
        let flag = |name: &str| gguf.bool(&key(name)).unwrap();
        (flag("add_space_prefix"), flag("remove_extra_whitespaces"))
    };
    assert_eq!(gguf.string(&key("model")).unwrap(), Some("t5"));
    assert_eq!(said(&gguf), (Some(true), Some(true)));
    let table: Vec<u8> =
        gguf.array_i64(&key("precompiled_charsmap")).unwrap().unwrap().map(|byte| byte as u8).collect();
    assert!(table.len() > 100);

    let file: Value = serde_json::from_slice(&fixture("metaspace.json")).unwrap();
    let with = |normalizer: Value, pre_tokenizer: Value| {
        let mut file = file.clone();
        (file["normalizer"], file["pre_tokenizer"]) = (normalizer, pre_tokenizer);
        directory(&[("tokenizer.json", file.to_string().as_bytes())])
    };
    let metaspace = &file["pre_tokenizer"];
    let splits = json!({"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, metaspace]});
    let has_lines_too = |text: &str| text.chars().all(|c| " \n\r\t".contains(c) || !c.is_whitespace() && c != SPACE);
    let table = json!({"type": "Precompiled", "precompiled_charsmap": BASE64_STANDARD.encode(lines_as_spaces())});
    let gguf = assert_same("words", &with(table, splits), has_lines_too);
    assert_eq!(said(&gguf), (Some(true), Some(true)));
    let has_spaces_alone = |text: &str| text.chars().all(|c| c == ' ' || !c.is_whitespace() && c != SPACE);
    let folds = json!({"type": "Sequence", "normalizers": [
        {"type": "Strip", "strip_left": true, "strip_right": true},
        {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "},
    ]});
    let gguf = assert_same("folded", &with(folds, metaspace.clone()), has_spaces_alone);
    assert_eq!(said(&gguf), (Some(true), Some(true)));
    // Nothing is folded, and a space before a text is enough.
    let begins_with_text = |text: &str| has_spaces_alone(text) && !text.starts_with(' ') && !text.contains("<|im_");
    let gguf = assert_same("as it is", &with(Value::Null, metaspace.clone()), begins_with_text);
    assert_eq!(said(&gguf), (Some(true), Some(false)));
}

#[test]
fn what_a_file_cannot_say_of_unigram_is_refused_by_its_field() {
    let refused = |change: Change<'_>| {
        let mut file: Value = serde_json::from_slice(&fixture("metaspace.json")).unwrap();
        change(&mut file);
        let directory = directory(&[("tokenizer.json", file.to_string().as_bytes())]);
        let error = converted(&directory).expect_err("is refused");
        assert_eq!(error.code, Code::FailedPrecondition);
        error.message
    };
    let lower = json!({"type": "Lowercase"});
    let strip = |left: bool| json!({"type": "Strip", "strip_left": left, "strip_right": true});
    let changes: [(Change<'_>, &str); 10] = [
        // A text's ends, and lines and tabs, would be others without a word.
        (&|file| file["normalizer"] = strip(true), "normalizer: is {\"type\":\"Strip\",\"strip_left\":true,"),
        (&|file| file["normalizer"] = strip(false), "only where they are folded inside it too"),
        (
            &|file| {
                let metaspace = file["pre_tokenizer"].take();
                let steps = json!([{"type": "WhitespaceSplit"}, metaspace]);
                file["pre_tokenizer"] = json!({"type": "Sequence", "pretokenizers": steps});
            },
            "pre_tokenizer: is {\"type\":\"WhitespaceSplit\"}; words are cut at lines and tabs too",
        ),
        // A table that leaves lines as they are.
        (
            &|file| {
                let mut table = lines_as_spaces();
                table[4 + 4 * 26..][..4].fill(0);
                let table = BASE64_STANDARD.encode(table);
                file["normalizer"] = json!({"type": "Precompiled", "precompiled_charsmap": table});
                let metaspace = file["pre_tokenizer"].take();
                let steps = json!([{"type": "WhitespaceSplit"}, metaspace]);
                file["pre_tokenizer"] = json!({"type": "Sequence", "pretokenizers": steps});
            },
            "pre_tokenizer: is {\"type\":\"WhitespaceSplit\"}",
        ),
        (&|file| file["model"]["byte_fallback"] = json!(true), "model.byte_fallback: is true"),
        (&|file| file["model"]["unk_id"] = Value::Null, "model.unk_id: is no id"),
        (&|file| file["normalizer"] = lower.clone(), "normalizer: is {\"type\":\"Lowercase\"}"),
        (&|file| file["pre_tokenizer"] = json!({"type": "Whitespace"}), "pre_tokenizer: is {\"type\":\"Whitespace\"}"),
        (&|file| file["model"]["vocab"][9][0] = json!("a\u{2581}b"), "the piece \"a\u{2581}b\" goes across one"),
        (
            &|file| {
                file["normalizer"] = json!({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "});
                file["pre_tokenizer"]["prepend_scheme"] = json!("never");
            },
            "\"prepend_scheme\":\"never\"",
        ),
    ];
    for (change, field) in changes {
        let why = refused(change);
        assert!(why.contains("tokenizer.json: ") && why.contains(field), "{why}, not {field}");
    }
}

#[test]
fn what_a_file_cannot_say_of_a_tokenizer_is_refused_by_its_field() {
    let refused = |directory: &TempDir| {
        let error = converted(directory).expect_err("is refused");
        assert_eq!(error.code, Code::FailedPrecondition);
        error.message
    };
    let model = |bytes: &[u8]| refused(&directory(&[("tokenizer.model", bytes)]));
    let bpe = fixture("bpe.model");
    let whole = piece("<h1>", TokenType::UserDefined);
    let count = pieces().len();
    for (bytes, field) in [
        (fixture("unigram-symbols.model"), "pieces: have bytes".to_owned()),
        (
            [&fixture("unigram.model")[..], &rule(DUMMY_PREFIX, false)].concat(),
            "add_dummy_prefix: is false beside".to_owned(),
        ),
        (fixture("char.model"), "trainer_spec.model_type: is neither 1".to_owned()),
        (fixture("bpe-unknown.model"), "pieces: are without some of the bytes".to_owned()),
        ([&bpe[..], &rule(REMOVE_EXTRA_WHITESPACES, true)].concat(), "remove_extra_whitespaces: is true".to_owned()),
        ([&bpe[..], &rule(5, false)].concat(), "escape_whitespaces: is false".to_owned()),
        ([&bpe[..], &whole].concat(), format!("pieces[{count}]: is user-defined")),
        (
            [&bpe[..], &piece("x", TokenType::Normal).repeat(SIZE + 1 - count)].concat(),
            "has id 800, but the model has 800".to_owned(),
        ),
    ] {
        let why = model(&bytes);
        assert!(why.contains("tokenizer.model: ") && why.contains(&field), "{why}, not {field}");
    }
    let named = |name: &str, put: &str| refused(&directory(&[(put, &fixture(name))]));
    for (name, why) in
        [("wordpiece.json", "model.type: is \"WordPiece\""), ("word-suffix.json", "model.byte_fallback: is not true")]
    {
        let said = named(name, "tokenizer.json");
        assert!(said.contains(why), "{said}");
    }
    let tiktoken = directory(&[("qwen.tiktoken", &fixture("tiktoken/small.tiktoken"))]);
    let config = fixture("tiktoken/tokenizer_config.json");
    fs::write(tiktoken.path().join("tokenizer_config.json"), config).unwrap();
    assert!(refused(&tiktoken).contains("qwen.tiktoken: tokenizer: is no sentencepiece model"));

    let changed = |change: &dyn Fn(&mut Value)| {
        let mut file = tokenizer_json(&pieces(), true);
        change(&mut file);
        refused(&with_json(&file))
    };
    let metaspace = json!({"type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": "first", "split": true});
    let changes: [(Change<'_>, &str); 8] = [
        (&|file| file["model"]["ignore_merges"] = json!(true), "model.ignore_merges: is true"),
        (&|file| file["model"]["end_of_word_suffix"] = json!("</w>"), "model.end_of_word_suffix: is \"</w>\""),
        (&|file| file["normalizer"] = json!({"type": "NFKC"}), "normalizer: is {\"type\":\"NFKC\"}; spaces"),
        (&|file| file["normalizer"] = Value::Null, "normalizer: is null; spaces"),
        (&|file| file["pre_tokenizer"] = metaspace.clone(), "pre_tokenizer: is {"),
        (
            &|file| {
                let vocab = file["model"]["vocab"].as_object_mut().unwrap();
                let id = vocab.remove("<0x80>").unwrap();
                vocab.insert("<0x80".to_owned(), id);
            },
            "model.vocab: has no <0x80>",
        ),
        // Another pair of the first piece, behind all others.
        (
            &|file| {
                let merges = file["model"]["merges"].as_array_mut().unwrap();
                let first = merges[0].clone();
                merges.push(first);
            },
            "again, after other pieces",
        ),
        (
            &|file| {
                file["model"]["merges"].as_array_mut().unwrap().pop();
            },
            "model.merges: do not have",
        ),
    ];
    for (change, field) in changes {
        let why = changed(change);
        assert!(why.contains(field), "{why}, not {field}");
    }
}

/// Of what the tests above rest on: the texts go through merges, bytes, runs of spaces and special tokens.
#[test]
fn the_texts_take_every_way_through_a_tokenizer() {
    let file = with_json(&tokenizer_json(&gemma_pieces(), false));
    let tokenizer = Tokenizer::from_directory(file.path()).unwrap().unwrap();
    let pieces = gemma_pieces();
    let mut seen = BTreeMap::new();
    for id in texts().iter().flat_map(|text| tokenizer.encode(text, false).unwrap()) {
        let (piece, _, kind) = &pieces[id.index()];
        let kind = if piece.starts_with("\u{2581}\u{2581}") { "run".to_owned() } else { format!("{kind:?}") };
        *seen.entry(kind).or_insert(0) += 1;
    }
    for kind in ["Normal", "Byte", "Control", "UserDefined", "run"] {
        assert!(seen.get(kind).is_some_and(|&times| times > 50), "{kind}: {seen:?}");
    }
}
