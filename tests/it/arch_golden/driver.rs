//! Drives a model step by step over hand-made block tables, as the engine's runner does.

use std::{path::PathBuf, sync::Arc};

use candle_core::Device;
use candlewick::{
    arch::{Model, ModelLoad, config::ModelConfig, load},
    config::{Dtype, KvCacheDtype, Quantization},
    ids::{BlockId, Slot, StateSlot, TokenId},
    kernels::{
        device::{make_batch_invariant, open_cuda},
        linear::check_fp8,
        paged_attention::AttentionMetadata,
    },
    layers::{
        context::{KvCache, KvGroupStep, LinearObserver, StepContext},
        state::{StateCache, StepStates},
    },
    weights::{Weights, safetensors::SafetensorsSource},
};
use serde::Deserialize;

use crate::place::repository;

pub(super) const BLOCK_SIZE: usize = 16;
/// Blocks of the test's cache.
const NUM_BLOCKS: usize = 256;

/// States beside it.
const NUM_STATES: usize = 64;

/// The reference's results for one checkpoint.
#[derive(Deserialize)]
pub(super) struct Golden {
    pub(super) prompts: Vec<GoldenPrompt>,
}

#[derive(Deserialize)]
pub(super) struct GoldenPrompt {
    pub(super) ids: Vec<u32>,
    pub(super) last_logits: Vec<f32>,
    /// Most likely next token at each position.
    pub(super) argmax: Vec<u32>,
    /// 32 tokens, each the most likely after those before it.
    pub(super) greedy: Vec<u32>,
}

pub(super) fn fixture(name: &str) -> PathBuf {
    repository("tests/fixtures/golden").join(name)
}

pub(super) fn golden(name: &str) -> Golden {
    let text = std::fs::read_to_string(fixture(name).join("golden.json")).expect("golden.json");
    serde_json::from_str(&text).expect("golden.json parses")
}

pub(super) fn config(name: &str) -> ModelConfig {
    let path = fixture(name).join("config.json");
    ModelConfig::from_hf_json(&path, &std::fs::read_to_string(&path).expect("config.json")).expect("config.json parses")
}

pub(super) fn load_model(name: &str, dtype: Dtype) -> Arc<dyn Model> {
    let source = SafetensorsSource::open(&fixture(name)).expect("safetensors");
    load_weights(&Weights::new(Box::new(source)), &config(name), dtype)
}

/// Says which card models run on, by its number.
const CARD: &str = "CANDLEWICK_TEST_CARD";

/// How much farther from float32 fewer bits may be than they were measured to be on the CPU, where results are the same on every
/// machine; a card adds in orders of its own, and random weights magnify what that does.
pub(super) fn growth() -> f64 {
    if std::env::var_os(CARD).is_some() { 3.0 } else { 1.5 }
}

/// Where models run: on the CPU, or on the card that is said, with products that do not depend on the batch. A card that is named
/// and cannot be used fails the test.
fn device() -> Device {
    let Ok(card) = std::env::var(CARD) else { return Device::Cpu };
    let card = card.parse().expect("CANDLEWICK_TEST_CARD is a card's number");
    make_batch_invariant();
    open_cuda(card).expect("the card that CANDLEWICK_TEST_CARD says")
}

/// Whether that is a card without products of eight-bit floats. The CPU has loops for tests.
pub(super) fn lacks_fp8() -> bool {
    let device = device();
    !device.is_cpu() && check_fp8(&device).is_err()
}

pub(super) fn load_weights(weights: &Weights, config: &ModelConfig, dtype: Dtype) -> Arc<dyn Model> {
    load_quantized(weights, config, dtype, None)
}

pub(super) fn load_quantized(
    weights: &Weights,
    config: &ModelConfig,
    dtype: Dtype,
    quantization: Option<Quantization>,
) -> Arc<dyn Model> {
    let device = &device();
    load(&ModelLoad {
        weights,
        config,
        device,
        dtype,
        quantization,
        kv_cache_dtype: KvCacheDtype::Auto,
        progress: &|_, _| (),
    })
    .expect("the model loads")
}

/// A sequence's place in the cache.
pub(super) struct Sequence {
    /// Of each group of layers.
    blocks: Vec<Vec<BlockId>>,
    state: StateSlot,
    context_len: usize,
}

/// What a step is asked for one sequence: run these tokens, and give the logits of all of them or of the last.
pub(super) struct Ask<'a> {
    pub(super) sequence: &'a mut Sequence,
    pub(super) tokens: &'a [TokenId],
    pub(super) all_logits: bool,
}

/// A model and its cache. Blocks are handed out in an order that makes no two neighbours.
pub(super) struct Driver {
    model: Arc<dyn Model>,
    kv: KvCache,
    states: Option<StateCache>,
    handed_out: usize,
    num_sequences: usize,
    pub(super) observer: Option<Box<dyn LinearObserver>>,
}

impl Driver {
    pub(super) fn new(model: Arc<dyn Model>) -> Self {
        let num_blocks = NUM_BLOCKS * model.info().kv_groups.count();
        let kv = model.new_kv_cache(num_blocks, BLOCK_SIZE).expect("a small cache");
        let states = model.new_states(NUM_STATES).expect("a few states");
        Self { model, kv, states, handed_out: 0, num_sequences: 0, observer: None }
    }

    pub(super) fn sequence(&mut self) -> Sequence {
        // States that others have left are taken again.
        self.num_sequences += 1;
        let state = StateSlot((self.num_sequences * 23 % NUM_STATES) as u32);
        Sequence { blocks: vec![Vec::new(); self.kv.groups().count()], state, context_len: 0 }
    }

    fn new_block(&mut self) -> BlockId {
        self.handed_out += 1;
        let num_blocks = self.kv.shape().num_blocks;
        assert!(self.handed_out <= num_blocks, "the test needs more blocks");
        BlockId((self.handed_out * 89 % num_blocks) as u32)
    }

    /// Runs one step; logits a sequence, a row each token asked for.
    pub(super) fn step(&mut self, asks: &mut [Ask<'_>]) -> Vec<Vec<Vec<f32>>> {
        let attention =
            AttentionMetadata { block_size: BLOCK_SIZE, cu_seqlens: vec![0], cu_blocks: vec![0], ..Default::default() };
        let group = KvGroupStep { attention, ..KvGroupStep::default() };
        let mut groups = vec![group; self.kv.groups().count()];
        let (mut token_ids, mut positions, mut logit_rows) = (vec![], vec![], vec![]);
        let slots: Vec<_> = asks.iter().map(|ask| ask.sequence.state).collect();
        for Ask { sequence, tokens, all_logits } in asks.iter_mut() {
            for (k, token) in tokens.iter().enumerate() {
                let position = sequence.context_len + k;
                for (blocks, group) in sequence.blocks.iter_mut().zip(&mut groups) {
                    if position / BLOCK_SIZE == blocks.len() {
                        blocks.push(self.new_block());
                    }
                    let block = blocks[position / BLOCK_SIZE].index();
                    group.slot_mapping.push(Slot((block * BLOCK_SIZE + position % BLOCK_SIZE) as u32));
                }
                if *all_logits || k + 1 == tokens.len() {
                    logit_rows.push(token_ids.len() as u32);
                }
                token_ids.push(*token);
                positions.push(position as u32);
            }
            for (blocks, KvGroupStep { attention, .. }) in sequence.blocks.iter().zip(&mut groups) {
                attention.context_lens.push(sequence.context_len as u32);
                attention.block_tables.extend_from_slice(blocks);
                attention.cu_seqlens.push(token_ids.len() as u32);
                attention.cu_blocks.push(attention.block_tables.len() as u32);
            }
            sequence.context_len += tokens.len();
        }
        let observer = self.observer.as_deref();
        let step = StepContext {
            placed_ids: None,
            adapters: None,
            positions: &positions,
            groups: &groups,
            kv: &self.kv,
            states: self.states.as_ref().map(|cache| StepStates { cache, slots: &slots }),
            observer,
        };
        let logits = self.model.forward(&token_ids, &logit_rows, &step).expect("a step");
        let mut logits = logits.to_vec2::<f32>().expect("logits").into_iter();
        let rows = |ask: &Ask<'_>| if ask.all_logits { ask.tokens.len() } else { 1 };
        asks.iter().map(|ask| logits.by_ref().take(rows(ask)).collect()).collect()
    }

    /// Logits of every token of `ids`, run alone in chunks of `chunk`.
    pub(super) fn all_logits(&mut self, ids: &[TokenId], chunk: usize) -> Vec<Vec<f32>> {
        let mut sequence = self.sequence();
        let run = |tokens| self.step(&mut [Ask { sequence: &mut sequence, tokens, all_logits: true }]).remove(0);
        ids.chunks(chunk).flat_map(run).collect()
    }

    /// `count` tokens after `ids`, each the most likely.
    pub(super) fn greedy(&mut self, ids: &[TokenId], count: usize) -> Vec<u32> {
        let mut sequence = self.sequence();
        let mut tokens = ids.to_vec();
        let mut out = Vec::new();
        while out.len() < count {
            let logits =
                self.step(&mut [Ask { sequence: &mut sequence, tokens: &tokens, all_logits: false }]).remove(0);
            out.push(argmax(&logits[0]));
            tokens = vec![TokenId(out[out.len() - 1])];
        }
        out
    }
}

pub(super) fn tokens(ids: &[u32]) -> Vec<TokenId> {
    ids.iter().copied().map(TokenId).collect()
}

/// The index of the greatest, the first of equals.
pub(super) fn argmax(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (k, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = k;
        }
    }
    best as u32
}

/// ‖out − reference‖ / ‖reference‖
pub(super) fn distance(out: &[f32], reference: &[f32]) -> f64 {
    assert_eq!(out.len(), reference.len());
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|v| v * v).sum::<f64>().sqrt();
    let pairs = out.iter().zip(reference);
    norm(&mut pairs.map(|(o, r)| f64::from(*o) - f64::from(*r))) / norm(&mut reference.iter().map(|r| f64::from(*r)))
}
