//! The engine's runner over hand-made plans: what it samples, forgets, copies and refuses.

use std::sync::Arc;

use candlewick::{
    arch::Model,
    config::{Dtype, ModelArgs},
    engine::{
        executor::{AdmittedSequence, BlockCopy, Executor, PlannedRow, StepOutput, StepPlan},
        runner::{Runner, RunnerConfig},
    },
    error::{Code, Error},
    ids::{BlockId, SequenceId, Slot, TokenId},
    params::SamplingParams,
};

use super::driver::{BLOCK_SIZE, golden, load_model, tokens};
use crate::allocations;

fn runner(model: Arc<dyn Model>, num_threads: usize) -> Runner {
    let config = RunnerConfig {
        num_blocks: 64,
        block_size: BLOCK_SIZE,
        num_states: 4,
        num_threads,
        eos_token_ids: vec![TokenId(2)],
        filled_steps: None,
    };
    Runner::new(model, &config).expect("a small cache")
}

fn greedy() -> SamplingParams {
    SamplingParams { temperature: 0.0, ..SamplingParams::default() }
}

fn admit(plan: &mut StepPlan, id: u64, params: SamplingParams, prompt: &[TokenId]) {
    plan.admitted.push(AdmittedSequence {
        id: SequenceId(id),
        params: Arc::new(params),
        prompt: prompt.into(),
        dry_breakers: [].into(),
        grammar: None,
        pooling: None,
        adapter: None,
    });
}

/// Adds a row: `tokens` after `context_len` others, in these blocks.
fn schedule(plan: &mut StepPlan, id: u64, tokens: &[TokenId], context_len: usize, blocks: &[u32], samples: bool) {
    let (first_token, first_block) = (plan.token_ids.len(), plan.block_tables.len());
    let slot = |p: usize| Slot(blocks[p / BLOCK_SIZE] * BLOCK_SIZE as u32 + (p % BLOCK_SIZE) as u32);
    plan.token_ids.extend_from_slice(tokens);
    plan.positions.extend((context_len..context_len + tokens.len()).map(|p| p as u32));
    plan.slot_mapping.extend((context_len..context_len + tokens.len()).map(slot));
    plan.block_tables.extend(blocks.iter().map(|block| BlockId(*block)));
    plan.rows.push(PlannedRow {
        id: SequenceId(id),
        query: first_token..plan.token_ids.len(),
        blocks: first_block..plan.block_tables.len(),
        context_len: context_len as u32,
        samples,
        num_output_tokens: 0,
        prompt_targets: 0..0,
        max_new_tokens: 1,
        follows: None,
    });
}

fn run(runner: &mut Runner, plan: &StepPlan) -> Result<StepOutput, Error> {
    runner.submit(plan)?;
    runner.collect()
}

fn token(output: &StepOutput, row: usize) -> u32 {
    output.sequences[row].tokens[0].id.0
}

#[test]
fn a_prompt_in_two_chunks_beside_another_gives_the_references_tokens() {
    let prompts = golden("qwen3").prompts;
    let (long, short) = (&prompts[2], &prompts[1]);
    let (long_ids, short_ids) = (tokens(&long.ids), tokens(&short.ids));
    let mut runner = runner(load_model("qwen3", Dtype::Float32), 2);

    let mut plan = StepPlan::default();
    admit(&mut plan, 7, greedy(), &long_ids);
    schedule(&mut plan, 7, &long_ids[..20], 0, &[5, 3], false);
    assert!(run(&mut runner, &plan).unwrap().sequences.is_empty(), "a chunk that is not the last samples nothing");

    let mut plan = StepPlan::default();
    admit(&mut plan, 9, greedy(), &short_ids);
    schedule(&mut plan, 9, &short_ids, 0, &[11], true);
    schedule(&mut plan, 7, &long_ids[20..], 20, &[5, 3, 8], true);
    let output = run(&mut runner, &plan).unwrap();
    assert_eq!(output.sequences.iter().map(|s| s.id.0).collect::<Vec<_>>(), [9, 7]);
    assert_eq!((token(&output, 0), token(&output, 1)), (short.greedy[0], long.greedy[0]));

    let mut plan = StepPlan::default();
    schedule(&mut plan, 7, &[TokenId(long.greedy[0])], long_ids.len(), &[5, 3, 8], true);
    schedule(&mut plan, 9, &[TokenId(short.greedy[0])], short_ids.len(), &[11], true);
    let output = run(&mut runner, &plan).unwrap();
    assert_eq!((token(&output, 0), token(&output, 1)), (long.greedy[1], short.greedy[1]));
}

#[test]
fn a_copied_block_serves_its_new_owner() {
    let prompt = &golden("llama").prompts[1];
    let ids = tokens(&prompt.ids);
    let mut runner = runner(load_model("llama", Dtype::Float32), 1);
    let mut plan = StepPlan::default();
    admit(&mut plan, 0, greedy(), &ids);
    schedule(&mut plan, 0, &ids, 0, &[4], true);
    run(&mut runner, &plan).unwrap();

    // A second sequence takes over all but the last token's keys and values.
    let mut plan = StepPlan::default();
    admit(&mut plan, 1, greedy(), &ids);
    plan.block_copies.push(BlockCopy { source: BlockId(4), destination: BlockId(6) });
    let last = ids.len() - 1;
    schedule(&mut plan, 1, &ids[last..], last, &[6], true);
    assert_eq!(token(&run(&mut runner, &plan).unwrap(), 0), prompt.greedy[0]);
}

#[test]
fn a_seeded_choice_depends_neither_on_threads_nor_on_neighbours() {
    let ids = tokens(&golden("llama").prompts[1].ids);
    let seeded = SamplingParams { seed: Some(42), temperature: 2.0, logprobs: Some(3), ..SamplingParams::default() };
    let outputs = [(1, false), (2, true)].map(|(threads, crowded)| {
        let mut runner = runner(load_model("llama", Dtype::Bfloat16), threads);
        let mut plan = StepPlan::default();
        if crowded {
            admit(&mut plan, 5, SamplingParams { seed: Some(1), ..SamplingParams::default() }, &ids[..3]);
            schedule(&mut plan, 5, &ids[..3], 0, &[9], true);
        }
        admit(&mut plan, 6, seeded.clone(), &ids);
        schedule(&mut plan, 6, &ids, 0, &[2], true);
        run(&mut runner, &plan).unwrap().sequences.pop().expect("a token").tokens
    });
    assert_eq!(outputs[0], outputs[1]);
    assert_eq!(outputs[0][0].logprobs.as_ref().expect("asked for").top.len(), 3);
}

#[test]
fn sampling_state_lives_from_admission_to_retirement() {
    let ids = tokens(&golden("llama").prompts[0].ids);
    let mut runner = runner(load_model("llama", Dtype::Auto), 1);
    let mut plan = StepPlan::default();
    for id in 0..3 {
        admit(&mut plan, id, greedy(), &ids);
    }
    run(&mut runner, &plan).unwrap();
    assert_eq!(runner.num_sequences(), 3);
    let plan = StepPlan { retired: vec![SequenceId(0), SequenceId(2), SequenceId(77)], ..StepPlan::default() };
    run(&mut runner, &plan).unwrap();
    assert_eq!(runner.num_sequences(), 1);

    let mut plan = StepPlan::default();
    schedule(&mut plan, 0, &ids, 0, &[0], true);
    let error = run(&mut runner, &plan).unwrap_err();
    assert_eq!(error.code, Code::Internal);
    assert!(error.message.contains("never admitted"), "{error}");
    assert!(runner.collect().is_err(), "nothing was submitted");
}

#[test]
fn a_state_is_a_sequences_until_it_ends_or_loses_its_blocks() {
    let prompt = &golden("qwen3_5").prompts[2];
    let ids = tokens(&prompt.ids);
    let mut runner = runner(load_model("qwen3_5", Dtype::Float32), 2);
    let mut plan = StepPlan::default();
    admit(&mut plan, 7, greedy(), &ids);
    admit(&mut plan, 8, greedy(), &ids);
    schedule(&mut plan, 7, &ids[..20], 0, &[5, 3], false);
    run(&mut runner, &plan).unwrap();
    assert_eq!(runner.num_states(), 1, "the other one has not run");

    // The other one takes what the first one left.
    let mut plan = StepPlan { preempted: vec![SequenceId(7)], ..StepPlan::default() };
    schedule(&mut plan, 8, &ids[..20], 0, &[3, 5], false);
    run(&mut runner, &plan).unwrap();
    assert_eq!(runner.num_states(), 1);

    // One goes on, the other begins again, in a state that was used, and both say the same.
    let mut plan = StepPlan::default();
    schedule(&mut plan, 8, &ids[20..], 20, &[3, 5, 8], true);
    schedule(&mut plan, 7, &ids, 0, &[1, 2, 9], true);
    let output = run(&mut runner, &plan).unwrap();
    assert_eq!((token(&output, 0), token(&output, 1)), (prompt.greedy[0], prompt.greedy[0]));
    assert_eq!(runner.num_states(), 2);

    let plan = StepPlan { retired: vec![SequenceId(7), SequenceId(8)], ..StepPlan::default() };
    run(&mut runner, &plan).unwrap();
    assert_eq!(runner.num_states(), 0);
}

#[test]
fn more_states_than_there_are_and_leaps_over_tokens_are_errors() {
    let ids = tokens(&golden("qwen3_5").prompts[2].ids);
    let model = load_model("qwen3_5", Dtype::Float32);
    // There are four of them.
    for (count, says) in [(4, None), (5, Some("all 4 states are taken"))] {
        let mut runner = runner(Arc::clone(&model), 1);
        let mut plan = StepPlan::default();
        for id in 0..count {
            admit(&mut plan, id, greedy(), &ids);
            schedule(&mut plan, id, &ids[..3], 0, &[id as u32], false);
        }
        let error = run(&mut runner, &plan).err();
        assert_eq!(error.as_ref().map(|error| error.code), says.map(|_| Code::Internal));
        assert!(error.is_none_or(|error| error.message.contains(says.unwrap_or_default())));
    }
    let mut runner = runner(model, 1);
    for (context_len, says) in [(0, ""), (3, ""), (8, "a state after 6 tokens goes on at 8")] {
        let mut plan = StepPlan::default();
        schedule(&mut plan, 0, &ids[context_len..context_len + 3], context_len, &[0], false);
        let message = run(&mut runner, &plan).err().map_or(String::new(), |error| error.message);
        assert!(message.ends_with(says) && message.is_empty() == says.is_empty(), "at {context_len}: {message}");
    }
}

#[test]
fn a_plan_outside_the_cache_or_the_vocabulary_is_an_error_not_a_panic() {
    let ids = tokens(&golden("llama").prompts[0].ids);
    let model = load_model("llama", Dtype::Float32);
    type Damage = fn(&mut StepPlan);
    let damages: [(&str, Damage); 6] = [
        ("a token beyond the vocabulary", |plan| plan.token_ids[0] = TokenId(9999)),
        ("a slot beyond the cache", |plan| plan.slot_mapping[0] = Slot(1 << 20)),
        ("a block beyond the cache", |plan| plan.block_tables[0] = BlockId(64)),
        ("too few blocks", |plan| plan.rows[0].context_len = 500),
        ("a position too few", |plan| plan.positions.truncate(plan.positions.len() - 1)),
        ("a copy beyond the cache", |plan| {
            plan.block_copies.push(BlockCopy { source: BlockId(0), destination: BlockId(64) });
        }),
    ];
    for (what, damage) in damages {
        let mut runner = runner(Arc::clone(&model), 1);
        let mut plan = StepPlan::default();
        admit(&mut plan, 0, greedy(), &ids);
        schedule(&mut plan, 0, &ids, 0, &[0], true);
        damage(&mut plan);
        assert_eq!(run(&mut runner, &plan).expect_err(what).code, Code::Internal, "{what}");
    }
}

#[test]
fn a_cache_of_impossible_size_is_refused() {
    let model = load_model("llama", Dtype::Float32);
    for (num_blocks, block_size) in [(0, 16), (16, 0), (usize::MAX, 2), (1 << 31, 16)] {
        let config = RunnerConfig {
            num_blocks,
            block_size,
            num_states: 4,
            num_threads: 1,
            eos_token_ids: Vec::new(),
            filled_steps: None,
        };
        let error = Runner::new(Arc::clone(&model), &config).err().expect("refused");
        assert_eq!(error.code, Code::InvalidArgument, "{num_blocks} x {block_size}");
    }
}

#[test]
fn steady_decoding_asks_the_allocator_for_nothing_large() {
    // The demo's rows are 1 KiB, so that every tensor of a step counts.
    let loaded = candlewick::engine::load::load(&ModelArgs::default(), None, &mut |_| ()).expect("the demo");
    let mut runner = runner(loaded.model.paged().expect("a model of ours").clone(), 1);
    const SEQUENCES: u64 = 16;
    let step = |plan: &mut StepPlan, context_len: usize| {
        for id in 0..SEQUENCES {
            let blocks = [3 * id as u32, 3 * id as u32 + 1, 3 * id as u32 + 2];
            schedule(plan, id, &[TokenId(300 + id as u32)], context_len, &blocks, true);
        }
    };
    let mut largest = Vec::new();
    for context_len in 0..40 {
        let mut plan = StepPlan::default();
        if context_len == 0 {
            let params =
                |id| SamplingParams { temperature: 0.8, seed: Some(id), top_k: 40, ..SamplingParams::default() };
            (0..SEQUENCES).for_each(|id| admit(&mut plan, id, params(id), &[TokenId(300)]));
        }
        step(&mut plan, context_len);
        let (output, measured) = allocations::measure(|| run(&mut runner, &plan));
        assert_eq!(output.expect("a step").sequences.len(), SEQUENCES as usize);
        largest.push(measured.largest_bytes);
    }
    let steady = &largest[8..];
    assert!(steady.iter().all(|bytes| *bytes < 1024), "largest requests of the steps from the ninth on: {steady:?}");
}
