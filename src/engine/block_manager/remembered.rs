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
    contents: HashMap<BlockHash, Kept>,
    /// In the order in which they lost their blocks, with the number of that loss; those that have one again may still be here.
    order: VecDeque<(BlockHash, u64)>,
    num_kept: u64,
    capacity: usize,
}

#[derive(Debug)]
struct Kept {
    content: Content,
    tokens: Box<[TokenId]>,
    number: u64,
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
        let (hash, number) = (content.hash, self.num_kept);
        self.num_kept += 1;
        self.order.push_back((hash, number));
        self.contents.insert(hash, Kept { content, tokens: tokens.into(), number });
        // An entry whose content has had a block since stands for nothing.
        let stands = |contents: &HashMap<_, Kept>, (hash, number): &(BlockHash, u64)| {
            contents.get(hash).is_some_and(|kept| kept.number == *number)
        };
        while self.contents.len() > self.capacity {
            let Some(oldest) = self.order.pop_front() else { return };
            if stands(&self.contents, &oldest) {
                self.contents.remove(&oldest.0);
            }
        }
        if self.order.len() > 2 * self.capacity {
            self.order.retain(|entry| stands(&self.contents, entry));
        }
    }

    /// The one of that hash, and its tokens.
    pub(super) fn get(&self, hash: BlockHash) -> Option<(&Content, &[TokenId])> {
        self.contents.get(&hash).map(|kept| (&kept.content, &kept.tokens[..]))
    }

    /// Gives it up.
    pub(super) fn take(&mut self, hash: BlockHash) -> Option<Content> {
        self.contents.remove(&hash).map(|kept| kept.content)
    }

    /// Gives all of them up.
    pub(super) fn clear(&mut self) {
        self.contents.clear();
        self.order.clear();
    }

    /// Hashes of all of them; none twice.
    #[cfg(test)]
    pub(super) fn hashes(&self) -> impl Iterator<Item = &BlockHash> {
        assert!(self.contents.len() <= self.capacity, "more than are kept");
        assert!((self.contents.len()..=2 * self.capacity).contains(&self.order.len()), "more entries than are of use");
        self.contents.keys()
    }
}

#[cfg(test)]
mod tests {
    use std::iter;

    use super::*;

    fn content(serial: u64) -> Content {
        Content { hash: serial.into(), serial, parent: None, parent_hash: None, salt: None }
    }

    #[test]
    fn the_oldest_are_forgotten() {
        let mut remembered = Remembered::of(1);
        for serial in 0..20 {
            remembered.keep(content(serial), &[TokenId(serial as u32)]);
            assert!(remembered.hashes().count() <= FOR_EACH_BLOCK);
        }
        assert!(remembered.get(11).is_none());
        for serial in 12..20u64 {
            assert_eq!(remembered.get(serial.into()).map(|(_, tokens)| tokens), Some(&[TokenId(serial as u32)][..]));
        }
    }

    #[test]
    fn what_had_a_block_again_is_as_old_as_its_last_loss() {
        let mut remembered = Remembered::of(1);
        (0..FOR_EACH_BLOCK as u64).for_each(|serial| remembered.keep(content(serial), &[]));
        for serial in iter::repeat_n(0u64, 5 * FOR_EACH_BLOCK).chain([1]) {
            let again = remembered.take(serial.into()).unwrap();
            remembered.keep(again, &[]);
            assert_eq!(remembered.hashes().count(), FOR_EACH_BLOCK);
        }
        remembered.keep(content(8), &[]);
        let left: Vec<_> = (0..9u64).filter(|&serial| remembered.get(serial.into()).is_some()).collect();
        assert_eq!(left, [0, 1, 3, 4, 5, 6, 7, 8], "the third has waited longest");
    }
}
