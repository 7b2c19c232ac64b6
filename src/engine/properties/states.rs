//! Models that keep more of a sequence than its blocks: nobody goes on from anything but its own last row.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use super::scenarios::{Engine, config};
use crate::{
    config::EngineConfig,
    engine::{
        scheduler::Event,
        sequence::{Guard, Heard, LeaseHolder, Sequence},
    },
    ids::TokenId,
};

fn stateful() -> EngineConfig {
    EngineConfig { prefixes_are_shared: false, ..config() }
}

const PROMPT: [TokenId; 9] =
    [TokenId(1), TokenId(2), TokenId(3), TokenId(4), TokenId(5), TokenId(6), TokenId(7), TokenId(8), TokenId(9)];

/// Steps until nothing is left; the tokens that each computed, and the tokens that came.
fn run(engine: &mut Engine) -> (Vec<usize>, usize) {
    let (mut computed, mut events) = (Vec::new(), Vec::new());
    while engine.scheduler.has_work() {
        computed.push(engine.step(&mut events).unwrap());
    }
    let came = events.iter().map(|event| match event {
        Event::Tokens { tokens, .. } => tokens.len(),
        Event::Started { cached_tokens, .. } => {
            assert_eq!(*cached_tokens, 0);
            0
        }
        Event::Prompt { .. } | Event::Ended { .. } => 0,
    });
    (computed, came.sum())
}

#[test]
fn a_prompt_that_was_computed_before_is_computed_again() {
    let mut engine = Engine::new(&stateful());
    for _ in 0..2 {
        let sequence = engine.sequence(&PROMPT, 2);
        assert_eq!(engine.run_to_end(sequence).unwrap().0, 0);
    }
    assert_eq!((engine.scheduler.lookup(None, &PROMPT), engine.scheduler.stats().cached_blocks), (0, 0));
}

#[test]
fn each_sequence_of_a_group_computes_the_prompt_and_none_waits_for_another() {
    let mut engine = Engine::new(&stateful());
    let group = (0..3).map(|_| engine.sequence(&PROMPT, 2)).collect();
    engine.scheduler.add_group(group).unwrap();
    let (computed, came) = run(&mut engine);
    assert_eq!((computed[..2].to_vec(), came), (vec![27, 3], 6));
    assert_eq!(engine.scheduler.stats().block_copies, 0);
}

#[test]
fn a_sequence_that_takes_tokens_back_is_computed_from_its_first_token() {
    /// Takes the second and the third token back, once.
    struct Once(usize);
    impl Guard for Once {
        fn hear(&mut self, _: TokenId) -> Heard {
            self.0 += 1;
            match self.0 {
                2 => Heard::Hold(1),
                3 => Heard::TakeBack(2),
                _ => Heard::Hold(0),
            }
        }

        fn most_held(&self) -> usize {
            2
        }
    }
    let mut engine = Engine::new(&stateful());
    let sequence = Sequence { guard: Some(Box::new(Once(0))), ..engine.sequence(&PROMPT, 4) };
    engine.scheduler.add(sequence).unwrap();
    let (computed, came) = run(&mut engine);
    // The prompt, two tokens; the prompt and the one token that stayed, and so on.
    assert_eq!((computed[..5].to_vec(), came), (vec![9, 1, 1, 10, 1], 4));
}

#[test]
fn a_conversation_loses_what_its_turn_kept_and_hears_of_it() {
    #[derive(Default)]
    struct Holder(AtomicUsize);
    impl LeaseHolder for Holder {
        fn id(&self) -> u64 {
            1
        }

        fn is_pinned(&self) -> bool {
            true
        }

        fn is_released(&self) -> bool {
            false
        }

        fn max_tokens(&self) -> usize {
            usize::MAX
        }

        fn holds(&self, tokens: usize, _pinned: bool) {
            panic!("{tokens} tokens are kept");
        }

        fn warned(&self) {}

        fn lost(&self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
    let (mut engine, holder) = (Engine::new(&stateful()), Arc::new(Holder::default()));
    let lease: Arc<dyn LeaseHolder> = holder.clone();
    let sequence = Sequence { lease: Some(lease), ..engine.sequence(&PROMPT, 2) };
    engine.scheduler.add(sequence).unwrap();
    engine.step(&mut Vec::new()).unwrap();
    assert_eq!(engine.scheduler.fork_lease(1, holder.clone(), PROMPT.len()), 0);
    run(&mut engine);
    assert_eq!(holder.0.load(Ordering::Relaxed), 1);
    assert_eq!((engine.scheduler.stats().used_blocks, engine.scheduler.num_leased_blocks()), (0, 0));
}
