//! From what was asked for to what is in force, given the model and the machine. Pure.

use std::time::Duration;

use super::{EngineArgs, EngineConfig};
use crate::error::{Error, Result};

/// What [`resolve`] must know of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModelFacts {
    /// Positions the model can tell apart.
    pub max_position_embeddings: usize,
    /// Bytes that one token's keys and values take, all layers together.
    pub kv_bytes_per_token: usize,
}

/// What [`resolve`] must know of the machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MachineFacts {
    /// Memory that is free on the device, once the weights are loaded; `None` where nobody can say.
    pub available_memory_bytes: Option<usize>,
}

/// Share of the free memory that the KV cache takes unless told otherwise, its cap, and what it takes where nobody
/// knows how much is free.
const DEFAULT_KV_SHARE: usize = 4;
const DEFAULT_KV_CAP_BYTES: usize = 4 << 30;
const UNKNOWN_MEMORY_KV_BYTES: usize = 1 << 30;

const MAX_MODEL_LEN: &str = "--max-model-len";

/// What is in force for this model on this machine.
///
/// The number of blocks is `--num-gpu-blocks-override`, or what fits into `--kv-cache-memory-bytes`, or what fits into
/// a quarter of the free memory and 4 GiB, but then no more than `--max-num-seqs` sequences of full length can use.
/// Without `--max-model-len` a sequence may be as long as the model's context and the KV cache allow.
///
/// # Errors
/// `InvalidArgument` that names the flag and says which value would do.
pub fn resolve(args: &EngineArgs, model: &ModelFacts, machine: &MachineFacts) -> Result<EngineConfig> {
    let context = model.max_position_embeddings;
    if let Some(asked) = args.max_model_len.filter(|asked| !(1..=context).contains(asked)) {
        let why = format!("is {asked}, must be from 1 to the model's context of {context} tokens");
        return Err(Error::invalid(MAX_MODEL_LEN, why));
    }
    let num_blocks = num_blocks(args, model, machine)?;
    let max_model_len = max_model_len(args, model, num_blocks * args.block_size)?;
    Ok(EngineConfig {
        block_size: args.block_size,
        num_blocks,
        max_num_batched_tokens: args.max_num_batched_tokens,
        itl_target: args.itl_target_ms.map(|ms| Duration::from_millis(ms as u64)),
        max_num_seqs: args.max_num_seqs,
        max_model_len,
        max_waiting: args.max_waiting,
        stream_capacity_tokens: args.stream_capacity_tokens,
        enable_prefix_caching: args.enable_prefix_caching && !args.no_enable_prefix_caching,
        enable_kv_cache_events: args.enable_kv_cache_events,
        stall_timeout: args.stall_timeout,
        step_timeout: args.step_timeout,
        leased_kv_percent: args.leased_kv_percent,
        pinned_kv_percent: args.pinned_kv_percent,
    })
}

fn num_blocks(args: &EngineArgs, model: &ModelFacts, machine: &MachineFacts) -> Result<usize> {
    let block_bytes = model.kv_bytes_per_token.saturating_mul(args.block_size).max(1);
    let (flag, blocks) = if let Some(blocks) = args.num_gpu_blocks_override {
        ("--num-gpu-blocks-override", blocks)
    } else if let Some(bytes) = args.kv_cache_memory_bytes {
        ("--kv-cache-memory-bytes", bytes / block_bytes)
    } else {
        let bytes = machine
            .available_memory_bytes
            .map_or(UNKNOWN_MEMORY_KV_BYTES, |available| (available / DEFAULT_KV_SHARE).min(DEFAULT_KV_CAP_BYTES));
        let longest = args.max_model_len.unwrap_or(model.max_position_embeddings);
        let usable = longest.div_ceil(args.block_size).saturating_mul(args.max_num_seqs);
        ("--kv-cache-memory-bytes", (bytes / block_bytes).min(usable))
    };
    if blocks == 0 {
        let why = format!("is too small for a block of {} tokens, which takes {block_bytes} bytes", args.block_size);
        return Err(Error::invalid(flag, why));
    }
    // Slots are numbered with 32 bits.
    let most = u32::MAX as usize / args.block_size;
    if blocks > most {
        return Err(Error::invalid(flag, format!("makes {blocks} blocks of {}, at most {most} work", args.block_size)));
    }
    Ok(blocks)
}

fn max_model_len(args: &EngineArgs, model: &ModelFacts, capacity_tokens: usize) -> Result<usize> {
    match args.max_model_len {
        Some(asked) if asked > capacity_tokens => {
            let tokens = asked.div_ceil(args.block_size).saturating_mul(args.block_size);
            let bytes = tokens.saturating_mul(model.kv_bytes_per_token);
            let why = format!(
                "is {asked}, but the KV cache holds {capacity_tokens} tokens: ask for at most that many, or make the \
                 cache larger with --kv-cache-memory-bytes {bytes}"
            );
            Err(Error::invalid(MAX_MODEL_LEN, why))
        }
        Some(asked) => Ok(asked),
        None => {
            let context = model.max_position_embeddings;
            if capacity_tokens < context {
                tracing::warn!(
                    "sequences end at {capacity_tokens} tokens, which is what the KV cache holds; the model could go \
                     on to {context} (--kv-cache-memory-bytes makes the cache larger)"
                );
            }
            Ok(context.min(capacity_tokens))
        }
    }
}
