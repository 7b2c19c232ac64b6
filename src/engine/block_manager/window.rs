//! Groups of layers that see the last tokens only: what a sequence need not keep of them, and where it can go on.
//!
//! A token at position `p` sees, in a group with a window, positions from `p + 1 - window` on. So whoever computes from `p` on
//! needs no block that ends before, and who goes back to a position whose window was given back cannot go on there: its
//! tokens are computed again.

use smallvec::{SmallVec, smallvec};

use super::{BlockManager, BlockTable};
use crate::{
    engine::faults::{Fault, planted},
    ids::{BlockId, TokenId},
};

impl BlockManager {
    /// The first block of a group that the token at `position` sees.
    pub(super) fn first_seen(&self, group: usize, position: usize) -> usize {
        (position + 1).saturating_sub(self.groups.window(group)) / self.block_size
    }

    /// Gives back the blocks that no token from `position` on sees, once they can be found: whoever finds them comes after the
    /// steps under way, which compute all of `tokens` before `position`, and when those are done it would be too late.
    pub fn leave_behind(&mut self, table: &mut BlockTable, tokens: &[TokenId], position: usize) {
        if self.groups.num_full() == self.groups.count() || planted(Fault::WindowNotLeft) {
            return;
        }
        self.register(table, tokens, position);
        for (group, list) in table.groups.iter_mut().enumerate().skip(self.groups.num_full()) {
            let too_many = usize::from(planted(Fault::WindowLeftTooEarly));
            let first_seen = (self.first_seen(group, position) + too_many).min(list.blocks.len());
            for block in &mut list.blocks[list.num_behind.min(first_seen)..first_seen] {
                self.let_go(std::mem::replace(block, BlockId::NULL));
                self.counters.left_behind += 1;
            }
            list.num_behind = list.num_behind.max(first_seen);
        }
    }

    /// Whether the table has all that the token at `position` sees before itself.
    pub(super) fn sees_enough(&self, table: &BlockTable, position: usize) -> bool {
        let has = |group, num_behind| num_behind <= self.first_seen(group, position);
        table.groups.iter().enumerate().all(|(group, list)| has(group, list.num_behind))
            || planted(Fault::WindowNotChecked)
    }

    /// Of the contents with these serials, one after another, how many a prompt of `num_tokens` can be continued after: every
    /// group must have what the next token sees. `blocks` are those of the first group.
    pub(super) fn usable(&self, blocks: &[Option<BlockId>], serials: &[u64], num_tokens: usize) -> usize {
        if planted(Fault::WindowNotChecked) {
            return serials.len();
        }
        let first_seen = |group, len| self.first_seen(group, self.next_position(len, num_tokens));
        let has = |group, i: usize| match group {
            0 => blocks[i].is_some(),
            _ => self.beside.contains_key(&(serials[i], group)),
        };
        longest_usable(serials.len(), self.groups.count(), first_seen, has)
    }

    /// Of a prompt of `num_tokens`, the position of the first that must be computed where `num_blocks` are cached: the very
    /// last always is, since somebody wants to see what comes after it.
    pub(super) fn next_position(&self, num_blocks: usize, num_tokens: usize) -> usize {
        (num_blocks * self.block_size).min(num_tokens.saturating_sub(1))
    }
}

/// The longest beginning of `most` blocks after which each group has all that the next token sees: `has` them from `first_seen`
/// on, which grows with the length. Asks for each block of a group once at most, however many are gone.
fn longest_usable(
    most: usize,
    num_groups: usize,
    first_seen: impl Fn(usize, usize) -> usize,
    mut has: impl FnMut(usize, usize) -> bool,
) -> usize {
    let mut len = most;
    // From there to `len` each group has all.
    let mut there: SmallVec<[usize; 8]> = smallvec![most; num_groups];
    while len > 0 {
        let mut missing = None;
        for (group, there) in there.iter_mut().enumerate() {
            *there = len.min(*there);
            let first = first_seen(group, len);
            while first < *there && has(group, *there - 1) {
                *there -= 1;
            }
            if first < *there {
                missing = Some(missing.map_or(*there - 1, |missing: usize| missing.min(*there - 1)));
            }
        }
        match missing {
            // Whatever ends after it and lacks it does not see enough either: its window begins no later.
            Some(missing) => len = missing,
            None => break,
        }
    }
    len
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::{
        config::KvCacheGroups,
        engine::{block_manager::blake3_128, fake::Random},
    };

    /// Blocks of two tokens; one layer sees all, one the last four tokens.
    fn mixed(num_blocks: usize) -> BlockManager {
        BlockManager::new(num_blocks, 2, true, blake3_128).with_groups(KvCacheGroups::of(&[None, Some(4)]), 4)
    }

    /// Every layer sees the last four tokens.
    fn sliding(num_blocks: usize) -> BlockManager {
        BlockManager::new(num_blocks, 2, true, blake3_128).with_groups(KvCacheGroups::of(&[Some(4)]), 4)
    }

    fn tokens(first: u32, count: u32) -> Vec<TokenId> {
        (first..first + count).map(TokenId).collect()
    }

    /// Computes `tokens`, in steps of up to four, after what the cache has of them.
    fn compute(manager: &mut BlockManager, table: &mut BlockTable, tokens: &[TokenId], mut computed: usize) {
        while computed < tokens.len() {
            let end = tokens.len().min(computed + 4);
            manager.leave_behind(table, tokens, computed);
            assert!(manager.reserve(table, computed..tokens.len(), &mut Vec::new()));
            manager.register(table, tokens, end);
            computed = end;
        }
    }

    fn visit(manager: &mut BlockManager, tokens: &[TokenId]) -> (BlockTable, usize) {
        let mut table = BlockTable::default();
        let cached = manager.adopt_prefix(&mut table, tokens);
        compute(manager, &mut table, tokens, cached);
        (table, cached)
    }

    fn held(table: &BlockTable) -> Vec<usize> {
        table.groups.iter().map(|group| group.all_held().len()).collect()
    }

    #[test]
    fn a_window_holds_its_tokens_and_those_of_a_step() {
        let mut manager = mixed(64);
        let text = tokens(0, 60);
        let (mut table, _) = visit(&mut manager, &text[..40]);
        // The last step computed 36 to 39, which see from 33 on.
        assert_eq!(held(&table), [20, 4]);
        for end in 41..60 {
            manager.leave_behind(&mut table, &text, end - 1);
            assert!(manager.reserve(&mut table, end - 1..end, &mut Vec::new()));
            assert!(held(&table)[1] <= 3, "{:?}", held(&table));
        }
        manager.audit([&table].into_iter()).unwrap();
        manager.release(&mut table);
        assert_eq!(manager.num_free(), 64);
    }

    #[test]
    fn a_pool_too_small_for_a_whole_sequence_serves_one_whose_layers_all_slide() {
        let mut manager = sliding(6);
        let (table, _) = visit(&mut manager, &tokens(0, 500));
        assert_eq!(table.num_covered(), 250);
        assert!(table.num_held() <= 5, "{}", table.num_held());
    }

    #[test]
    fn a_hit_needs_the_whole_chain_of_the_first_group_and_a_window_of_the_others() {
        let prompt = tokens(0, 13);
        let mut manager = mixed(64);
        let (mut table, cached) = visit(&mut manager, &prompt);
        assert_eq!(cached, 0);
        manager.release(&mut table);
        let mut again = BlockTable::default();
        assert_eq!(manager.adopt_prefix(&mut again, &prompt), 12);
        // The next token, at 12, sees from 9 on.
        assert_eq!((held(&again), again.groups[1].num_behind), (vec![6, 2], 4));
        manager.audit([&again].into_iter()).unwrap();
        manager.release(&mut again);

        // Without the sliding block of the tokens 8 and 9, the last place to go on is before it, at 8.
        let mut probe = BlockTable::default();
        manager.find_prefix(&mut probe, &prompt);
        let lost = manager.beside[&(probe.serials[4], 1)];
        manager.forget(lost);
        assert_eq!(manager.lookup(None, &prompt), 8);
        assert_eq!(manager.adopt_prefix(&mut again, &prompt), 8);
        assert_eq!((held(&again), again.groups[1].num_behind), (vec![4, 2], 2));
        manager.audit([&again].into_iter()).unwrap();
    }

    #[test]
    fn the_longest_prefix_that_can_be_gone_on_from_is_found_and_no_block_is_looked_up_twice() {
        let mut random = Random(7);
        let mut usable = 0;
        for _ in 0..2000 {
            let (most, windows) = (random.below(40), [usize::MAX, 1 + random.below(9), 1 + random.below(9)]);
            let first = random.below(3);
            let windows = &windows[first..];
            // Some lack next to nothing, some nearly all.
            let rarely = 2 + random.below(30);
            let there: Vec<Vec<bool>> =
                windows.iter().map(|_| (0..most).map(|_| random.below(rarely) > 0).collect()).collect();
            let first_seen = |group: usize, len: usize| (len + 1).saturating_sub(windows[group]);
            let fits = |len: &usize| {
                (0..windows.len()).all(|g| there[g][first_seen(g, *len).min(*len)..*len].iter().all(|&b| b))
            };
            let expected = (0..=most).rev().find(fits).unwrap();
            let looks = Cell::new(0);
            let found = longest_usable(most, windows.len(), first_seen, |group, i| {
                looks.set(looks.get() + 1);
                there[group][i]
            });
            assert_eq!(found, expected, "{windows:?} {there:?}");
            assert!(looks.get() <= most * windows.len(), "{} looks at {most} blocks", looks.get());
            usable += usize::from(found > 0 && found < most);
        }
        assert!(usable > 100, "{usable}");
    }

    #[test]
    fn where_all_layers_slide_a_prefix_needs_the_blocks_of_its_last_window_only() {
        let mut manager = sliding(8);
        let prompt = tokens(0, 41);
        for cached in [0, 40] {
            let (mut table, found) = visit(&mut manager, &prompt);
            assert_eq!(found, cached, "its first blocks are others' by now");
            manager.audit([&table].into_iter()).unwrap();
            manager.release(&mut table);
        }
        // Another one takes the blocks of the window too, and what is computed again has its names again.
        for _ in 0..2 {
            let (mut table, _) = visit(&mut manager, &tokens(100, 41));
            manager.release(&mut table);
            assert_eq!(manager.lookup(None, &prompt), 0);
            let (mut table, _) = visit(&mut manager, &prompt);
            manager.release(&mut table);
            assert_eq!(manager.lookup(None, &prompt), 40);
        }
        manager.audit(std::iter::empty()).unwrap();
        manager.forget_free();
        assert_eq!(manager.lookup(None, &prompt), 0, "nothing is remembered");
    }

    #[test]
    fn a_content_that_goes_takes_what_stands_beside_it() {
        let prompt = tokens(0, 8);
        let mut manager = mixed(8);
        let (mut table, _) = visit(&mut manager, &prompt);
        manager.release(&mut table);
        assert_eq!(manager.num_cached(), 8);
        let mut probe = BlockTable::default();
        let chain = manager.find_prefix(&mut probe, &prompt);
        manager.forget(chain[3].unwrap());
        assert_eq!((manager.num_cached(), manager.lookup(None, &prompt)), (6, 6));
        manager.audit(std::iter::empty()).unwrap();
    }

    #[test]
    fn who_goes_back_further_than_its_window_begins_anew() {
        let prompt = tokens(0, 21);
        for (mut manager, back_to) in [(mixed(64), 10), (sliding(64), 10), (mixed(64), 16), (sliding(64), 16)] {
            let (mut table, _) = visit(&mut manager, &prompt);
            let kept = manager.truncate(&mut table, back_to);
            // The last step computed the token at 20, which sees from 17 on; the one at 16 sees from 13 on.
            assert_eq!((kept, table.is_empty()), (0, true), "back to {back_to}");
            let (mut table, _) = visit(&mut manager, &prompt[..20]);
            assert_eq!(manager.truncate(&mut table, 19), 19);
            assert!(!table.is_empty());
        }
    }

    #[test]
    fn a_table_that_has_left_everything_behind_is_not_one_that_holds_nothing_yet() {
        let groups = KvCacheGroups::of(&[Some(1)]);
        let mut manager = BlockManager::new(8, 2, true, blake3_128).with_groups(groups, 4);
        let prompt = tokens(0, 9);
        let (table, _) = visit(&mut manager, &prompt);
        let (fork, cached) = manager.fork(&table, 8);
        assert_eq!((cached, fork.num_held(), fork.num_covered(), fork.is_empty()), (8, 0, 4, false));
    }

    #[test]
    fn a_fork_within_the_window_shares_it_and_one_before_it_gets_nothing() {
        let prompt = tokens(0, 21);
        let mut manager = mixed(64);
        let (table, _) = visit(&mut manager, &prompt);
        let (early, cached) = manager.fork(&table, 8);
        assert_eq!((cached, early.is_empty()), (0, true));
        let (fork, cached) = manager.fork(&table, 20);
        assert_eq!((cached, held(&fork)), (20, vec![10, 2]));
        manager.audit([&table, &fork].into_iter()).unwrap();
    }
}
