//! A trace of prompts whose blocks have numbers, through the scheduler and through an ideal cache. For the test here, and for
//! `benches/prefix_cache.rs`.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::Arc,
    time::Instant,
};

use candlewick::{
    config::EngineConfig,
    engine::{
        executor::{Executor, StepPlan},
        fake::{FakeExecutor, FakeOptions},
        scheduler::{End, Event, Scheduler},
        sequence::{Reader, Sequence},
    },
    error::{Error, Result},
    ids::{SequenceId, TokenId},
    params::SamplingParams,
};

/// Of each request, in order of arrival, the numbers of its prompt's blocks. Blocks with the same number hold the same
/// tokens.
pub type Trace = Vec<Vec<u32>>;

/// Nobody reads: everything is taken at once.
struct Reads;

impl Reader for Reads {
    fn room(&self) -> usize {
        1
    }

    fn capacity(&self) -> usize {
        1
    }

    fn cancelled(&self) -> bool {
        false
    }
}

/// Share of the prompts' tokens that the prefix cache had, 0 to 1: a cache of `num_blocks` blocks of `block_size` tokens,
/// requests of one token each, up to `at_once` at once.
///
/// # Errors
/// The scheduler's or the fake's: a request did not fit, or the cache gave a block that holds something else.
pub fn replay(trace: &Trace, num_blocks: usize, block_size: usize, at_once: usize) -> Result<f64> {
    let longest = trace.iter().map(Vec::len).max().unwrap_or(0) * block_size;
    let config = EngineConfig {
        block_size,
        num_blocks,
        max_num_batched_tokens: at_once * longest,
        max_num_seqs: at_once,
        max_waiting: 0,
        max_model_len: longest + 1,
        enable_kv_cache_events: false,
        ..EngineConfig::default()
    };
    let mut scheduler = Scheduler::new(&config, 1);
    let mut executor = FakeExecutor::new(&config, FakeOptions { vocab_size: u32::MAX, ..FakeOptions::default() });
    let params = Arc::new(SamplingParams { max_tokens: Some(1), ignore_eos: true, ..SamplingParams::default() });
    let (mut plan, mut events) = (StepPlan::default(), Vec::new());
    let mut coming = trace.iter().enumerate();
    loop {
        for (id, blocks) in coming.by_ref().take(at_once - scheduler.len()) {
            let prompt = blocks.iter().flat_map(|&block| std::iter::repeat_n(TokenId(block), block_size)).collect();
            scheduler.add(Sequence::new(SequenceId(id as u64), prompt, params.clone(), Arc::new(Reads)))?;
        }
        if !scheduler.has_work() {
            break;
        }
        if scheduler.schedule(Instant::now(), &mut plan, &mut events) {
            executor.submit(&plan)?;
            scheduler.apply(executor.collect()?, &mut events)?;
        }
        for event in events.drain(..) {
            match event {
                Event::Ended { end: End::Finished(_), .. } | Event::Started { .. } | Event::Tokens { .. } => {}
                other => return Err(Error::internal(format!("not part of a replay: {other:?}"))),
            }
        }
    }
    let stats = scheduler.stats();
    Ok(stats.prefix_cache_hits_tokens as f64 / stats.prefix_cache_queries_tokens as f64)
}

/// The same share of a cache that knows no sequences, no steps and no tables: blocks are nodes of the tree of all prompts, a
/// prompt finds its longest path of nodes that are kept and then has all its nodes kept, and of all nodes the one goes that was
/// least recently part of a prompt, a leaf before what it hangs on.
pub fn ideal(trace: &Trace, num_blocks: usize) -> f64 {
    let mut nodes: HashMap<(usize, u32), usize> = HashMap::new();
    // Of each node that is kept: when it was last of use. And the other way round.
    let mut kept: HashMap<usize, u64> = HashMap::new();
    let mut by_use: BTreeMap<u64, usize> = BTreeMap::new();
    let (mut clock, mut hits, mut queries) = (0, 0, 0);
    for prompt in trace {
        let mut path = Vec::with_capacity(prompt.len());
        for &block in prompt {
            let (parent, next) = (path.last().copied().unwrap_or(0), nodes.len() + 1);
            path.push(*nodes.entry((parent, block)).or_insert(next));
        }
        queries += path.len();
        hits += path.iter().take_while(|node| kept.contains_key(node)).count();
        // The last block is the oldest of them.
        for &node in path.iter().rev() {
            clock += 1;
            if let Some(before) = kept.insert(node, clock) {
                by_use.remove(&before);
            }
            by_use.insert(clock, node);
        }
        while kept.len() > num_blocks {
            let Some((_, oldest)) = by_use.pop_first() else { break };
            kept.remove(&oldest);
        }
    }
    hits as f64 / queries.max(1) as f64
}

/// A day of our own making: conversations that begin with one of a few instructions and grow by a question and an answer a
/// turn, several at a time, some of which go quiet for long. The same for the same seed.
pub fn conversations(requests: usize, seed: u64) -> Trace {
    let mut state = seed;
    let mut below = |n: u64| {
        // SplitMix64 (Steele, Lea, Flood 2014).
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    };
    let mut next = 100;
    let mut talks: VecDeque<Vec<u32>> = VecDeque::new();
    let mut trace = Trace::new();
    while trace.len() < requests {
        let goes_on = !talks.is_empty() && below(100) < 75;
        let mut talk = match goes_on {
            // Whoever spoke last is the likeliest to speak again.
            true => {
                let back = below(talks.len() as u64).min(below(talks.len() as u64));
                talks.remove(back as usize).unwrap_or_default()
            }
            false => {
                let instructions = below(4) as u32 * 10;
                (instructions..instructions + 2 + instructions / 10).collect()
            }
        };
        for _ in 0..1 + below(6) {
            talk.push(next);
            next += 1;
        }
        trace.push(talk.clone());
        if talk.len() < 60 {
            talks.push_front(talk);
        }
        talks.truncate(200);
    }
    trace
}
