//! What changes in the prefix cache, for those who want to know what could be found there: routers.
//!
//! The engine thread writes changes down here and hands them over when there is somebody with room to take them. The
//! list is bounded: where it would grow longer than the cache is large, it is dropped, and the next to take it gets
//! the cache as it is instead.
//!
//! Of several groups of layers only the first is told of: whether the others still have what a prompt's next token sees may
//! change between a router's choice and the request, as the rest may.

use std::sync::Arc;

use super::{BlockHash, BlockManager, Salt};
use crate::ids::TokenId;

/// A change of what the prefix cache holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BlockEvent {
    /// This block can be found from now on.
    Stored {
        /// Of its tokens and all before them.
        hash: BlockHash,
        /// That of the block before it; none for a prompt's first.
        parent: Option<BlockHash>,
        /// As many as a block holds.
        tokens: Arc<[TokenId]>,
    },
    /// It cannot any more.
    Removed {
        /// As it was stored with.
        hash: BlockHash,
    },
    /// Nothing can be found any more.
    Cleared,
}

/// Changes that nobody has taken yet.
#[derive(Debug, Default)]
pub(super) struct Changes {
    /// Zero where nobody wants to know.
    capacity: usize,
    events: Vec<BlockEvent>,
    /// There were more than `capacity`.
    overflowed: bool,
}

impl Changes {
    /// A list of at most `capacity` changes.
    pub(super) fn up_to(capacity: usize) -> Self {
        Self { capacity, ..Self::default() }
    }

    /// Writes a change down. `salt` belongs to the block: what a client keeps to itself is nobody else's business, but
    /// who reads these events may know what tenants have.
    pub(super) fn push(&mut self, salt: Option<&Salt>, event: impl FnOnce() -> BlockEvent) {
        if self.capacity == 0 || self.overflowed || !is_told(salt) {
            return;
        }
        if self.events.len() == self.capacity {
            self.events = Vec::new();
            self.overflowed = true;
            return;
        }
        self.events.push(event());
    }
}

/// Whether blocks of this salt are told.
fn is_told(salt: Option<&Salt>) -> bool {
    salt.is_none_or(Salt::is_told)
}

impl BlockManager {
    /// The same manager, which writes down what changes in its prefix cache.
    #[must_use]
    pub fn with_events(mut self, enabled: bool) -> Self {
        // Each block can come and go once before the list is longer than the cache itself.
        self.changes = Changes::up_to(if enabled && self.enable_prefix_caching { 2 * self.num_blocks() } else { 0 });
        self
    }

    /// Whether [`take_events`](Self::take_events) has any.
    #[must_use]
    pub fn has_events(&self) -> bool {
        self.changes.overflowed || !self.changes.events.is_empty()
    }

    /// What has changed since the last call, in order; or, where that was too much to keep, `Cleared` and all that the
    /// cache holds now.
    pub fn take_events(&mut self) -> Vec<BlockEvent> {
        if !std::mem::take(&mut self.changes.overflowed) {
            return std::mem::take(&mut self.changes.events);
        }
        let registered = self.contents.iter().zip(0..).filter_map(|(registered, i)| Some((registered.as_ref()?, i)));
        let mut found: Vec<_> = registered.filter_map(|(registered, i)| Some((registered.content()?, i))).collect();
        // Serials grow, so what comes before a block is stored before it.
        found.sort_unstable_by_key(|(content, _)| content.serial);
        let stored = found.into_iter().filter(|(content, _)| is_told(content.salt.as_ref())).map(|(content, i)| {
            let tokens = self.tokens[i * self.block_size..][..self.block_size].into();
            BlockEvent::Stored { hash: content.hash, parent: content.parent_hash, tokens }
        });
        std::iter::once(BlockEvent::Cleared).chain(stored).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::engine::block_manager::{BlockTable, blake3_128, prefix::Registered};

    fn manager(num_blocks: usize) -> BlockManager {
        BlockManager::new(num_blocks, 2, true, blake3_128).with_events(true)
    }

    /// Computes a prompt and gives its blocks back.
    fn visit(manager: &mut BlockManager, salt: Option<Salt>, ids: &[u32]) {
        let tokens: Vec<_> = ids.iter().copied().map(TokenId).collect();
        let mut table = BlockTable::new(salt);
        let cached = manager.adopt_prefix(&mut table, &tokens);
        assert!(manager.reserve(&mut table, cached..tokens.len(), &mut Vec::new()));
        manager.register(&mut table, &tokens, tokens.len());
        manager.release(&mut table);
    }

    fn follow(known: &mut HashSet<BlockHash>, events: Vec<BlockEvent>) {
        for event in events {
            match event {
                BlockEvent::Stored { hash, .. } => assert!(known.insert(hash), "stored twice"),
                BlockEvent::Removed { hash } => assert!(known.remove(&hash), "removed what was not there"),
                BlockEvent::Cleared => known.clear(),
            }
        }
    }

    fn held(manager: &BlockManager) -> HashSet<BlockHash> {
        let contents = manager.contents.iter().flatten().filter_map(Registered::content);
        contents.filter(|content| is_told(content.salt.as_ref())).map(|content| content.hash).collect()
    }

    #[test]
    fn a_prompts_blocks_are_told_once_each_after_the_one_before() {
        let mut manager = manager(8);
        visit(&mut manager, None, &[1, 2, 3, 4, 5]);
        visit(&mut manager, None, &[1, 2, 3, 4, 6]);
        let events = manager.take_events();
        let [BlockEvent::Stored { hash, parent: None, tokens }, BlockEvent::Stored { parent, tokens: next, .. }] =
            &events[..]
        else {
            panic!("not two stored blocks: {events:?}")
        };
        assert_eq!((&tokens[..], &next[..]), (&[TokenId(1), TokenId(2)][..], &[TokenId(3), TokenId(4)][..]));
        assert_eq!(*parent, Some(*hash));
        assert!(!manager.has_events());
    }

    #[test]
    fn who_follows_the_events_knows_what_can_be_found_taken_often_or_too_late() {
        for often in [true, false] {
            let (mut manager, mut known) = (manager(6), HashSet::new());
            for k in 0..60 {
                visit(&mut manager, None, &[k % 3, 0, k % 5, 1, k % 7, 2, k]);
                if often {
                    follow(&mut known, manager.take_events());
                    assert_eq!(known, held(&manager));
                }
            }
            let events = manager.take_events();
            assert_eq!(events.first() == Some(&BlockEvent::Cleared), !often, "too many to keep");
            assert!(events.len() <= 1 + 6);
            follow(&mut known, events);
            assert_eq!(known, held(&manager));
        }
    }

    #[test]
    fn what_tenants_have_is_told_each_apart() {
        let (mut manager, mut known) = (manager(3), HashSet::new());
        for (name, ids) in [("a", [1, 2, 3, 4]), ("b", [1, 2, 3, 4]), ("a", [5, 6, 7, 8])] {
            visit(&mut manager, Some(Salt::told(name)), &ids);
            follow(&mut known, manager.take_events());
            assert_eq!(known, held(&manager));
        }
        assert_eq!(known.len(), 3, "as many as there are blocks");
        manager.changes.overflowed = true;
        assert_eq!(manager.take_events().len(), 4, "cleared, and all that there is");
    }

    #[test]
    fn what_a_client_keeps_to_itself_is_told_to_nobody() {
        let mut manager = manager(3);
        visit(&mut manager, Some(Salt::untold("client")), &[1, 2, 3, 4]);
        visit(&mut manager, Some(Salt::untold("client")), &[5, 6, 7, 8]);
        assert!(!manager.has_events(), "neither stored nor evicted");
        manager.changes.overflowed = true;
        assert_eq!(manager.take_events(), [BlockEvent::Cleared]);
    }
}
