//! Emptying the prefix cache of what nobody uses.

use super::BlockManager;
use crate::ids::BlockId;

impl BlockManager {
    /// Forgets the contents of all free blocks; says of how many.
    pub fn forget_free(&mut self) -> usize {
        let free = |block: &usize| self.ref_counts[*block] == 0 && self.contents[*block].is_some();
        let cached: Vec<_> = (0..self.contents.len()).filter(free).collect();
        // A content may have taken what comes later here along.
        for &block in &cached {
            self.forget(BlockId(block as u32));
        }
        self.remembered.clear();
        cached.len()
    }

    /// Blocks whose content can be found, held or free.
    #[must_use]
    pub fn num_registered(&self) -> usize {
        self.num_cached()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        engine::block_manager::{BlockTable, blake3_128},
        ids::TokenId,
    };

    #[test]
    fn what_nobody_holds_is_forgotten_and_what_somebody_holds_is_not() {
        let mut manager = BlockManager::new(8, 2, true, blake3_128);
        let mut tables = [10, 20].map(|first| {
            let (tokens, mut table) = ([first, first + 1, first + 2, first + 3].map(TokenId), BlockTable::default());
            assert!(manager.reserve(&mut table, 0..4, &mut Vec::new()));
            manager.register(&mut table, &tokens, 4);
            table
        });
        manager.release(&mut tables[0]);
        assert_eq!((manager.forget_free(), manager.num_registered()), (2, 2));
        assert_eq!(manager.lookup(None, &[10, 11, 12, 13, 14].map(TokenId)), 0);
        assert_eq!(manager.lookup(None, &[20, 21, 22, 23, 24].map(TokenId)), 4);
        assert_eq!(manager.forget_free(), 0, "nothing is left");
        manager.audit([&tables[1]].into_iter()).unwrap();
    }
}
