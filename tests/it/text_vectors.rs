//! Tokenizers and chat templates against what other implementations give: ids to the last one, prompts to the last byte.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use candlewick::{
    config::ModelArgs,
    engine::load::{load, load_tokenizer},
    error::Code,
    ids::TokenId,
    text::{ChatMessage, ChatTemplate, Detokenizer, RenderOptions, Role, Tokenizer},
};
use rand::{RngExt, SeedableRng, rngs::SmallRng};
use serde::Deserialize;
use serde_json::Value;

use crate::place::repository;

/// A path in the folder of shared data (`CANDLEWICK_SHARED`, by default `../shared` beside the crate), if it is there.
pub(crate) fn shared(path: &str) -> Option<PathBuf> {
    let default = || repository("../shared");
    let folder = std::env::var_os("CANDLEWICK_SHARED").map_or_else(default, PathBuf::from);
    let found = folder.join(path);
    if !found.exists() {
        eprintln!("SKIPPED: {} is not there; set CANDLEWICK_SHARED to the folder of shared data", found.display());
    }
    found.exists().then_some(found)
}

fn json<T: serde::de::DeserializeOwned>(path: &Path) -> T {
    serde_json::from_slice(&fs::read(path).expect("a file")).expect("JSON of that shape")
}

fn ids(tokens: &[TokenId]) -> Vec<u32> {
    tokens.iter().map(|token| token.0).collect()
}

/// The tokenizer in a GGUF file.
fn gguf_tokenizer(path: &Path) -> Tokenizer {
    load_tokenizer(Some(path)).expect("a good tokenizer")
}

/// Decoding gives the text back, at once and token by token.
fn assert_round_trip(tokenizer: &Arc<Tokenizer>, text: &str) {
    let tokens = tokenizer.encode(text, false).expect("any text can be encoded");
    assert_eq!(tokenizer.decode(&tokens, false), text, "{tokens:?}");
    let mut detokenizer = Detokenizer::at_start_of_text(tokenizer.clone(), false);
    let mut streamed: String = tokens.iter().map(|&token| detokenizer.push(token)).collect();
    streamed += &detokenizer.finish();
    assert_eq!(streamed, text, "{tokens:?}");
}

/// Text of all kinds of characters: ASCII, spaces and line ends, letters of two to four bytes, anything at all.
fn random_text(rng: &mut SmallRng) -> String {
    let character = |rng: &mut SmallRng| match rng.random_range(0..6) {
        0 => char::from(rng.random_range(b' '..=b'~')),
        1 => [' ', ' ', '\n', '\t', '\r', '\u{2003}'][rng.random_range(0..6)],
        2 => char::from_u32(rng.random_range(0x80..0x800)).unwrap_or('é'),
        3 => char::from_u32(rng.random_range(0x4e00..0x9fff)).unwrap_or('字'),
        4 => char::from_u32(rng.random_range(0x1f300..0x1fb00)).unwrap_or('🦙'),
        _ => char::from_u32(rng.random_range(0..0x11_0000)).unwrap_or('\0'),
    };
    (0..rng.random_range(0..60)).map(|_| character(rng)).collect()
}

#[derive(Deserialize)]
struct Vector {
    text: String,
    ids: Vec<u32>,
}

#[test]
fn every_gguf_vocabulary_encodes_every_vector_exactly() {
    let Some(folder) = shared("data/vocab") else { return };
    let vectors: BTreeMap<String, Vec<Vector>> = json(&folder.join("vectors.json"));
    let mut wrong = Vec::new();
    for (name, vectors) in &vectors {
        let tokenizer = Arc::new(gguf_tokenizer(&folder.join(format!("ggml-vocab-{name}.gguf"))));
        for Vector { text, ids: expected } in vectors {
            let got = ids(&tokenizer.encode(text, false).expect("any text can be encoded"));
            if got != *expected {
                wrong.push(format!("{name}: {text:?}: {got:?}, not {expected:?}"));
            }
            assert_round_trip(&tokenizer, text);
        }
        let mut rng = SmallRng::seed_from_u64(11);
        for _ in 0..500 {
            assert_round_trip(&tokenizer, &random_text(&mut rng));
        }
        println!("{name}: {} vectors, {} tokens", vectors.len(), tokenizer.vocab_size());
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_gguf_vocabulary_frames_a_text_as_its_model_was_trained() {
    let Some(folder) = shared("data/vocab") else { return };
    let encode = |name: &str, text: &str| {
        ids(&gguf_tokenizer(&folder.join(format!("ggml-vocab-{name}.gguf"))).encode(text, true).expect("a short text"))
    };
    assert_eq!(encode("llama-spm", "Hello"), [1, 15043]);
    assert_eq!(encode("llama-spm", "<s>a</s> b"), [1, 1, 263, 2, 29871, 289]);
    assert_eq!(encode("qwen2", "<|im_start|>user\nhi"), [151_644, 872, 198, 6023]);
    assert_eq!(encode("gpt-2", "Hello<|endoftext|>"), [15496, 50256]);
}

#[test]
fn the_trained_stories_tokenizer_loads_and_comes_back() {
    let Some(path) = shared("data/checkpoints/stories260K/stories260K.gguf") else { return };
    let tokenizer = Arc::new(gguf_tokenizer(&path));
    assert_eq!((tokenizer.bos(), tokenizer.eos(), tokenizer.vocab_size()), (Some(TokenId(1)), Some(TokenId(2)), 512));
    assert_round_trip(&tokenizer, "Once upon a time, there was a little girl named Lily.\n");
}

#[derive(Deserialize)]
struct Encodings {
    entries: Vec<Encoding>,
}

#[derive(Deserialize)]
struct Encoding {
    text: String,
    ids: Vec<u32>,
    ids_special: Vec<u32>,
    decode: String,
}

#[test]
fn the_mistral_tokenizer_encodes_and_decodes_as_recorded() {
    let Some(folder) = shared("data/tokenizers/mistral") else { return };
    let tokenizer = Tokenizer::from_file(&folder.join("tokenizer.json")).expect("a good tokenizer");
    let recorded: Encodings = json(&folder.join("encodings.json"));
    for Encoding { text, ids: expected, ids_special, decode } in recorded.entries {
        let tokens = tokenizer.encode(&text, false).expect("any text can be encoded");
        assert_eq!(ids(&tokens), expected, "{text:?}");
        assert_eq!(ids(&tokenizer.encode(&text, true).expect("as above")), ids_special, "{text:?}");
        assert_eq!(tokenizer.decode(&tokens, false), decode, "{text:?}");
    }
}

#[test]
fn a_tokenizer_file_and_a_gguf_file_of_one_model_agree() {
    let (Some(file), Some(vocab)) = (shared("data/tokenizers/phi-3-mini/tokenizer.json"), shared("data/vocab")) else {
        return;
    };
    let file = Tokenizer::from_file(&file).expect("a good tokenizer");
    let gguf = gguf_tokenizer(&vocab.join("ggml-vocab-phi-3.gguf"));
    assert_eq!((file.bos(), file.eos()), (Some(TokenId(1)), Some(TokenId(32000))));
    for id in (0..file.vocab_size() as u32).map(TokenId).filter(|&id| !gguf.is_special(id)) {
        assert_eq!(file.token_bytes(id), gguf.token_bytes(id), "{id}");
    }
    let mut rng = SmallRng::seed_from_u64(5);
    for _ in 0..500 {
        let text = random_text(&mut rng);
        let (a, b) = (file.encode(&text, false).expect("any text"), gguf.encode(&text, false).expect("any text"));
        assert_eq!(ids(&a), ids(&b), "{text:?}");
    }
}

#[test]
fn a_unigram_tokenizer_loads_and_comes_back() {
    let Some(path) = shared("data/tokenizers/t5-small/tokenizer.json") else { return };
    let tokenizer = Arc::new(Tokenizer::from_file(&path).expect("a good tokenizer"));
    assert_eq!(tokenizer.eos(), Some(TokenId(1)));
    assert_round_trip(&tokenizer, "translate English to German: The house is wonderful.");
}

#[derive(Deserialize)]
struct TemplateCase {
    name: String,
    template: String,
    bos_token: String,
    eos_token: String,
    expected_jinja: String,
    messages: Vec<Value>,
    add_generation_prompt: bool,
    jinja2_oracle: String,
}

#[test]
fn every_template_case_renders_to_the_last_byte() {
    let Some(path) = shared("data/templates/llama_cpp_cases.json") else { return };
    let (mut matched, mut wrong) = (0, Vec::new());
    for case in json::<Vec<TemplateCase>>(&path) {
        if case.jinja2_oracle == "skipped" {
            println!("left out: {} wants additional_special_tokens, which the case does not record", case.name);
            continue;
        }
        let mut messages = case.messages;
        if case.jinja2_oracle == "differs" {
            // The recorded text is for a model that knows no system role: there it was put before the first question.
            let system = messages.remove(0);
            let text = |message: &Value| message["content"].as_str().expect("a text").to_owned();
            messages[0]["content"] = format!("{}\n{}", text(&system), text(&messages[0])).into();
        }
        let template = ChatTemplate::new(&case.template, &case.bos_token, &case.eos_token).expect("it compiles");
        let options = RenderOptions { add_generation_prompt: case.add_generation_prompt, ..RenderOptions::default() };
        match template.render_messages(&messages, &options) {
            Ok(text) if text == case.expected_jinja => matched += 1,
            other => {
                wrong.push(format!("{} ({}): {other:?}\nnot {:?}", case.name, case.jinja2_oracle, case.expected_jinja))
            }
        }
    }
    println!("{matched} template cases match");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What transformers renders for each real template, conversation and set of options (`tests/oracles/chat_templates.py`).
#[derive(Deserialize)]
struct Oracle {
    conversations: BTreeMap<String, Vec<Value>>,
    options: BTreeMap<String, OracleOptions>,
    /// A conversation and a set of options each.
    cases: Vec<(String, String)>,
    /// By template, one entry a case: a hash of the text, `raised` and a hash of the message, or `failed` and a reason.
    templates: BTreeMap<String, Vec<String>>,
    /// Why Jinja failed.
    reasons: Vec<String>,
}

impl Oracle {
    /// The reason, of an entry that has one.
    fn reason(&self, entry: &str) -> Option<&str> {
        let reason = entry.strip_prefix("failed ")?.parse::<usize>().expect("a number");
        Some(&self.reasons[reason])
    }
}

#[derive(Deserialize)]
struct OracleOptions {
    #[serde(default)]
    add_generation_prompt: bool,
    #[serde(default)]
    continue_final_message: bool,
    #[serde(default)]
    tools: Vec<Value>,
    #[serde(default)]
    documents: Vec<Value>,
    #[serde(default)]
    kwargs: serde_json::Map<String, Value>,
}

/// The 64-bit hash of Fowler, Noll and Vo, variant 1a.
fn fnv1a(text: &str) -> String {
    let hash =
        text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |h, byte| (h ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    format!("{hash:016x}")
}

#[test]
fn real_templates_render_as_transformers_renders_them() {
    let Some(folder) = shared("data/templates/real") else { return };
    let oracle: Oracle = json(&repository("tests/data/chat_templates.json"));
    let (mut rendered, mut raised, mut failed, mut lenient, mut wrong) = (0, 0, 0, BTreeMap::new(), Vec::new());
    // 25 July 2026, 17:20 UTC.
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_785_000_000);
    for (name, rows) in &oracle.templates {
        let template = match ChatTemplate::from_file(&folder.join(name), "<bos>", "<eos>") {
            Ok(template) => template,
            Err(error) => {
                wrong.push(format!("{name}: {error}"));
                continue;
            }
        };
        for ((conversation, option), expected) in oracle.cases.iter().zip(rows) {
            let given = &oracle.options[option];
            let options = RenderOptions {
                add_generation_prompt: given.add_generation_prompt,
                continue_final_message: given.continue_final_message,
                tools: given.tools.clone(),
                documents: given.documents.clone(),
                variables: given.kwargs.clone(),
                template: None,
                now,
            };
            let got = template.render_messages(&oracle.conversations[conversation], &options);
            if let Some(reason) = oracle.reason(expected) {
                match got {
                    Err(_) => failed += 1,
                    Ok(_) => *lenient.entry((reason, name.as_str())).or_insert(0) += 1,
                }
                continue;
            }
            match (got, expected.as_str()) {
                (Ok(text), hash) if fnv1a(&text) == *hash => rendered += 1,
                (Err(error), hash)
                    if error
                        .violations
                        .first()
                        .is_some_and(|v| format!("raised {}", fnv1a(&v.description)) == hash) =>
                {
                    raised += 1;
                }
                (got, expected) => wrong.push(format!("{name}: {conversation}, {option}: {expected}: {got:?}")),
            }
        }
    }
    let patient: usize = lenient.values().sum();
    println!(
        "real templates: {rendered} rendered alike, {raised} raised alike, {failed} failed in both, {patient} failed in \
         Jinja alone:"
    );
    lenient.iter().for_each(|((reason, name), count)| println!("{count:4}  {reason}  ({name})"));
    assert!(wrong.is_empty(), "{} wrong\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn the_built_in_model_spells_all_bytes_and_knows_its_roles() {
    let loaded = load(&ModelArgs::default(), None, &mut |_| ()).expect("it is inside");
    let (tokenizer, template) = (loaded.text.tokenizer.expect("it has one"), loaded.text.chat_template);
    let mut rng = SmallRng::seed_from_u64(2);
    for _ in 0..300 {
        assert_round_trip(&tokenizer, &random_text(&mut rng));
    }

    let template = template.expect("it has one");
    let talk = [(Role::System, "Be brief. "), (Role::User, "Hi"), (Role::Assistant, "Hello"), (Role::User, "Bye")];
    let talk = talk.map(|(role, text)| ChatMessage::new(role, text));
    let prompt = template.render(&talk, &RenderOptions::default()).expect("it knows these roles");
    let want = "<|endoftext|><|system|>Be brief.<|end|><|user|>Hi<|end|><|assistant|>Hello<|end|><|user|>Bye<|end|><|assistant|>";
    assert_eq!(prompt, want);
    let tokens = tokenizer.encode(&prompt, false).expect("short");
    assert_eq!(tokens.iter().filter(|&&token| tokenizer.is_special(token)).count(), 10);
    assert_eq!(loaded.info.eos_token_ids, [tokenizer.eos().expect("it has one")]);
    let error = template.render(&[ChatMessage::new(Role::Tool, "4")], &RenderOptions::default()).expect_err("no tools");
    assert_eq!(error.code, Code::InvalidArgument);
}
