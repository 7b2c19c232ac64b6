//! What each token id stands for: its bytes, and whether it is special. One table, whatever the tokenizer.
//!
//! Decoding works on these bytes and not on strings, because a token may hold part of a character.

use crate::{error::Result, ids::TokenId};

/// Most entries a vocabulary may have; the largest in use have a quarter of it.
pub(super) const MAX_VOCAB: usize = 1 << 20;

/// Bytes and kind of every token, in one allocation.
#[derive(Default)]
pub(super) struct TokenTable {
    bytes: Vec<u8>,
    /// Token `id` has `bytes[ends[id - 1]..ends[id]]`.
    ends: Vec<usize>,
    special: Vec<bool>,
}

impl TokenTable {
    /// A table of `size` tokens, each given by `spell(id) -> (bytes, is it special)`.
    pub(super) fn build(size: usize, mut spell: impl FnMut(usize) -> Result<(Vec<u8>, bool)>) -> Result<Self> {
        let mut table = Self::default();
        for id in 0..size {
            let (bytes, special) = spell(id)?;
            table.bytes.extend_from_slice(&bytes);
            table.ends.push(table.bytes.len());
            table.special.push(special);
        }
        Ok(table)
    }

    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    /// The bytes of a token; none for an id outside the table.
    pub(super) fn bytes(&self, id: TokenId) -> &[u8] {
        let id = id.index();
        let Some(&end) = self.ends.get(id) else { return &[] };
        let start = if id == 0 { 0 } else { self.ends[id - 1] };
        &self.bytes[start..end]
    }

    pub(super) fn is_special(&self, id: TokenId) -> bool {
        self.special.get(id.index()).copied().unwrap_or(false)
    }
}

/// The byte that a character of the byte-level alphabet stands for.
///
/// GPT-2 spells each byte as one printable character: printable Latin-1 stands for itself, the 68 other bytes are
/// U+0100 and up, in order.
pub(super) fn byte_of_char(c: char) -> Option<u8> {
    match c as u32 {
        code @ (0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff) => Some(code as u8),
        code @ 0x100..=0x120 => Some((code - 0x100) as u8),
        code @ 0x121..=0x142 => Some((code - 0x121 + 0x7f) as u8),
        0x143 => Some(0xad),
        _ => None,
    }
}

/// The character that the byte-level alphabet spells a byte with.
pub(super) fn char_of_byte(byte: u8) -> char {
    let code = match byte {
        0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => u32::from(byte),
        0..=0x20 => 0x100 + u32::from(byte),
        0x7f..=0xa0 => 0x121 + u32::from(byte - 0x7f),
        0xad => 0x143,
    };
    char::from_u32(code).unwrap_or_default()
}

/// The bytes of a byte-level token, or its UTF-8 where a character is outside the alphabet (added tokens).
pub(super) fn byte_level_bytes(token: &str) -> Vec<u8> {
    token.chars().map(byte_of_char).collect::<Option<_>>().unwrap_or_else(|| token.as_bytes().to_vec())
}

/// The byte that a sentencepiece byte token (`<0x0A>`) stands for.
pub(super) fn byte_of_token(token: &str) -> Option<u8> {
    let hex = token.strip_prefix("<0x")?.strip_suffix('>')?;
    // from_str_radix would take a sign.
    let is_hex = hex.len() == 2 && hex.bytes().all(|digit| digit.is_ascii_hexdigit());
    if is_hex { u8::from_str_radix(hex, 16).ok() } else { None }
}

/// The bytes of a sentencepiece token: `▁` is a space.
pub(super) fn sentencepiece_bytes(token: &str) -> Vec<u8> {
    token.replace('\u{2581}', " ").into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_byte_level_alphabet_has_one_character_for_each_byte() {
        let mut seen = [false; 256];
        for byte in (0..0x200).filter_map(char::from_u32).filter_map(byte_of_char) {
            assert!(!seen[byte as usize], "byte {byte} twice");
            seen[byte as usize] = true;
        }
        assert!(seen.iter().all(|&s| s));
        assert!((0..=255).all(|byte| byte_of_char(char_of_byte(byte)) == Some(byte)));
        assert_eq!(byte_of_char('Ġ'), Some(b' '));
        assert_eq!(byte_of_char('Ċ'), Some(b'\n'));
        assert_eq!(byte_level_bytes("âĤ¬"), "€".as_bytes());
        assert_eq!(byte_level_bytes("<｜end｜>"), "<｜end｜>".as_bytes());
    }

    #[test]
    fn a_byte_token_is_its_byte_and_nothing_like_it_is() {
        assert_eq!(byte_of_token("<0x0A>"), Some(10));
        for not in ["<0x0>", "<0x0AB>", "0x0A", "<0x+A>", "<0xGG>", "<0x>"] {
            assert_eq!(byte_of_token(not), None, "{not}");
        }
    }

    #[test]
    fn an_id_outside_the_table_has_no_bytes() {
        let table = TokenTable::build(2, |id| Ok((vec![b'a'; id + 1], id == 1))).unwrap();
        assert_eq!(table.bytes(TokenId(0)), b"a");
        assert_eq!(table.bytes(TokenId(1)), b"aa");
        assert_eq!(table.bytes(TokenId(2)), b"");
        assert!(table.is_special(TokenId(1)) && !table.is_special(TokenId(9)));
    }
}
