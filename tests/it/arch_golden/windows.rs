//! The checkpoints that have layers with a window, several windows long, on caches that could not hold their sequences whole.

use std::sync::Arc;

use candlewick::{
    config::{Dtype, EngineConfig, KvCacheGroups},
    engine::{Engine, fake::Gate},
    params::SampledToken,
};

use super::{
    crowd::{read, read_together, start_with},
    driver::{GoldenPrompt, golden, load_model},
};

/// All of whose windows are 24 tokens: every layer of the first two slides, and some of the others.
const WINDOWED: [&str; 8] =
    ["mistral", "starcoder2", "ministral", "gemma2", "gemma3_text", "gpt_oss", "cohere2", "exaone4"];

const BLOCK_SIZE: usize = 4;
const MAX_NUM_BATCHED_TOKENS: usize = 9;

fn config(kv_groups: KvCacheGroups, num_blocks: usize) -> EngineConfig {
    EngineConfig {
        block_size: BLOCK_SIZE,
        num_blocks,
        kv_groups,
        max_num_batched_tokens: MAX_NUM_BATCHED_TOKENS,
        max_num_seqs: 16,
        max_model_len: 120,
        max_cudagraph_capture_size: 0,
        ..EngineConfig::default()
    }
}

/// Blocks that a sequence of so many tokens takes, and those that it would take if nothing were given back.
fn blocks(groups: KvCacheGroups, tokens: usize) -> (usize, usize) {
    (groups.blocks(tokens, BLOCK_SIZE, MAX_NUM_BATCHED_TOKENS), groups.count() * tokens.div_ceil(BLOCK_SIZE))
}

/// An engine on so many times the blocks that the longest of the prompts takes, answer included, beside its prompts.
async fn start(name: &str, dtype: Dtype, times: usize, gate: &Arc<Gate>) -> (Engine, Vec<GoldenPrompt>) {
    let model = load_model(name, dtype);
    let (groups, prompts) = (model.info().kv_groups, golden(name).prompts);
    let longest = prompts.iter().map(|prompt| prompt.ids.len() + prompt.greedy.len()).max().unwrap();
    let (few, whole) = blocks(groups, longest);
    assert!(few < whole, "{name}: {few} blocks for {longest} tokens, {whole} for all of them");
    (start_with(config(groups, times * few), model, gate.clone()).await, prompts)
}

fn opened() -> Arc<Gate> {
    let gate = Arc::new(Gate::default());
    gate.open();
    gate
}

fn ids(tokens: &[SampledToken]) -> Vec<u32> {
    tokens.iter().map(|token| token.id.0).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cache_too_small_for_a_whole_sequence_gives_the_references_tokens() {
    for name in WINDOWED {
        let (engine, prompts) = start(name, Dtype::Float32, 1, &opened()).await;
        for prompt in prompts {
            let tokens = read(engine.clone(), prompt.ids.clone()).await;
            assert_eq!(ids(&tokens), prompt.greedy, "{name}, a prompt of {}", prompt.ids.len());
        }
        assert_eq!(engine.telemetry().totals().preemptions, 0, "{name}: nobody else is there");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crowd_that_takes_each_others_blocks_gets_the_bits_that_each_gets_alone() {
    for name in WINDOWED {
        let (roomy, prompts) = start(name, Dtype::Bfloat16, 40, &opened()).await;
        let mut alone = Vec::new();
        for prompt in &prompts {
            alone.push(read(roomy.clone(), prompt.ids.clone()).await);
        }
        let gate = Arc::new(Gate::default());
        let (engine, _) = start(name, Dtype::Bfloat16, 3, &gate).await;
        let of = |k| k % prompts.len();
        let said = read_together(&engine, &gate, (0..3 * prompts.len()).map(|k| &prompts[of(k)].ids[..])).await;
        for (k, tokens) in said.iter().enumerate() {
            assert!(*tokens == alone[of(k)], "{name}: stream {k} is not what it is alone");
        }
        let preemptions = engine.telemetry().totals().preemptions;
        assert!(preemptions > 0, "{name}: nobody was preempted, so this shows nothing of it");
        crate::engine::until("every block is free again", || engine.telemetry().state().kv_cache_usage == 0.0).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prefix_of_several_windows_is_found_and_changes_no_bit() {
    for name in WINDOWED {
        let (engine, prompts) = start(name, Dtype::Bfloat16, 4, &opened()).await;
        let prompt = &prompts[3].ids;
        let first = read(engine.clone(), prompt.clone()).await;
        let before = engine.telemetry().totals().prefix_cache_hit_tokens;
        let second = read(engine.clone(), prompt.clone()).await;
        // All whole blocks of the prompt, but that its last token is computed.
        let expected = (prompt.len() / BLOCK_SIZE * BLOCK_SIZE).min(prompt.len() - 1) as u64;
        assert_eq!(engine.telemetry().totals().prefix_cache_hit_tokens - before, expected, "{name}");
        assert!(first == second, "{name}: another answer");
    }
}
