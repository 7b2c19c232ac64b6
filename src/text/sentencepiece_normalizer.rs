//! What sentencepiece does to a text before it looks for pieces: characters replaced, spaces folded and written as `▁`.
//!
//! The table of characters (`precompiled_charsmap`) is that of SentencePiece's `NormalizerSpec`: four bytes with the
//! length of a double-array trie (Darts-clone's units), the trie, and the replacements, each ended by a zero byte.

use super::trie::Trie;

/// How pieces write a space.
pub(super) const SPACE: char = '\u{2581}';

/// The rules of one vocabulary.
#[derive(Default)]
pub(super) struct Normalizer {
    pub(super) charsmap: Option<Charsmap>,
    /// Puts a space before a text (behind it with `treat_whitespace_as_suffix`).
    pub(super) add_dummy_prefix: bool,
    /// Spaces at both ends go, and of several in a row one stays.
    pub(super) remove_extra_whitespaces: bool,
    pub(super) treat_whitespace_as_suffix: bool,
    /// Writes spaces as `▁`.
    pub(super) escape_whitespaces: bool,
}

impl Normalizer {
    /// The normal form of a text; what `kept` begins with stays as it is.
    pub(super) fn normalize(&self, text: &str, kept: &Trie) -> String {
        let space = if self.escape_whitespaces { SPACE } else { ' ' };
        let mut rest = text;
        if self.remove_extra_whitespaces {
            while !rest.is_empty() {
                let (replaced, len) = self.replace(rest, kept);
                if replaced != " " {
                    break;
                }
                rest = &rest[len..];
            }
        }
        if rest.is_empty() {
            return String::new();
        }
        let mut out = String::with_capacity(rest.len() + 3);
        if self.add_dummy_prefix && !self.treat_whitespace_as_suffix {
            out.push(space);
        }
        let mut after_space = self.remove_extra_whitespaces;
        while !rest.is_empty() {
            let (mut replaced, len) = self.replace(rest, kept);
            if after_space {
                replaced = replaced.trim_start_matches(' ');
            }
            if !replaced.is_empty() {
                out.extend(replaced.chars().map(|c| if c == ' ' { space } else { c }));
                after_space = replaced.ends_with(' ');
            }
            rest = &rest[len..];
            after_space &= self.remove_extra_whitespaces;
        }
        if self.remove_extra_whitespaces {
            out.truncate(out.trim_end_matches(space).len());
        }
        if self.add_dummy_prefix && self.treat_whitespace_as_suffix {
            out.push(space);
        }
        out
    }

    /// What the beginning of a text (not empty) becomes, and how many bytes of it that is.
    fn replace<'t>(&'t self, text: &'t str, kept: &Trie) -> (&'t str, usize) {
        if let Some((len, _)) = kept.longest_prefix(text.as_bytes()) {
            return (&text[..len], len);
        }
        if let Some(found) = self.charsmap.as_ref().and_then(|map| map.replace(text)) {
            return found;
        }
        let len = text.chars().next().map_or(1, char::len_utf8);
        (&text[..len], len)
    }
}

/// A table of replacements for sequences of characters.
pub(super) struct Charsmap {
    units: Vec<u32>,
    replacements: Vec<u8>,
}

impl Charsmap {
    /// Reads the bytes of a vocabulary file; none where they are empty.
    ///
    /// # Errors
    /// What is wrong with them, in words.
    pub(super) fn new(bytes: &[u8]) -> Result<Option<Self>, String> {
        if bytes.is_empty() {
            return Ok(None);
        }
        let (len, rest) = bytes.split_first_chunk::<4>().ok_or("is shorter than the length it begins with")?;
        let len = u32::from_le_bytes(*len) as usize;
        if !len.is_multiple_of(4) || len > rest.len() {
            return Err(format!("gives its trie {len} bytes, a multiple of 4 up to {} fits", rest.len()));
        }
        let (units, replacements) = rest.split_at(len);
        let units = units.as_chunks::<4>().0.iter().map(|unit| u32::from_le_bytes(*unit)).collect();
        Ok(Some(Self { units, replacements: replacements.to_vec() }))
    }

    /// The bytes that it was read from.
    pub(super) fn bytes(&self) -> Vec<u8> {
        let len = (self.units.len() * 4) as u32;
        let units = self.units.iter().flat_map(|unit| unit.to_le_bytes());
        len.to_le_bytes().into_iter().chain(units).chain(self.replacements.iter().copied()).collect()
    }

    /// The longest sequence that `text` begins with: what replaces it, and its bytes.
    fn replace(&self, text: &str) -> Option<(&str, usize)> {
        let offset = |unit: u32| ((unit >> 10) << ((unit & (1 << 9)) >> 6)) as usize;
        let mut node = offset(*self.units.first()?);
        let mut found = None;
        for (n, byte) in text.bytes().enumerate() {
            node ^= usize::from(byte);
            let Some(&unit) = self.units.get(node) else { break };
            if unit & ((1 << 31) | 0xff) != u32::from(byte) {
                break;
            }
            node ^= offset(unit);
            if unit & (1 << 8) != 0 {
                let value = self.units.get(node).map_or(0, |unit| unit & 0x7fff_ffff);
                found = Some((value as usize, n + 1));
            }
        }
        let (start, len) = found.filter(|(_, len)| text.is_char_boundary(*len))?;
        let replacement = self.replacements.get(start..)?.split(|&byte| byte == 0).next()?;
        Some((std::str::from_utf8(replacement).ok()?, len))
    }
}

/// Whether a table (`precompiled_charsmap`) makes a space of each of these characters.
#[must_use]
pub fn makes_spaces(table: &[u8], characters: &str) -> bool {
    let table = Charsmap::new(table).ok().flatten();
    let replaced = |c: char| table.as_ref().and_then(|table| table.replace(c.encode_utf8(&mut [0; 4])));
    characters.chars().all(|c| replaced(c).is_some_and(|(by, _)| by == " "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spaces_are_folded_and_written_as_asked() {
        let normal = |normalizer: &Normalizer, text| normalizer.normalize(text, &Trie::new([(&b"  x"[..], 0)]));
        let mut rules = Normalizer { add_dummy_prefix: true, escape_whitespaces: true, ..Normalizer::default() };
        assert_eq!(normal(&rules, " a  b "), "▁▁a▁▁b▁");
        assert_eq!(normal(&rules, ""), "");
        rules.remove_extra_whitespaces = true;
        assert_eq!(normal(&rules, "  a   b  "), "▁a▁b");
        assert_eq!(normal(&rules, "   "), "");
        assert_eq!(normal(&rules, "a  xb"), "▁a▁▁xb", "what is kept keeps its spaces");
        rules.treat_whitespace_as_suffix = true;
        assert_eq!(normal(&rules, "a b"), "a▁b▁");
        rules.escape_whitespaces = false;
        assert_eq!(normal(&rules, "a b"), "a b ");
    }

    #[test]
    fn a_table_that_lies_is_refused_or_replaces_nothing() {
        assert!(Charsmap::new(&[]).unwrap().is_none());
        assert!(Charsmap::new(&[1, 0]).is_err());
        assert!(Charsmap::new(&[8, 0, 0, 0, 1, 2, 3, 4]).is_err());
        use rand::{RngExt, SeedableRng};
        let mut rng = rand::rngs::SmallRng::seed_from_u64(6);
        for _ in 0..5000 {
            let mut bytes: Vec<u8> = (0..64).map(|_| rng.random()).collect();
            bytes[..4].copy_from_slice(&40_u32.to_le_bytes());
            let normalizer = Normalizer { charsmap: Charsmap::new(&bytes).unwrap(), ..Normalizer::default() };
            std::hint::black_box(normalizer.normalize("a é 漢🦙", &Trie::default()));
        }
    }
}
