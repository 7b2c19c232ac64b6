//! The blocks that nobody holds, in the order in which they will be used again.

use crate::ids::BlockId;

/// Blocks in the order of their reuse: a list through an array, so that any of them leaves in constant time.
#[derive(Debug)]
pub(super) struct FreeList {
    /// Each block's neighbours, and last those of the ring's open end.
    links: Vec<Link>,
    pub(super) len: usize,
}

#[derive(Clone, Copy, Debug)]
struct Link {
    previous: u32,
    next: u32,
}

impl FreeList {
    /// All of `num_blocks`, the lowest first.
    pub(super) fn new(num_blocks: usize) -> Self {
        let ring = num_blocks as u32 + 1;
        let links = (0..ring).map(|i| Link { previous: (i + ring - 1) % ring, next: (i + 1) % ring }).collect();
        Self { links, len: num_blocks }
    }

    fn end(&self) -> u32 {
        self.links.len() as u32 - 1
    }

    pub(super) fn push_front(&mut self, block: BlockId) {
        self.insert(block, self.links[self.end() as usize].next);
    }

    pub(super) fn push_back(&mut self, block: BlockId) {
        self.insert(block, self.end());
    }

    fn insert(&mut self, block: BlockId, next: u32) {
        let previous = self.links[next as usize].previous;
        self.links[block.index()] = Link { previous, next };
        self.links[previous as usize].next = block.0;
        self.links[next as usize].previous = block.0;
        self.len += 1;
    }

    pub(super) fn remove(&mut self, block: BlockId) {
        let Link { previous, next } = self.links[block.index()];
        self.links[previous as usize].next = next;
        self.links[next as usize].previous = previous;
        self.len -= 1;
    }

    /// The first one; the caller knows that there is one.
    pub(super) fn pop_front(&mut self) -> BlockId {
        debug_assert!(self.len > 0);
        let block = BlockId(self.links[self.end() as usize].next);
        self.remove(block);
        block
    }

    #[cfg(test)]
    pub(super) fn iter(&self) -> impl Iterator<Item = BlockId> {
        let mut at = self.end();
        std::iter::from_fn(move || {
            at = self.links[at as usize].next;
            (at != self.end()).then_some(BlockId(at))
        })
    }
}
