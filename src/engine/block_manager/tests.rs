//! What tables hold, share and find.

use super::*;
use crate::engine::executor::BlockCopy;

fn manager(num_blocks: usize) -> BlockManager {
    BlockManager::new(num_blocks, 2, true, blake3_128)
}

fn tokens(ids: &[u32]) -> Vec<TokenId> {
    ids.iter().copied().map(TokenId).collect()
}

fn blocks(table: &BlockTable) -> &[BlockId] {
    &table.groups[0].blocks
}

/// Computes `tokens` into a new table, after what the cache has of them.
fn computed(manager: &mut BlockManager, tokens: &[TokenId]) -> (BlockTable, usize) {
    let mut table = BlockTable::default();
    let cached = manager.adopt_prefix(&mut table, tokens);
    assert!(manager.reserve(&mut table, cached..tokens.len(), &mut Vec::new()));
    manager.register(&mut table, tokens, tokens.len());
    (table, cached)
}

#[test]
fn the_leaves_of_a_prompt_are_evicted_before_its_root() {
    let mut manager = manager(4);
    let prompt = tokens(&[1, 2, 3, 4, 5, 6, 7, 8]);
    let (mut table, _) = computed(&mut manager, &prompt);
    manager.release(&mut table);
    let (mut other, _) = computed(&mut manager, &tokens(&[9, 9]));
    assert_eq!(manager.counters().evictions, 1);
    manager.release(&mut other);
    assert_eq!(computed(&mut manager, &prompt).1, 6, "only the last block is lost");
}

#[test]
fn free_blocks_without_content_go_first() {
    let mut manager = manager(4);
    let prompt = tokens(&[1, 2, 3, 4, 5]);
    let (mut table, _) = computed(&mut manager, &prompt);
    manager.release(&mut table);
    let (_held, _) = computed(&mut manager, &tokens(&[9, 9, 9, 9]));
    assert_eq!(manager.counters().evictions, 0);
    assert_eq!(computed(&mut manager, &prompt[..4]).1, 3);
}

#[test]
fn usage_leaves_out_what_can_be_had() {
    let mut manager = manager(4);
    let (mut table, _) = computed(&mut manager, &tokens(&[1, 2, 3, 4]));
    assert_eq!((manager.usage(), manager.num_free()), (0.5, 2));
    manager.release(&mut table);
    assert_eq!((manager.usage(), manager.num_free()), (0.0, 4));
}

#[test]
fn what_follows_a_duplicate_is_found_after_the_original() {
    let mut manager = manager(8);
    let (short, long) = (tokens(&[1, 2]), tokens(&[1, 2, 3, 4, 5]));
    let (mut one, mut other) = (BlockTable::default(), BlockTable::default());
    for (table, tokens) in [(&mut one, &short), (&mut other, &long)] {
        assert_eq!(manager.adopt_prefix(table, tokens), 0);
        assert!(manager.reserve(table, 0..tokens.len(), &mut Vec::new()));
    }
    manager.register(&mut one, &short, 2);
    manager.register(&mut other, &long, 5);
    assert_ne!(blocks(&one)[0], blocks(&other)[0]);
    let (third, cached) = computed(&mut manager, &long);
    assert_eq!((cached, &blocks(&third)[..2]), (4, &[blocks(&one)[0], blocks(&other)[1]][..]));
}

#[test]
fn a_fork_copies_the_partly_filled_block_that_it_writes() {
    let mut manager = manager(4);
    let prompt = tokens(&[1, 2, 3]);
    let (mut table, _) = computed(&mut manager, &prompt);
    let (mut fork, _) = manager.fork(&table, 3);
    let mut copies = Vec::new();
    assert!(manager.reserve(&mut fork, 3..4, &mut copies));
    assert_eq!(copies, [BlockCopy { source: blocks(&table)[1], destination: blocks(&fork)[1] }]);
    assert!(manager.reserve(&mut table, 3..4, &mut copies));
    assert_eq!(copies.len(), 1, "the other is alone with it then");
    manager.audit([&table, &fork].into_iter()).unwrap();
}

#[test]
fn a_reservation_that_does_not_fit_takes_nothing() {
    let mut manager = manager(2);
    let mut table = BlockTable::default();
    assert!(!manager.reserve(&mut table, 0..5, &mut Vec::new()));
    assert_eq!((table.is_empty(), manager.num_free()), (true, 2));
}
