//! Tokenizers and templates that lie, by hand and by mutation.

use candlewick::{
    error::{Code, Result},
    text::{ChatMessage, ChatTemplate, GgufVocab, RenderOptions, Role, TokenType, Tokenizer},
};
use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng, SeedableRng},
};
use serde_json::{Value, json};

use super::{
    assert_names, capped,
    mutator::{MUTATIONS, survive},
    named,
};

const FILE: &str = "tokenizer.json";

fn load(json: &[u8]) -> Result<Tokenizer> {
    capped(|| Tokenizer::from_json_bytes(named(FILE), json))
}

/// A good file with something of everything.
fn good() -> Value {
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": [
            {"id": 0, "content": "<s>", "special": true, "normalized": false, "lstrip": false, "rstrip": false, "single_word": false},
            {"id": 9, "content": "<|x|>", "special": true, "normalized": false, "lstrip": true, "rstrip": true, "single_word": true}
        ],
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Replace", "pattern": {"String": "q"}, "content": "a"}]},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": "[ab]+|\\s+(?!\\S)|[0-9]{1,3}"}, "behavior": "Isolated", "invert": false},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false}
        ]},
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}}},
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": "<s>", "continuing_subword_prefix": "", "end_of_word_suffix": "",
            "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": {"<s>": 0, "a": 1, "b": 2, "ab": 3, "Ġ": 4, "Ġa": 5, "aba": 6, "é": 7},
            "merges": ["a b", ["Ġ", "a"], "ab a"]}
    })
}

/// The good file with one value changed, by JSON pointer.
fn with(pointer: &str, value: Value) -> Vec<u8> {
    let mut file = good();
    *file.pointer_mut(pointer).unwrap_or_else(|| panic!("{pointer} is in the file")) = value;
    file.to_string().into_bytes()
}

#[track_caller]
fn assert_refused(json: &[u8], field: &str, why: &str) {
    assert_names(&load(json).expect_err("the file lies"), FILE, field, why);
}

#[test]
fn a_good_tokenizer_loads() {
    let tokenizer = load(good().to_string().as_bytes()).expect("a good file");
    let ids: Vec<u32> = tokenizer.encode("aba a <|x|>", true).expect("short").iter().map(|id| id.0).collect();
    assert_eq!(ids, [0, 6, 4, 1, 9]);
}

#[test]
fn merges_that_do_not_fit_the_vocabulary_are_refused() {
    assert_refused(&with("/model/merges/0", json!("a zz")), "model.merges[0]", r#"names "zz""#);
    assert_refused(&with("/model/merges/0", json!("b a")), "model.merges[0]", r#"makes "ba""#);
    assert_refused(&with("/model/merges/2", json!("ab")), "model.merges[2]", "a merge");
    assert_refused(&with("/model/merges/2", json!(["a", "b", "a"])), "model.merges[2]", "a merge");
    assert_refused(&with("/model/merges", json!("a b")), "model.merges", "invalid type");
    assert_refused(
        &with("/model/continuing_subword_prefix", json!("##")),
        "model.merges[0]",
        "lacks the continuing_subword_prefix",
    );
}

#[test]
fn ids_that_do_not_fit_are_refused() {
    assert_refused(&with("/model/vocab/b", json!(u32::MAX)), r#"model.vocab["b"]"#, "must be below");
    assert_refused(&with("/model/vocab/b", json!(-1)), "model.vocab", "invalid value");
    assert_refused(&with("/model/vocab", json!({})), "model.merges[0]", "names");
    assert_refused(&with("/added_tokens/1/id", json!(1 << 30)), "added_tokens[1]", "must be below");
    assert_refused(&with("/added_tokens/1/id", json!(3)), "added_tokens[1].id", r#"already "ab""#);
    assert_refused(&with("/added_tokens/0/id", json!(8)), "added_tokens[0].id", "the model gives");
    assert_refused(&with("/added_tokens/1/content", json!("")), "added_tokens[1].content", "is empty");
    assert_refused(&with("/added_tokens/1", json!({"id": "x"})), "added_tokens[1]", "invalid type");
    assert_refused(&with("/post_processor/special_tokens/<s>/ids", json!([77])), "file", "gave id 77");
    let tokenizer = load(good().to_string().as_bytes()).expect("a good file");
    assert_names(&tokenizer.ensure_fits(9).expect_err("it has ten"), FILE, "vocabulary", "vocab_size 9");
    tokenizer.ensure_fits(10).expect("it has ten");
}

#[test]
fn parts_that_cannot_run_are_refused() {
    assert_refused(
        &with("/pre_tokenizer/pretokenizers/0/pattern/Regex", json!("(a")),
        "pre_tokenizer",
        "unclosed group",
    );
    assert_refused(
        &with("/pre_tokenizer/pretokenizers/0/pattern/Regex", json!("((a{999}){999}){999}")),
        "pre_tokenizer",
        "error building NFA",
    );
    assert_refused(
        &with("/pre_tokenizer/pretokenizers/0", json!({"type": "FixedLength", "length": 0})),
        "pre_tokenizer",
        "length 0",
    );
    assert_refused(
        &with("/normalizer/normalizers/1/content", json!("x".repeat(1 << 20))),
        "normalizer",
        "1048576 bytes",
    );
    assert_refused(
        &with("/normalizer", json!({"type": "Precompiled", "precompiled_charsmap": "AAAA"})),
        "normalizer",
        "makes the tokenizers crate panic",
    );
    let single = "/post_processor/single/0";
    assert_refused(&with(single, json!({"SpecialToken": {"id": "<t>", "type_id": 0}})), "post_processor", r#""<t>""#);
    assert_refused(&with(single, json!({"Sequence": {"id": "B", "type_id": 0}})), "post_processor", r#"sequence "B""#);
    assert_refused(&with("/decoder", json!({"type": "CTC"})), "decoder", r#"a step "CTC""#);
    assert_refused(&with("/model/type", json!("WordPiece")), "model.type", "WordPiece");
    assert_refused(&with("/model", json!(3)), "model", "invalid type");
    assert_refused(b"{", "file", "EOF");
    assert_refused("[".repeat(100_000).as_bytes(), "file", "");
}

#[test]
fn what_would_only_cost_is_left_out() {
    let padding = json!({"strategy": {"Fixed": u32::MAX}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0, "pad_type_id": 0, "pad_token": "a"});
    for json in [with("/padding", padding), with("/model/dropout", json!(1.0))] {
        let tokenizer = load(&json).expect("it loads");
        assert_eq!(tokenizer.encode("aba", false).expect("short").len(), 1);
    }
}

/// A small vocabulary of each kind.
fn vocabulary(model: &str) -> GgufVocab {
    let mut vocab = GgufVocab { path: "tiny.gguf".into(), model: model.into(), ..GgufVocab::default() };
    let tokens = [("<unk>", TokenType::Unknown), ("<s>", TokenType::Control), ("</s>", TokenType::Control)];
    let words = ["a", "b", "ab", "\u{2581}"].map(|word| (word, TokenType::Normal));
    for (token, kind) in tokens.into_iter().chain(words) {
        vocab.tokens.push(token.to_owned());
        vocab.token_types.push(kind);
        vocab.scores.push(-1.0);
    }
    if model == "gpt2" {
        vocab.pre = Some("qwen2".into());
        vocab.merges = vec!["a b".into()];
    }
    vocab
}

#[test]
fn gguf_vocabularies_that_lie_are_refused() {
    let refused = |model: &str, change: &dyn Fn(&mut GgufVocab), field: &str, why: &str| {
        let mut vocab = vocabulary(model);
        Tokenizer::from_gguf(vocab.clone()).expect("a good vocabulary");
        change(&mut vocab);
        let error = capped(|| Tokenizer::from_gguf(vocab)).expect_err("it lies");
        assert_names(&error, "tiny.gguf", &format!("tokenizer.ggml.{field}"), why);
    };
    for model in ["llama", "gpt2"] {
        refused(model, &|v| v.tokens.clear(), "tokens", "0 entries");
        refused(model, &|v| v.token_types.truncate(2), "token_type", "2 entries for 7 tokens");
        refused(model, &|v| v.bos = Some(7), "bos_token_id", "there are 7 tokens");
        refused(model, &|v| v.eos = Some(1 << 31), "eos_token_id", "there are 7 tokens");
        refused(model, &|v| v.model = "rwkv".into(), "model", "tokenizer.json");
    }
    refused("llama", &|v| v.scores.truncate(3), "scores", "3 entries for 7 tokens");
    refused("llama", &|v| v.token_types[3] = TokenType::Byte, "tokens[3]", "must look like <0x0A>");
    for (merge, why) in [("ab", "two tokens"), (" a", "two tokens"), ("b a", r#"no "ba""#), ("a zz", r#"no "zz""#)] {
        refused("gpt2", &|v| v.merges.push(merge.into()), "merges[1]", why);
    }
}

#[test]
fn mutated_gguf_vocabularies_are_read_or_refused() {
    let mut stream = ChaCha8Rng::seed_from_u64(4);
    let mut below = |limit: usize| (stream.next_u64() % limit as u64) as usize;
    let texts = ["", " ", "a", "ab", "b a", "<0x41>", "\u{2581}a", "é", "Ġ", "<s>", "\0", "a b c"];
    let (mut good, mut refused) = (0, 0);
    for n in 0..MUTATIONS as usize {
        let mut vocab = vocabulary(["llama", "gpt2"][n % 2]);
        for _ in 0..1 + below(4) {
            let at = below(vocab.tokens.len().max(1));
            let id = [None, Some(0), Some(3), Some(6), Some(7), Some(u32::MAX - 1), Some(u32::MAX)][below(7)];
            match below(10) {
                0 => vocab.tokens.push(texts[below(texts.len())].to_owned()),
                1 => vocab
                    .tokens
                    .iter_mut()
                    .skip(at)
                    .take(1)
                    .for_each(|token| *token = texts[below(texts.len())].to_owned()),
                2 => vocab
                    .token_types
                    .iter_mut()
                    .skip(at)
                    .take(1)
                    .for_each(|t| *t = TokenType::from_number(below(8) as i64)),
                3 => vocab.scores.iter_mut().skip(at).take(1).for_each(|s| *s = f32::from_bits(below(1 << 32) as u32)),
                4 => vocab.merges.push(texts[below(texts.len())].to_owned()),
                5 => vocab.bos = id,
                6 => vocab.eos = id,
                7 => vocab.unk = id,
                8 => vocab.pre = Some(["qwen2", "tekken", "deepseek-v3", "new"][below(4)].to_owned()),
                _ => (vocab.add_bos, vocab.add_space_prefix) = (Some(below(2) == 0), Some(below(2) == 0)),
            }
        }
        match capped(|| Tokenizer::from_gguf(vocab)) {
            Ok(tokenizer) => {
                good += 1;
                if let Ok(ids) = tokenizer.encode("<s> ab aba\t 12345 é漢🦙\0  ", true) {
                    std::hint::black_box(tokenizer.decode(&ids, false));
                }
            }
            Err(error) => {
                refused += 1;
                assert!(error.message.starts_with("tiny.gguf: tokenizer.ggml."), "{error}");
            }
        }
    }
    println!("of {MUTATIONS} vocabularies {good} are read, {refused} are refused");
    assert!(good > 1000 && refused > 1000, "{good} read, {refused} refused");
}

#[test]
fn scores_that_are_no_numbers_still_give_tokens() {
    let mut vocab = vocabulary("llama");
    vocab.scores = vec![f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, f32::NAN, f32::NAN, 0.0];
    let tokenizer = Tokenizer::from_gguf(vocab).expect("scores are only compared");
    let ids = tokenizer.encode("ab ab", false).expect("short");
    assert_eq!(tokenizer.decode(&ids, false), "ab ab");
}

#[test]
fn a_text_beyond_the_limit_is_refused() {
    let tokenizer = Tokenizer::from_gguf(vocabulary("llama")).expect("a good vocabulary");
    let error = tokenizer.encode(&"a".repeat(candlewick::text::MAX_TEXT_BYTES + 1), false).expect_err("too long");
    assert_eq!((error.code, error.violations[0].field.as_str()), (Code::InvalidArgument, "text"));
}

#[test]
fn mutated_templates_are_rendered_or_refused() {
    let source = "{{ bos_token }}{% set ns = namespace(n=0) %}{% for m in messages %}{% if loop.index > 3 %}{% break %}{% endif %}{% set ns.n = ns.n + 1 %}{% macro f(x, n=2) %}{{ x | upper }}{{ n * 3 }}{% endmacro %}{{ f(m.role) ~ m['content'].split(' ')[0:2] | join('+') | trim }}{{ m | tojson(indent=2) }}{% endfor %}{% for i in range(5) %}{{ i // 2 % 3 - 1 ** 2 }}{% endfor %}{{ strftime_now('%Y') if ns.n is defined and not (ns.n == 9) else raise_exception('no') }}";
    let messages = [ChatMessage::new(Role::User, "hello you there"), ChatMessage::new(Role::Assistant, "é")];
    survive("chat_template", source.as_bytes(), source.len(), |bytes| {
        let source = String::from_utf8_lossy(&bytes);
        let template = ChatTemplate::new(&source, "<s>", "</s>")?;
        match template.render(&messages, &RenderOptions::default()) {
            Err(error) if error.code != Code::InvalidArgument => Err(error),
            _ => Ok(()),
        }
    });
}
