//! Layers with a window: what they leave to others, and what happens to those who go back further than it.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use super::{
    ahead::{Overlapped, most},
    scenarios::Engine,
    world::TakesBack,
};
use crate::{
    config::{EngineConfig, KvCacheGroups},
    engine::{
        scheduler::Event,
        sequence::{LeaseHolder, Sequence},
    },
    error::Code,
    ids::TokenId,
};

const BLOCK_SIZE: usize = 4;

fn config(kv_groups: KvCacheGroups, num_blocks: usize) -> EngineConfig {
    EngineConfig {
        block_size: BLOCK_SIZE,
        num_blocks,
        kv_groups,
        max_num_batched_tokens: 8,
        max_model_len: 256,
        ..EngineConfig::default()
    }
}

fn prompt(len: u32) -> Vec<TokenId> {
    (0..len).map(|k| TokenId((7 * k + k / 5) % 200)).collect()
}

#[test]
fn a_cache_too_small_for_a_whole_sequence_serves_it_where_most_layers_slide() {
    let (tokens, windows) = (200, [None, Some(6), Some(6), Some(6)]);
    let whole = KvCacheGroups::of(&[None; 4]);
    let mixed = KvCacheGroups::of(&windows);
    let few = mixed.blocks(tokens, BLOCK_SIZE, 8);
    // As many bytes: a block has four layers, or one.
    let mut engine = Engine::new(&config(whole, few / 4));
    let sequence = engine.sequence(&prompt(198), 2);
    assert_eq!(engine.scheduler.add(sequence).unwrap_err().code, Code::InvalidArgument);

    let mut engine = Engine::new(&config(mixed, few));
    let sequence = engine.sequence(&prompt(198), 2);
    engine.run_to_end(sequence).unwrap();
    let too_long = engine.sequence(&prompt(199), 2);
    assert_eq!(engine.scheduler.add(too_long).unwrap_err().code, Code::InvalidArgument);

    // Where all layers slide, length does not matter.
    let all = KvCacheGroups::of(&[Some(6); 4]);
    let mut engine = Engine::new(&config(all, all.blocks(tokens, BLOCK_SIZE, 8)));
    let sequence = engine.sequence(&prompt(250), 2);
    engine.run_to_end(sequence).unwrap();
}

/// What is said after a prompt where so many tokens are taken back first, and how often blocks were given up for it.
fn said(groups: KvCacheGroups, count: usize) -> (Vec<TokenId>, u64) {
    let mut engine = Engine::new(&config(groups, 512));
    let guard = TakesBack::new(count);
    let sequence = Sequence { guard: Some(Box::new(guard)), ..engine.sequence(&prompt(24), 30) };
    engine.scheduler.add(sequence).unwrap();
    let mut events = Vec::new();
    while engine.scheduler.has_work() {
        engine.step(&mut events).unwrap();
    }
    let tokens = events.into_iter().filter_map(|event| match event {
        Event::Tokens { tokens, .. } => Some(tokens),
        _ => None,
    });
    (tokens.flatten().map(|token| token.id).collect(), engine.scheduler.stats().preemptions)
}

#[test]
fn who_takes_back_more_than_a_window_is_computed_again_and_says_the_same() {
    for windows in [&[Some(6)][..], &[None, Some(6)], &[Some(6), Some(6), None]] {
        let groups = KvCacheGroups::of(windows);
        for (count, computed_again) in [(2, 0), (20, 1)] {
            let expected = said(KvCacheGroups::ONE, count);
            assert_eq!((expected.0.len(), expected.1), (30, 0));
            assert_eq!(said(groups, count), (expected.0, computed_again), "{count} back with {windows:?}");
        }
    }
}

/// A conversation that counts what it holds.
#[derive(Default)]
struct Holder {
    max_tokens: Option<usize>,
    held: AtomicUsize,
    lost: AtomicUsize,
}

impl LeaseHolder for Holder {
    fn id(&self) -> u64 {
        1
    }

    fn is_pinned(&self) -> bool {
        false
    }

    fn is_released(&self) -> bool {
        false
    }

    fn max_tokens(&self) -> usize {
        self.max_tokens.unwrap_or(usize::MAX)
    }

    fn holds(&self, tokens: usize, _: bool) {
        self.held.store(tokens, Ordering::Relaxed);
    }

    fn warned(&self) {}

    fn lost(&self) {
        self.lost.fetch_add(1, Ordering::Relaxed);
    }
}

fn turn(engine: &mut Engine, prompt: &[TokenId], holder: &Arc<Holder>) -> (usize, Vec<TokenId>) {
    let lease: Arc<dyn LeaseHolder> = holder.clone();
    let sequence = Sequence { lease: Some(lease), ..engine.sequence(prompt, 2) };
    let (cached, said) = engine.run_to_end(sequence).unwrap();
    (cached as usize, said)
}

#[test]
fn a_conversation_keeps_a_window_and_begins_anew_where_it_goes_back_further() {
    for windows in [&[Some(6)][..], &[None, Some(6)]] {
        let groups = KvCacheGroups::of(windows);
        let mut engine = Engine::new(&EngineConfig { enable_prefix_caching: false, ..config(groups, 512) });
        let holder = Arc::new(Holder::default());
        let mut conversation = prompt(40);
        for k in 0..4 {
            let before = conversation.len();
            let (cached, answer) = turn(&mut engine, &conversation, &holder);
            assert_eq!(cached, if k == 0 { 0 } else { before - 12 }, "turn {k} with {windows:?}");
            conversation.extend(answer);
            assert_eq!(holder.held.load(Ordering::Relaxed), conversation.len() - 1);
            let kept = groups.num_full() * conversation.len().div_ceil(BLOCK_SIZE) + 3;
            assert!(engine.scheduler.num_leased_blocks() <= kept, "{}", engine.scheduler.num_leased_blocks());
            conversation.extend(prompt(11));
        }
        // The newest token that both have sees what is kept, and then it does not.
        let mut other = conversation[..conversation.len() - 11 - 1].to_vec();
        other.push(TokenId(99));
        assert_eq!(turn(&mut engine, &other, &holder).0, other.len() - 1);
        other.truncate(20);
        other.push(TokenId(98));
        assert_eq!(turn(&mut engine, &other, &holder).0, 0, "computed again, with {windows:?}");
        assert_eq!(holder.lost.load(Ordering::Relaxed), 0);
    }
}

#[test]
fn a_lease_too_small_for_its_conversation_keeps_nothing_of_a_window_and_says_so() {
    let groups = KvCacheGroups::of(&[None, Some(6)]);
    let mut engine = Engine::new(&config(groups, 512));
    let holder = Arc::new(Holder { max_tokens: Some(20), ..Holder::default() });
    turn(&mut engine, &prompt(40), &holder);
    assert_eq!((holder.lost.load(Ordering::Relaxed), engine.scheduler.num_leased_blocks()), (1, 0));
}

/// Windows smaller than a step's tokens, and larger.
const WINDOWS: [&[Option<usize>]; 7] = [
    &[Some(1)],
    &[Some(2)],
    &[Some(6)],
    &[None, Some(1)],
    &[None, Some(5)],
    &[None, Some(6)],
    &[Some(3), Some(3), None],
];

#[test]
fn what_is_left_behind_while_its_step_is_under_way_is_cached_as_when_none_is() {
    for windows in WINDOWS {
        for overlaps in [false, true] {
            let mut engine = Overlapped::with(&config(KvCacheGroups::of(windows), 512), overlaps);
            let id = engine.add(&prompt(20), most(9));
            engine.run();
            assert_eq!(engine.rows.1 > 0, overlaps);
            let said = [prompt(20), engine.said(id)].concat();
            // All but the last token were computed, and the cache is large enough to keep them.
            for len in 1..said.len() {
                let cached = (len / BLOCK_SIZE * BLOCK_SIZE).min(len - 1);
                let found = engine.scheduler.lookup(None, &said[..len]);
                assert_eq!(found, cached, "of {len} tokens with {windows:?}, overlapped: {overlaps}");
            }
        }
    }
}

#[test]
fn those_who_share_a_prompt_begin_at_its_end_though_the_first_goes_ahead() {
    for (windows, enable_prefix_caching) in WINDOWS.into_iter().flat_map(|windows| [(windows, false), (windows, true)])
    {
        let config = EngineConfig { enable_prefix_caching, ..config(KvCacheGroups::of(windows), 512) };
        for (len, overlaps) in (17..25).flat_map(|len| [(len, false), (len, true)]) {
            let mut engine = Overlapped::with(&config, overlaps);
            let group: Vec<_> = (0..3).map(|_| engine.sequence(&prompt(len), most(5), 64)).collect();
            engine.scheduler.add_group(group).unwrap();
            engine.run();
            let started = engine.events.iter().filter_map(|event| match event {
                Event::Started { cached_tokens, .. } => Some(*cached_tokens),
                _ => None,
            });
            let started: Vec<_> = started.collect();
            assert_eq!(started, [0, len - 1, len - 1], "{len} tokens with {windows:?}, overlapped: {overlaps}");
        }
    }
}
