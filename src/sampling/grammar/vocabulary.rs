//! A tokenizer's vocabulary as the parser walks it: a trie of the bytes of all tokens.

use std::sync::Arc;

use toktrie::{TokEnv, TokRxInfo, TokTrie, TokenizerEnv};

use crate::ids::TokenId;

/// Longer tokens are never allowed; the trie takes no more than 1,024 bytes, and no vocabulary has such text.
const LONGEST_TOKEN_BYTES: usize = 512;

/// Cuts a text that goes on from other text into tokens; any cut will do, the model's own is the best.
type Encode = Box<dyn Fn(&str) -> Vec<TokenId> + Send + Sync>;

/// The bytes of a model's tokens. One more token than the model has stands for the end of the text, because a model may
/// have no such token, or many.
#[derive(Clone)]
pub struct Vocabulary {
    pub(super) env: TokEnv,
    pub(super) end: u32,
}

struct Env {
    trie: TokTrie,
    encode: Encode,
    /// Whether every byte of UTF-8 has a token, so that any text can be spelled out.
    spells_all: bool,
}

impl Vocabulary {
    /// The vocabulary of a model with `size` tokens. `spell` gives a token's bytes and whether it is special: a special
    /// token spells nothing, and matches only where a Lark grammar names it (`<|tool|>`).
    #[must_use]
    pub fn new<'a>(size: usize, spell: impl Fn(TokenId) -> (&'a [u8], bool), encode: Encode) -> Self {
        let mut single = [false; 256];
        let mut words: Vec<Vec<u8>> = Vec::with_capacity(size + 1);
        for id in 0..size {
            let word = match spell(TokenId(id as u32)) {
                (bytes, _) if bytes.len() > LONGEST_TOKEN_BYTES => Vec::new(),
                ([], _) => Vec::new(),
                (bytes, true) => [&[TokTrie::SPECIAL_TOKEN_MARKER], bytes].concat(),
                // The parser's own marks begin with this byte, which no UTF-8 holds.
                ([TokTrie::SPECIAL_TOKEN_MARKER, ..], false) => Vec::new(),
                (bytes, false) => bytes.to_vec(),
            };
            if let [byte] = word[..] {
                single[byte as usize] = true;
            }
            words.push(word);
        }
        let end = size as u32;
        words.push([&[TokTrie::SPECIAL_TOKEN_MARKER], "<end of the text>".as_bytes()].concat());
        let trie = TokTrie::from(&TokRxInfo::new(end + 1, end), &words);
        let spells_all = (0..=0xf4).filter(|byte| !matches!(byte, 0xc0 | 0xc1)).all(|byte: usize| single[byte]);
        Self { env: Arc::new(Env { trie, encode, spells_all }), end }
    }

    /// Tokens of the model.
    #[must_use]
    pub fn size(&self) -> usize {
        self.end as usize
    }
}

impl TokenizerEnv for Env {
    fn tok_trie(&self) -> &TokTrie {
        &self.trie
    }

    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<u32> {
        self.trie.tokenize_with_greedy_fallback(bytes, |text| {
            let ids: Vec<u32> = (self.encode)(text).into_iter().map(|id| id.0).collect();
            // A tokenizer that puts a space first, or takes a text for a special token, is not asked again.
            let spelled = ids.iter().flat_map(|&id| self.trie.token(id));
            if spelled.eq(text.as_bytes()) { ids } else { self.trie.greedy_tokenize(text.as_bytes()) }
        })
    }

    /// Whether tokens may be forced: the parser must be able to cut whatever text is forced.
    fn tokenize_is_canonical(&self) -> bool {
        self.spells_all
    }
}
