//! A tokenizer that is written down as a tokenizer.json and read again says the same.

use std::path::Path;

use candlewick::{engine::load::load_tokenizer, error::Code, text::Tokenizer};

use crate::{text_vectors::shared, tokenizers};

/// Texts of many kinds, besides those of the small vocabularies.
const TEXTS: &[&str] = &[
    "Once upon a time there was a fox, who had 3 friends.",
    "  two  spaces, a\ttab\nand lines\r\n\n",
    "été naïve 漢字 ひらがな 한국어 🦙🏽 x_y ½",
    "It's 1234567 o'clock; don't!",
    "",
];

fn again(tokenizer: &Tokenizer) -> Tokenizer {
    let json = tokenizer.to_json().unwrap();
    Tokenizer::from_json_bytes(Path::new("tokenizer.json"), json.as_bytes()).unwrap()
}

fn assert_same(name: &str, tokenizer: &Tokenizer, texts: &[&str]) {
    let again = again(tokenizer);
    assert_eq!(again.vocab_size(), tokenizer.vocab_size(), "{name}");
    for text in texts {
        for framed in [false, true] {
            let (one, other) = (tokenizer.encode(text, framed).unwrap(), again.encode(text, framed).unwrap());
            assert_eq!(other, one, "{name}: {text:?}, framed {framed}");
            assert_eq!(again.decode(&one, false), tokenizer.decode(&one, false), "{name}: {text:?}");
        }
    }
}

#[test]
fn vocabularies_of_bytes_come_back_whatever_the_text() {
    let vectors: tokenizers::Vectors = tokenizers::read("vectors.json");
    let texts: Vec<&str> = vectors.texts.iter().map(String::as_str).chain(TEXTS.iter().copied()).collect();
    let bytes = ["gpt2.json", "byte-level.json", "byte-level, as GGUF"];
    let all = tokenizers::all().into_iter().filter(|(name, _)| bytes.contains(&name.as_str()));
    assert_eq!(all.map(|(name, tokenizer)| assert_same(&name, &tokenizer, &texts)).count(), bytes.len());
}

#[test]
fn what_the_format_does_not_have_is_said() {
    for (name, tokenizer) in tokenizers::all() {
        let refused = ["char.model", "word.model"].contains(&name.as_str());
        assert_eq!(tokenizer.to_json().err().map(|error| error.code), refused.then_some(Code::Unimplemented), "{name}");
    }
}

#[test]
fn the_model_inside_the_program_comes_back() {
    assert_same("demo", &load_tokenizer(None).unwrap(), TEXTS);
}

#[test]
fn vocabularies_of_gguf_files_come_back() {
    let Some(folder) = shared("data/vocab") else { return };
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    for path in files.filter(|path| path.extension().is_some_and(|extension| extension == "gguf")) {
        assert_same(&path.display().to_string(), &load_tokenizer(Some(&path)).unwrap(), TEXTS);
    }
}
