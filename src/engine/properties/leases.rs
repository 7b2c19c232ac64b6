//! Blocks that conversations keep: what they save, who shares them, and who loses them first.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use super::scenarios::{Engine, config};
use crate::{
    config::EngineConfig,
    engine::{sequence::LeaseHolder, sequence::Sequence},
    ids::TokenId,
};

/// A conversation, as far as the scheduler knows one.
#[derive(Default)]
struct Holder {
    id: u64,
    pinned: bool,
    max_tokens: Option<usize>,
    released: AtomicBool,
    held: AtomicUsize,
    warned: AtomicUsize,
    lost: AtomicUsize,
}

impl LeaseHolder for Holder {
    fn id(&self) -> u64 {
        self.id
    }

    fn is_pinned(&self) -> bool {
        self.pinned
    }

    fn is_released(&self) -> bool {
        self.released.load(Ordering::Relaxed)
    }

    fn max_tokens(&self) -> usize {
        self.max_tokens.unwrap_or(usize::MAX)
    }

    fn holds(&self, tokens: usize, _pinned: bool) {
        self.held.store(tokens, Ordering::Relaxed);
    }

    fn warned(&self) {
        self.warned.fetch_add(1, Ordering::Relaxed);
    }

    fn lost(&self) {
        self.lost.fetch_add(1, Ordering::Relaxed);
    }
}

fn holder(id: u64, pinned: bool) -> Arc<Holder> {
    Arc::new(Holder { id, pinned, ..Holder::default() })
}

fn turn(engine: &mut Engine, prompt: &[TokenId], holder: &Arc<Holder>) -> (u32, Vec<TokenId>) {
    let lease: Arc<dyn LeaseHolder> = holder.clone();
    let sequence = Sequence { lease: Some(lease), ..engine.sequence(prompt, 2) };
    engine.run_to_end(sequence).unwrap()
}

fn others(engine: &mut Engine, seed: u32) {
    for k in 0..4 {
        // Half of the cache each.
        let prompt: Vec<_> = (0..60).map(|i| TokenId((seed * 31 + k * 7 + i) % 200)).collect();
        let sequence = engine.sequence(&prompt, 2);
        engine.run_to_end(sequence).unwrap();
    }
}

#[test]
fn a_turn_computes_what_is_new_and_one_token_though_others_churn_the_cache() {
    let mut engine = Engine::new(&EngineConfig { enable_prefix_caching: false, ..config() });
    let conversation = holder(1, false);
    let mut said = vec![TokenId(1), TokenId(2), TokenId(3)];
    let (mut before, mut cached_before) = (0, 0);
    for k in 0..12 {
        let (cached, answer) = turn(&mut engine, &said, &conversation);
        assert_eq!(cached as usize, if k == 0 { 0 } else { before - 1 }, "turn {k}");
        assert!(cached >= cached_before);
        cached_before = cached;
        said.extend(answer);
        before = said.len();
        assert_eq!(conversation.held.load(Ordering::Relaxed), before - 1);
        said.extend([TokenId(10 + k), TokenId(40 + k)]);
        others(&mut engine, k);
    }
    assert_eq!(conversation.lost.load(Ordering::Relaxed), 0);
}

#[test]
fn a_rewound_conversation_keeps_what_both_begin_with() {
    let mut engine = Engine::new(&config());
    let conversation = holder(1, false);
    let (_, _) = turn(&mut engine, &[1, 2, 3, 4, 5, 6, 7].map(TokenId), &conversation);
    let (cached, _) = turn(&mut engine, &[1, 2, 3, 4, 5, 60, 70].map(TokenId), &conversation);
    assert_eq!(cached, 5, "within a block too");
}

#[test]
fn a_fork_shares_blocks_and_neither_spoils_the_other() {
    let mut engine = Engine::new(&EngineConfig { enable_prefix_caching: false, ..config() });
    let (first, second) = (holder(1, false), holder(2, false));
    let mut said = [1, 2, 3, 4, 5].map(TokenId).to_vec();
    let (_, answer) = turn(&mut engine, &said, &first);
    said.extend(answer);
    assert_eq!(engine.scheduler.fork_lease(1, second.clone(), said.len()), said.len() - 1);
    assert_eq!(engine.scheduler.num_leased_blocks(), 4, "two, each counted twice");
    for (holder, next) in [(&first, 70), (&second, 80), (&first, 90)] {
        let mut prompt = said.clone();
        prompt.push(TokenId(next));
        let (cached, _) = turn(&mut engine, &prompt, holder);
        assert_eq!(cached as usize, said.len() - 1 + usize::from(next == 90));
    }
    first.released.store(true, Ordering::Relaxed);
    second.released.store(true, Ordering::Relaxed);
    engine.scheduler.sweep_leases();
    assert_eq!((engine.scheduler.stats().used_blocks, engine.scheduler.num_leased_blocks()), (0, 0));
}

#[test]
fn the_lease_used_longest_ago_goes_first_and_a_pinned_one_last() {
    let all = EngineConfig { leased_kv_percent: 100, pinned_kv_percent: 100, max_model_len: 128, ..config() };
    let mut engine = Engine::new(&all);
    let (pinned, old, new) = (holder(1, true), holder(2, false), holder(3, false));
    // 32 blocks: six for each.
    for (k, holder) in [&pinned, &old, &new].into_iter().enumerate() {
        let prompt: Vec<_> = (0..22).map(|i| TokenId(k as u32 * 60 + i)).collect();
        turn(&mut engine, &prompt, holder);
    }
    let lost = || [&pinned, &old, &new].map(|holder| holder.lost.load(Ordering::Relaxed));
    for (length, expected) in [(50, [0, 0, 0]), (70, [0, 1, 0]), (100, [0, 1, 1]), (120, [1, 1, 1])] {
        let prompt: Vec<_> = (0..length).map(|i| TokenId((i * 7) % 250)).collect();
        let sequence = engine.sequence(&prompt, 2);
        engine.run_to_end(sequence).unwrap();
        assert_eq!(lost(), expected, "a prompt of {length} tokens");
    }
    assert_eq!(engine.scheduler.stats().preemptions, 0);
    assert!(old.warned.load(Ordering::Relaxed) > 0, "who goes next is warned");
}

#[test]
fn leases_are_bounded_together_and_each() {
    // Eight blocks for all, four of them pinned.
    let few = EngineConfig { leased_kv_percent: 25, pinned_kv_percent: 12, ..config() };
    let mut engine = Engine::new(&few);
    let short = Arc::new(Holder { id: 1, max_tokens: Some(9), ..Holder::default() });
    let prompt: Vec<_> = (0..20).map(TokenId).collect();
    turn(&mut engine, &prompt, &short);
    assert_eq!((short.held.load(Ordering::Relaxed), engine.scheduler.num_leased_blocks()), (9, 3));
    let (second, third) = (holder(2, false), holder(3, false));
    turn(&mut engine, &[50, 51, 52, 53, 54, 55, 56, 57, 58, 59, 60, 61, 62, 63, 64].map(TokenId), &second);
    assert_eq!((short.lost.load(Ordering::Relaxed), engine.scheduler.num_leased_blocks()), (0, 7));
    turn(&mut engine, &[70, 71, 72, 73, 74].map(TokenId), &third);
    assert_eq!((short.lost.load(Ordering::Relaxed), engine.scheduler.num_leased_blocks()), (1, 6));
    let too_long = holder(4, true);
    let prompt: Vec<_> = (100..140).map(TokenId).collect();
    turn(&mut engine, &prompt, &too_long);
    assert_eq!(too_long.lost.load(Ordering::Relaxed), 1, "more than all may have together");
}

#[test]
fn a_conversation_that_does_not_fit_beside_the_pinned_ones_costs_nobody_his_blocks() {
    // Eight blocks for all, four of them pinned.
    let few = EngineConfig { leased_kv_percent: 25, pinned_kv_percent: 13, ..config() };
    let mut engine = Engine::new(&few);
    let (pinned, other, too_long) = (holder(1, true), holder(2, false), holder(3, false));
    for (first, length, holder) in [(0, 11, &pinned), (50, 9, &other), (100, 25, &too_long)] {
        let prompt: Vec<_> = (first..first + length).map(TokenId).collect();
        turn(&mut engine, &prompt, holder);
    }
    let lost = [&pinned, &other, &too_long].map(|holder| holder.lost.load(Ordering::Relaxed));
    assert_eq!((lost, engine.scheduler.num_leased_blocks()), ([0, 0, 1], 6));
}

#[test]
fn a_turn_that_has_nothing_in_common_and_ends_before_it_runs_leaves_nothing_and_says_so() {
    let mut engine = Engine::new(&EngineConfig { max_model_len: 128, ..config() });
    let conversation = holder(1, false);
    turn(&mut engine, &[1, 2, 3, 4, 5, 6, 7, 8, 9].map(TokenId), &conversation);
    assert_eq!(conversation.held.load(Ordering::Relaxed), 10);
    // 24 of 32 blocks are another one's, who comes first, and the turn needs ten.
    let before = engine.sequence(&(100..196).map(TokenId).collect::<Vec<_>>(), 8);
    engine.scheduler.add(before).unwrap();
    engine.step(&mut Vec::new()).unwrap();
    let lease: Arc<dyn LeaseHolder> = conversation.clone();
    let prompt: Vec<_> = (200..240).map(TokenId).collect();
    let waits = Sequence { lease: Some(lease), ..engine.sequence(&prompt, 8) };
    let id = waits.id;
    engine.scheduler.add(waits).unwrap();
    engine.step(&mut Vec::new()).unwrap();
    assert!(engine.scheduler.abort(id));
    let told = (conversation.held.load(Ordering::Relaxed), conversation.lost.load(Ordering::Relaxed));
    assert_eq!((told, engine.scheduler.num_leased_blocks()), ((0, 0), 0));
}

#[test]
fn a_conversation_that_never_held_anything_loses_nothing() {
    let mut engine = Engine::new(&EngineConfig { max_num_seqs: 1, ..config() });
    let before = engine.sequence(&[TokenId(1)], 8);
    engine.scheduler.add(before).unwrap();
    engine.step(&mut Vec::new()).unwrap();
    let conversation = holder(1, false);
    let lease: Arc<dyn LeaseHolder> = conversation.clone();
    let waits = Sequence { lease: Some(lease), ..engine.sequence(&[TokenId(2)], 8) };
    let id = waits.id;
    engine.scheduler.add(waits).unwrap();
    engine.step(&mut Vec::new()).unwrap();
    assert!(engine.scheduler.abort(id));
    assert_eq!(conversation.lost.load(Ordering::Relaxed), 0);
}
