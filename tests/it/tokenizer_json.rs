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
fn every_kind_of_vocabulary_comes_back_as_it_was_or_says_that_it_cannot() {
    let vectors: tokenizers::Vectors = tokenizers::read("vectors.json");
    let texts: Vec<&str> = vectors.texts.iter().map(String::as_str).chain(TEXTS.iter().copied()).collect();
    let (mut written, mut refused) = (0, 0);
    for (name, tokenizer) in tokenizers::all() {
        match tokenizer.to_json() {
            Err(error) => {
                assert_eq!(error.code, Code::Unimplemented, "{name}: {error}");
                assert!(["char", "word"].iter().any(|kind| name.starts_with(kind)), "{name}: {error}");
                refused += 1;
            }
            Ok(_) => {
                assert_same(&name, &tokenizer, &texts);
                written += 1;
            }
        }
    }
    assert!(written >= 8 && refused >= 2, "{written} written, {refused} refused");
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
