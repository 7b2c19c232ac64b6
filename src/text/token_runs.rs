//! The runs of tokens that a text can hide in: alone, or with other text before and behind it.

use super::Tokenizer;
use crate::{error::Result, ids::TokenId};

/// Runs a text; a vocabulary with more tokens that hold a text's beginning is cut off there.
const MAX_RUNS: usize = 20_000;

/// For each text the tokens that contain it, and the tokens that end with its beginning, each followed by the tokens of
/// the rest of it: as DRY's inventors find sequence breakers, so that `"\n"` is found in a token of two line feeds too.
/// Takes time in proportion to the vocabulary.
///
/// # Errors
/// The tokenizer's.
pub fn token_runs(tokenizer: &Tokenizer, texts: &[String]) -> Result<Vec<Vec<TokenId>>> {
    let mut runs = Vec::new();
    for text in texts.iter().map(|text| text.as_bytes()).filter(|text| !text.is_empty()) {
        // The tokens of each rest, made when the first token calls for it.
        let mut rests: Vec<Option<Vec<TokenId>>> = vec![None; text.len()];
        for id in (0..tokenizer.vocab_size()).filter_map(|id| u32::try_from(id).ok()).map(TokenId) {
            let bytes = tokenizer.token_bytes(id);
            if runs.len() >= MAX_RUNS {
                break;
            }
            if bytes.windows(text.len()).any(|window| window == text) {
                runs.push(vec![id]);
                continue;
            }
            for overlap in (1..text.len().min(bytes.len() + 1)).filter(|&overlap| bytes.ends_with(&text[..overlap])) {
                let Ok(rest) = std::str::from_utf8(&text[overlap..]) else { continue };
                let tokens = match &mut rests[overlap] {
                    Some(tokens) => tokens,
                    empty => empty.insert(tokenizer.encode(rest, false)?),
                };
                runs.push(std::iter::once(id).chain(tokens.iter().copied()).collect());
            }
        }
    }
    runs.sort_unstable();
    runs.dedup();
    Ok(runs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::vocab::{GgufVocab, TokenType};

    #[test]
    fn a_text_is_found_alone_inside_a_token_and_across_two() {
        let mut vocab = GgufVocab { model: "llama".into(), ..GgufVocab::default() };
        for (token, kind) in [
            ("<unk>", TokenType::Unknown),
            ("a", TokenType::Normal),
            (":", TokenType::Normal),
            ("a:b", TokenType::Normal),
            ("xa", TokenType::Normal),
            ("b", TokenType::Normal),
        ] {
            vocab.tokens.push(token.to_owned());
            vocab.token_types.push(kind);
            vocab.scores.push(0.0);
        }
        let tokenizer = Tokenizer::from_gguf(vocab).unwrap();
        let runs = |text: &str| {
            let runs = token_runs(&tokenizer, &[text.to_owned()]).unwrap();
            runs.into_iter().map(|run| run.into_iter().map(|id| id.0).collect::<Vec<_>>()).collect::<Vec<_>>()
        };
        assert_eq!(runs(":"), [vec![2], vec![3]]);
        let rest = tokenizer.encode(":", false).unwrap().iter().map(|id| id.0).collect::<Vec<_>>();
        let after = |id: u32| [&[id][..], &rest].concat();
        assert_eq!(runs("a:"), [after(1), vec![3], after(4)]);
        assert!(token_runs(&tokenizer, &[]).unwrap().is_empty());
    }
}
