//! WordPiece (`bert`) vocabularies that lie outside of a `tokenizer.json`: in a GGUF file, or as `vocab.txt`.

use tokenizers::{
    models::{bpe::Vocab, wordpiece::WordPiece},
    normalizers::BertNormalizer,
    pre_tokenizers::bert::BertPreTokenizer,
};

use super::tokenizer_split::{Cutter, Pipeline};

/// What goes on with a word.
pub(super) const CONTINUING: &str = "##";

/// Longest word that is cut into pieces, in characters; longer ones are unknown, as in BERT.
const MAX_WORD_CHARS: usize = 100;

/// The pipeline of BERT over these tokens, written as BERT does (`##ing`). Text is put into lower case where no ordinary
/// token has a capital.
///
/// # Errors
/// In words, where the vocabulary does not fit.
pub(super) fn pipeline(tokens: &[String], is_special: impl Fn(usize) -> bool, unk: &str) -> Result<Pipeline, String> {
    let has_capitals = |token: &String| token.chars().any(char::is_uppercase);
    let lowercase = !(0..tokens.len()).any(|id| !is_special(id) && has_capitals(&tokens[id]));
    let model = WordPiece::builder()
        .vocab(tokens.iter().cloned().zip(0..).collect::<Vocab>())
        .unk_token(unk.to_owned())
        .continuing_subword_prefix(CONTINUING.to_owned())
        .max_input_chars_per_word(MAX_WORD_CHARS)
        .build()
        .map_err(|error| error.to_string())?;
    let mut pipeline = Pipeline::new(model.into());
    pipeline
        .with_normalizer(Some(BertNormalizer::new(true, true, None, lowercase)))
        .map_err(|error| error.to_string())?;
    pipeline.with_pre_tokenizer(Some(Cutter::Library(BertPreTokenizer.into())));
    Ok(pipeline)
}

/// The bytes of a token: a space before what begins a word, and none before marks that English writes behind one.
pub(super) fn bytes(token: &str, prefix: &str, cleanup: bool) -> Vec<u8> {
    let spelled = token.strip_prefix(prefix).map_or_else(|| format!(" {token}"), str::to_owned);
    if !cleanup {
        return spelled.into_bytes();
    }
    CLEANED.iter().fold(spelled, |text, (from, to)| text.replace(from, to)).into_bytes()
}

/// What Hugging Face's WordPiece decoder replaces, in its order.
const CLEANED: &[(&str, &str)] = &[
    (" .", "."),
    (" ?", "?"),
    (" !", "!"),
    (" ,", ","),
    (" ' ", "'"),
    (" n't", "n't"),
    (" 'm", "'m"),
    (" do not", " don't"),
    (" 's", "'s"),
    (" 've", "'ve"),
    (" 're", "'re"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn case_is_kept_where_the_vocabulary_has_capitals() {
        let encode = |words: &[&str], text: &str| {
            let tokens: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
            let pipeline = pipeline(&tokens, |id| id == 0, "[UNK]").unwrap();
            pipeline.encode_fast(text, false).unwrap().get_ids().to_vec()
        };
        assert_eq!(encode(&["[UNK]", "cafe", "##s", "!"], "CAFÉs! x"), [1, 2, 3, 0]);
        assert_eq!(encode(&["[UNK]", "Cafe", "##s"], "Cafes cafes"), [1, 2, 0]);
        assert_eq!(encode(&["[UNK]", "a"], &"a".repeat(101)), [0]);
    }

    #[test]
    fn words_are_joined_as_english_writes_them() {
        let spell = |token: &str| String::from_utf8(bytes(token, CONTINUING, true)).unwrap();
        assert_eq!(["the", "##re", ".", "'s", "##."].map(spell), [" the", "re", ".", "'s", "."]);
        assert_eq!(bytes(".", CONTINUING, false), b" .");
    }
}
