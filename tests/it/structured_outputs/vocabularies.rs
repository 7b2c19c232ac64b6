//! Masks against the bytes of every token, on the vocabulary inside the program and on one with byte fallback.

use std::sync::Arc;

use candlewick::{
    engine::vocabulary,
    ids::TokenId,
    params::{Constraint, SamplingParams},
    sampling::grammar::{Compiler, Matcher, Next},
    text::{GgufVocab, TokenType, Tokenizer},
};

use super::{Vocabulary, demo, random_text};

/// A sentencepiece vocabulary of bytes and a few words.
fn byte_fallback() -> Vocabulary {
    let mut tokens = vec![("<unk>".to_owned(), TokenType::Unknown), ("<s>".to_owned(), TokenType::Control)];
    tokens.push(("</s>".to_owned(), TokenType::Control));
    tokens.extend((0..=255).map(|byte| (format!("<0x{byte:02X}>"), TokenType::Byte)));
    let words =
        ["▁", "e", "r", "d", "o", "n", "s", "re", "red", "▁red", "rose", "on", "one", "ed", "▁t", "\"", "{", "}"];
    tokens.extend(words.iter().map(|word| ((*word).to_owned(), TokenType::Normal)));
    let size = tokens.len();
    let (tokens, token_types) = tokens.into_iter().unzip();
    let vocab = GgufVocab {
        model: "llama".into(),
        tokens,
        token_types,
        scores: (0..size).map(|k| -(k as f32)).collect(),
        bos: Some(1),
        eos: Some(2),
        unk: Some(0),
        ..GgufVocab::default()
    };
    // The model has more rows than the tokenizer has tokens.
    Vocabulary { tokenizer: Arc::new(Tokenizer::from_gguf(vocab).expect("a vocabulary")), size: size + 21 }
}

fn built_in() -> Vocabulary {
    let loaded = demo();
    Vocabulary { tokenizer: loaded.text.tokenizer.expect("a tokenizer"), size: loaded.info.vocab_size }
}

/// Goes along each of `choices`, token by token as the longest token says, and compares every mask with what the bytes
/// of all tokens say.
fn compare(vocab: &Vocabulary, choices: &[&str]) {
    let Vocabulary { tokenizer, size } = vocab;
    let compiler = Compiler::new(&vocabulary(tokenizer, *size)).expect("a vocabulary");
    let all = choices.iter().map(|choice| (*choice).to_owned()).collect();
    let grammar = compiler.compile(&Constraint::Choice(all).into()).expect("a grammar");
    let eos = tokenizer.eos().expect("an end");
    let bytes = |id: TokenId| if tokenizer.is_special(id) { &[][..] } else { tokenizer.token_bytes(id) };
    let mut masks = 0;
    for choice in choices {
        let mut matcher = Matcher::new(&grammar, &SamplingParams::default(), &[eos]).expect("a start");
        let mut text = Vec::new();
        while text.len() < choice.len() {
            for forced in matcher.take_forced(usize::MAX).collect::<Vec<_>>() {
                text.extend_from_slice(bytes(forced));
            }
            let Next::Mask(mask) = matcher.what_next().expect("a mask") else { break };
            masks += 1;
            let goes_on = |id: TokenId| {
                let longer = [&text, bytes(id)].concat();
                !bytes(id).is_empty() && choices.iter().any(|choice| choice.as_bytes().starts_with(&longer))
            };
            let complete = choices.iter().any(|choice| choice.as_bytes() == text);
            for id in (0..*size as u32).map(TokenId) {
                let expected = goes_on(id) || (complete && id == eos);
                assert_eq!(
                    mask.allows(id),
                    expected,
                    "token {id} {:?} after {:?}",
                    bytes(id),
                    String::from_utf8_lossy(&text)
                );
            }
            let next = (0..*size as u32)
                .map(TokenId)
                .filter(|&id| mask.allows(id) && id != eos && choice.as_bytes()[text.len()..].starts_with(bytes(id)))
                .max_by_key(|&id| bytes(id).len());
            let Some(next) = next else { break };
            text.extend_from_slice(bytes(next));
            matcher.accept(next).expect("an allowed token");
        }
        assert_eq!(String::from_utf8_lossy(&text), *choice);
    }
    assert!(masks > choices.len(), "{masks} masks: most of these texts are forced");
}

/// Ambiguous to their ends, so that little is forced.
const CHOICES: [&str; 8] = ["red", "red rose", "re", "one", "on ", "one é", "one è", "redo"];

#[test]
fn masks_on_a_vocabulary_with_byte_fallback_are_those_of_the_bytes() {
    compare(&byte_fallback(), &CHOICES);
}

#[test]
fn masks_on_the_built_in_vocabulary_are_those_of_the_bytes() {
    compare(&built_in(), &CHOICES);
}

#[test]
fn tokens_that_spell_nothing_are_never_chosen() {
    let vocab = byte_fallback();
    let compiler = Compiler::new(&vocabulary(&vocab.tokenizer, vocab.size)).expect("a vocabulary");
    let grammar = compiler.compile(&Constraint::Regex("(.|\n){0,40}".into()).into()).expect("a grammar");
    for seed in 0..20 {
        // Invalid UTF-8 would show as a replacement character.
        let text = random_text(&vocab.tokenizer, &grammar, vocab.size, seed, 400).expect("an end");
        assert!(!text.contains('\u{fffd}') && text.chars().count() <= 40, "{text:?}");
    }
}
