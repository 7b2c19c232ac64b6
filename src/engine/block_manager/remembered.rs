//! Contents whose blocks are others' by now, where every layer slides.
//!
//! A prompt that goes on after a cached prefix needs the blocks of its last window only. What comes before is known by name:
//! a content is trusted because it comes after one that was compared, so names and tokens are kept for a while after the
//! blocks are gone. They take a few bytes where the block took many; the oldest are forgotten.

use std::collections::{HashMap, VecDeque};

use super::{BlockHash, prefix::Content};
use crate::ids::TokenId;

/// How many are kept for each block.
const FOR_EACH_BLOCK: usize = 8;

/// Contents without blocks, by their hashes.
#[derive(Debug, Default)]
pub(super) struct Remembered {
    contents: HashMap<BlockHash, (Content, Box<[TokenId]>)>,
    /// In the order in which they lost their blocks; those that have one again may still be here.
    order: VecDeque<(BlockHash, u64)>,
    capacity: usize,
}

impl Remembered {
    /// For a cache of so many blocks.
    pub(super) fn of(num_blocks: usize) -> Self {
        Self { capacity: num_blocks.saturating_mul(FOR_EACH_BLOCK), ..Self::default() }
    }

    /// Keeps a content that has lost its block, unless none are kept.
    pub(super) fn keep(&mut self, content: Content, tokens: &[TokenId]) {
        if self.capacity == 0 {
            return;
        }
        self.order.push_back((content.hash, content.serial));
        self.contents.insert(content.hash, (content, tokens.into()));
        while self.order.len() > self.capacity {
            let Some((hash, serial)) = self.order.pop_front() else { return };
            if self.contents.get(&hash).is_some_and(|(content, _)| content.serial == serial) {
                self.contents.remove(&hash);
            }
        }
    }

    /// The one of that hash, and its tokens.
    pub(super) fn get(&self, hash: BlockHash) -> Option<(&Content, &[TokenId])> {
        self.contents.get(&hash).map(|(content, tokens)| (content, &tokens[..]))
    }

    /// Gives it up.
    pub(super) fn take(&mut self, hash: BlockHash) -> Option<Content> {
        self.contents.remove(&hash).map(|(content, _)| content)
    }

    /// Gives all of them up.
    pub(super) fn clear(&mut self) {
        self.contents.clear();
        self.order.clear();
    }

    /// Hashes of all of them; none twice.
    #[cfg(test)]
    pub(super) fn hashes(&self) -> impl Iterator<Item = &BlockHash> {
        assert!(self.contents.len() <= self.order.len() && self.order.len() <= self.capacity, "more than are kept");
        self.contents.keys()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_are_forgotten() {
        let mut remembered = Remembered::of(1);
        for serial in 0..20 {
            let content = Content { hash: serial.into(), serial, parent: None, parent_hash: None, salt: None };
            remembered.keep(content, &[TokenId(serial as u32)]);
            // The newest has its block again, and loses it again.
            let content = remembered.take(serial.into()).unwrap();
            remembered.keep(content, &[TokenId(serial as u32)]);
            assert!(remembered.hashes().count() <= FOR_EACH_BLOCK);
        }
        assert!(remembered.get(0).is_none());
        assert_eq!(remembered.get(19).map(|(_, tokens)| tokens), Some(&[TokenId(19)][..]));
    }
}
