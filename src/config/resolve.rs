//! From what was asked for to what is in force, given the model and the machine. Pure.

use std::time::Duration;

use super::{EngineArgs, EngineConfig, KvCacheGroups, LogRequests, LoraArgs, MachineFacts, plan_memory};
use crate::error::{Error, Result};

/// What [`resolve`] must know of a model; all of it can be read off its files' headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModelFacts {
    /// Positions the model can tell apart.
    pub max_position_embeddings: usize,
    /// Bytes that one token's keys and values take, all layers together.
    pub kv_bytes_per_token: usize,
    /// Which layers share blocks of the KV cache, and which need those of a window only.
    pub kv_groups: KvCacheGroups,
    /// As [`EngineConfig::prefixes_are_shared`].
    pub prefixes_are_shared: bool,
    /// Bytes of what is kept of a sequence beside its blocks, however long it is.
    pub state_bytes_per_sequence: usize,
    /// Bytes of its weights as they are kept.
    pub weight_bytes: usize,
    /// Most bytes that are decoded at once while they are loaded.
    pub loading_bytes: usize,
    /// Bytes that a token of a step takes on its way through the model.
    pub activation_bytes_per_token: usize,
    /// Bytes that a row of logits takes until a token is chosen.
    pub logit_row_bytes: usize,
    /// Bytes that a LoRA adapter of rank 1 takes beside all of its Linears but experts'.
    pub adapter_bytes_per_rank: usize,
    /// Bytes of all adapters that there may be at once.
    pub adapter_bytes: usize,
}

/// The ranks of an adapter's matrices are rounded up to this when they are packed.
const RANKS_PACKED: usize = 16;

impl ModelFacts {
    /// The same model with as many adapters beside it, of the greatest rank, as may be loaded.
    #[must_use]
    pub fn with_adapters(self, args: &LoraArgs) -> Self {
        let count = if args.allow_runtime_lora_updating { args.max_loras } else { args.lora_modules.len() };
        let each = self.adapter_bytes_per_rank.saturating_mul(args.max_lora_rank.next_multiple_of(RANKS_PACKED));
        Self { adapter_bytes: each.saturating_mul(count), ..self }
    }

    /// Bytes of a block of so many tokens.
    #[must_use]
    pub fn block_bytes(&self, block_size: usize) -> usize {
        self.kv_groups.block_bytes_per_token(self.kv_bytes_per_token).saturating_mul(block_size).max(1)
    }
}

impl Default for ModelFacts {
    fn default() -> Self {
        Self {
            max_position_embeddings: 0,
            kv_bytes_per_token: 0,
            prefixes_are_shared: true,
            state_bytes_per_sequence: 0,
            weight_bytes: 0,
            loading_bytes: 0,
            activation_bytes_per_token: 0,
            logit_row_bytes: 0,
            kv_groups: KvCacheGroups::ONE,
            adapter_bytes_per_rank: 0,
            adapter_bytes: 0,
        }
    }
}

const MAX_MODEL_LEN: &str = "--max-model-len";

/// What is in force for this model on this machine.
///
/// [`plan_memory`] says how many blocks there are. Without `--max-model-len` a sequence may be as long as the model's
/// context and the KV cache allow.
///
/// # Errors
/// `InvalidArgument` that names the flag and says which value would do; `FailedPrecondition` with the sum where the model
/// does not fit into memory.
pub fn resolve(args: &EngineArgs, model: &ModelFacts, machine: &MachineFacts) -> Result<EngineConfig> {
    let context = model.max_position_embeddings;
    if let Some(asked) = args.max_model_len.filter(|asked| !(1..=context).contains(asked)) {
        let why = format!("is {asked}, must be from 1 to the model's context of {context} tokens");
        return Err(Error::invalid(MAX_MODEL_LEN, why));
    }
    let (num_blocks, memory) = plan_memory(args, model, machine)?;
    let longest = model.kv_groups.longest(num_blocks, args.block_size, args.max_num_batched_tokens);
    let max_model_len = max_model_len(args, model, longest)?;
    tracing::info!("memory: {memory}");
    Ok(EngineConfig {
        block_size: args.block_size,
        num_blocks,
        kv_groups: model.kv_groups,
        max_num_batched_tokens: args.max_num_batched_tokens,
        itl_target: args.itl_target_ms.map(|ms| Duration::from_millis(ms as u64)),
        max_num_seqs: args.max_num_seqs,
        max_cudagraph_capture_size: args.recorded_seqs(),
        max_model_len,
        max_waiting: args.max_waiting,
        stream_capacity_tokens: args.stream_capacity_tokens,
        enable_prefix_caching: args.enable_prefix_caching
            && !args.no_enable_prefix_caching
            && model.prefixes_are_shared,
        prefixes_are_shared: model.prefixes_are_shared,
        enable_kv_cache_events: args.enable_kv_cache_events,
        stall_timeout: args.stall_timeout,
        step_timeout: args.step_timeout,
        leased_kv_percent: args.leased_kv_percent,
        pinned_kv_percent: args.pinned_kv_percent,
        promised_bytes: memory.promised() as u64,
        log_requests: args.enable_log_requests.then_some(LogRequests { max_len: args.max_log_len }),
    })
}

fn max_model_len(args: &EngineArgs, model: &ModelFacts, capacity_tokens: usize) -> Result<usize> {
    match args.max_model_len {
        Some(asked) if asked > capacity_tokens => {
            let blocks = model.kv_groups.blocks(asked, args.block_size, args.max_num_batched_tokens);
            let bytes = blocks.saturating_mul(model.block_bytes(args.block_size));
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
