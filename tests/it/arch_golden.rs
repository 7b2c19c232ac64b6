//! Our models against Hugging Face transformers' results on the same small checkpoints, and against themselves however
//! a sequence is cut and whoever runs beside it.

mod bfloat16;
mod converted;
mod crowd;
mod driver;
mod embeddings;
mod experts;
mod filled;
mod fp8;
mod gguf;
mod gguf_file;
mod longrope;
mod lora;
mod oracle;
mod quality;
mod quantized;
mod runner;
mod stacked;
mod states;
mod stories;
mod windows;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use candlewick::{arch::moe_config::MoeConfig, config::Dtype, ids::TokenId, layers::context::LinearObserver};
use driver::{Ask, Driver, argmax, distance, golden, load_model, tokens};

const CHECKPOINTS: [&str; 39] = [
    "llama",
    "llama-biases",
    "llama-mha",
    "llama3-rope",
    "mistral",
    "qwen2",
    "qwen3",
    "phi3",
    "gemma2",
    "gemma3_text",
    "smollm3",
    "olmo2",
    "granite",
    "glm4",
    "starcoder2",
    "gpt2",
    "mixtral",
    "qwen3_moe",
    "gpt_oss",
    "cohere2",
    "exaone4",
    "stablelm",
    "stablelm-parallel",
    "gpt_neox",
    "ministral",
    "ministral3",
    "mistral3-vision",
    "gemma3-vision",
    "llama-linear",
    "llama-dynamic",
    "qwen3-yarn",
    "phi3-longrope",
    "deepseek_v3",
    "deepseek_v3-direct",
    "qwen3_5",
    "qwen3_5-tied",
    "qwen3_5-vision",
    "qwen3_5_moe",
    "qwen3_next",
];

#[test]
fn float32_logits_match_the_reference_in_one_piece_and_in_chunks() {
    for name in CHECKPOINTS {
        let mut driver = Driver::new(load_model(name, Dtype::Float32));
        for prompt in golden(name).prompts {
            let ids = tokens(&prompt.ids);
            let whole = driver.all_logits(&ids, ids.len());
            let far = distance(&whole[ids.len() - 1], &prompt.last_logits);
            assert!(far < 1e-4, "{name}, {} tokens: {far:e} away", ids.len());
            let best = whole.iter().map(|logits| argmax(logits)).collect::<Vec<_>>();
            assert_eq!(best, prompt.argmax, "{name}, {} tokens", ids.len());
            assert!(driver.all_logits(&ids, 5) == whole, "{name}, {} tokens: chunks of 5 differ", ids.len());
        }
    }
}

/// Checkpoints whose tokens choose experts: with random routers a token stands between two of them now and then, and less
/// than float32 may send it to the other one. `experts.rs` says how near such tokens stood, and holds the logits of all.
const ROUTED: [&str; 7] =
    ["mixtral", "qwen3_moe", "gpt_oss", "deepseek_v3", "deepseek_v3-direct", "qwen3_5_moe", "qwen3_next"];

#[test]
fn bfloat16_logits_are_the_same_in_one_piece_and_in_chunks() {
    for name in CHECKPOINTS {
        let mut driver = Driver::new(load_model(name, Dtype::Bfloat16));
        for prompt in golden(name).prompts {
            let ids = tokens(&prompt.ids);
            let whole = driver.all_logits(&ids, ids.len());
            assert!(driver.all_logits(&ids, 5) == whole, "{name}, {} tokens: chunks of 5 differ", ids.len());
        }
    }
}

#[test]
fn greedy_tokens_are_the_references() {
    for name in CHECKPOINTS {
        let mut driver = Driver::new(load_model(name, Dtype::Float32));
        for prompt in golden(name).prompts {
            assert_eq!(driver.greedy(&tokens(&prompt.ids), 32), prompt.greedy, "{name}, {} tokens", prompt.ids.len());
        }
    }
}

/// Sixteen sequences of 1 to 80 tokens, cut into chunks of 1 to 80, so that steps mix whole prompts, chunks and decodes.
fn mixed_sequences(name: &str) -> Vec<(Vec<TokenId>, usize)> {
    let prompts = golden(name).prompts;
    let chunks = [80, 5, 1, 7, 33, 16, 3, 2];
    (0..16).map(|k| (tokens(&prompts[k % prompts.len()].ids), chunks[k * 5 % chunks.len()])).collect()
}

#[test]
fn a_sequence_among_sixteen_gets_the_very_logits_it_gets_alone() {
    for (name, dtype) in CHECKPOINTS.into_iter().flat_map(|n| [(n, Dtype::Float32), (n, Dtype::Bfloat16)]) {
        let model = load_model(name, dtype);
        let work = mixed_sequences(name);
        let alone = work.iter().map(|(ids, chunk)| Driver::new(Arc::clone(&model)).all_logits(ids, *chunk));
        let alone = alone.collect::<Vec<_>>();

        let mut driver = Driver::new(model);
        let mut sequences = work.iter().map(|_| driver.sequence()).collect::<Vec<_>>();
        let mut left = work.iter().map(|(ids, chunk)| (ids.chunks(*chunk), Vec::new())).collect::<Vec<_>>();
        loop {
            let mut asks = Vec::new();
            let mut asked = Vec::new();
            for (k, (sequence, (chunks, _))) in sequences.iter_mut().zip(&mut left).enumerate() {
                if let Some(tokens) = chunks.next() {
                    asks.push(Ask { sequence, tokens, all_logits: true });
                    asked.push(k);
                }
            }
            if asks.is_empty() {
                break;
            }
            for (k, logits) in asked.into_iter().zip(driver.step(&mut asks)) {
                left[k].1.extend(logits);
            }
        }
        for (k, ((_, together), alone)) in left.iter().zip(&alone).enumerate() {
            assert!(together == alone, "{name} in {dtype:?}: sequence {k} differs from its solo run");
        }
    }
}

#[derive(Default)]
struct Counts(Mutex<BTreeMap<String, Vec<usize>>>);

impl LinearObserver for Counts {
    fn linear(&self, name: &str, rows: usize) {
        self.0.lock().expect("no panic").entry(name.to_owned()).or_default().push(rows);
    }
}

#[test]
fn every_linear_runs_once_a_step_over_all_scheduled_tokens_together() {
    for name in CHECKPOINTS {
        let model = load_model(name, Dtype::Float32);
        let config = model.config().clone();
        let mut driver = Driver::new(model);
        let counts = Arc::new(Counts::default());
        driver.observer = Some(Box::new(Arc::clone(&counts)));
        let (mut a, mut b, mut c) = (driver.sequence(), driver.sequence(), driver.sequence());
        let ids = tokens(&golden(name).prompts[2].ids);
        driver.step(&mut [
            Ask { sequence: &mut a, tokens: &ids[..7], all_logits: false },
            Ask { sequence: &mut b, tokens: &ids[..1], all_logits: false },
            Ask { sequence: &mut c, tokens: &ids[..20], all_logits: false },
        ]);
        let counts = std::mem::take(&mut *counts.0.lock().expect("no panic"));
        let (experts, all): (Vec<_>, Vec<_>) = counts.into_iter().partition(|(linear, _)| linear.contains(".experts."));
        let layers = config.num_hidden_layers;
        let moe = config.moe.as_ref();
        let sparse = moe.map_or(0, |moe| (0..layers).filter(|&layer| moe.in_layer(layer)).count());
        // Query, key and value are one product; out of latents they are three, or two with plain queries.
        let attention = config.latent.map_or(2, |latent| 4 + usize::from(latent.q_rank.is_some()));
        // A router and perhaps a shared expert stand for the two Linears of a layer without experts.
        let shared = |moe: &MoeConfig| moe.shared_experts > 0 || moe.weighed_expert_size.is_some();
        let routers = 1 + if moe.is_some_and(shared) { 2 } else { 0 };
        let attention = match &config.linear_attention {
            // Of a layer with a state one to queries, keys, values and gate, one to how it changes, and one from it.
            Some(linear) => attention * linear.num_kv_layers() + 3 * linear.state_shape().num_layers,
            None => attention * layers,
        };
        let wanted = attention + 2 * (layers - sparse) + routers * sparse + 1;
        assert_eq!(all.len(), wanted, "{name}: {all:?}");
        for (linear, runs) in all {
            // The head alone runs over fewer: the three tokens whose logits were asked for.
            let rows = if linear == "lm_head" || linear == "embed_out" { 3 } else { 28 };
            assert_eq!(runs, [rows], "{name}: {linear}");
        }
        // A token's experts are two Linears each, which run once over all of their tokens.
        assert!(experts.iter().all(|(_, runs)| runs.len() == 1), "{name}: {experts:?}");
        let rows: usize = experts.iter().flat_map(|(_, runs)| runs).sum();
        assert_eq!(rows, 2 * 28 * sparse * moe.map_or(0, |moe| moe.experts_per_token), "{name}");
    }
}
