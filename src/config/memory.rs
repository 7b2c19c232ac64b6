//! What a model takes in memory, added up before it is loaded, and how much of the rest its KV cache gets. Pure.

use std::fmt;

use super::{EngineArgs, KvCacheMemory, MachineFacts, MemoryBound, ModelFacts};
use crate::error::{Code, Error, Result};

/// Share of the memory that is left beside weights and activations that the KV cache takes unless told otherwise, its cap,
/// and what it takes where nobody knows how much is free.
const AUTO_KV_SHARE: usize = 4;
const AUTO_KV_CAP_BYTES: usize = 4 << 30;
const UNKNOWN_MEMORY_KV_BYTES: usize = 1 << 30;

/// What stays free whatever is asked for: an eighth of what is available, at most a gibibyte. It is for what no sum knows:
/// connections, texts under way, masks of grammars, pages of files, the allocator's gaps.
const ROOM_SHARE: usize = 8;
const ROOM_CAP_BYTES: usize = 1 << 30;

/// A cache of fewer tokens than this (or than the model's context, if that is shorter) serves nobody: rather than shrink
/// it further, the load is refused.
const LEAST_CONTEXT_TOKENS: usize = 512;

/// Rows of logits that the log-probabilities of a prompt take at once.
const PROMPT_LOGIT_ROWS: usize = 32;

/// The sum, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryPlan {
    /// Weights as they are kept.
    pub weights: usize,
    /// LoRA adapters beside them, as many as may be loaded.
    pub adapters: usize,
    /// The KV cache.
    pub kv: usize,
    /// What is kept of `--max-num-seqs` sequences beside it.
    pub states: usize,
    /// What a step of the most tokens takes on its way.
    pub activations: usize,
    /// What is decoded at once while weights are loaded, before there is a cache or a step.
    pub loading: usize,
    /// What stays free.
    pub room: usize,
    /// What there is; `None` where nobody can say.
    pub available: Option<usize>,
    /// What says so.
    pub bound: MemoryBound,
}

impl MemoryPlan {
    /// What the model may take while it runs, whether it has taken it yet or not.
    #[must_use]
    pub fn promised(&self) -> usize {
        self.weights.saturating_add(self.beside_weights())
    }

    /// Everything together, at the time when it is most.
    #[must_use]
    pub fn needed(&self) -> usize {
        self.weights.saturating_add(self.beside_weights().max(self.loading)).saturating_add(self.room)
    }

    fn beside_weights(&self) -> usize {
        [self.adapters, self.kv, self.states, self.activations].into_iter().fold(0, usize::saturating_add)
    }

    /// Whether it is there.
    #[must_use]
    pub fn fits(&self) -> bool {
        self.available.is_none_or(|available| self.needed() <= available)
    }
}

impl fmt::Display for MemoryPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { weights, adapters, kv, states, activations, loading, room, available, bound } = *self;
        write!(f, "weights {}", Mib(weights))?;
        if loading > self.beside_weights() {
            write!(f, " + decoding them {}", Mib(loading))?;
        } else {
            if adapters > 0 {
                write!(f, " + adapters {}", Mib(adapters))?;
            }
            write!(f, " + KV cache {}", Mib(kv))?;
            if states > 0 {
                write!(f, " + states {}", Mib(states))?;
            }
            write!(f, " + activations {}", Mib(activations))?;
        }
        write!(f, " + room {} = {}", Mib(room), Mib(self.needed()))?;
        match available {
            Some(available) => {
                let sign = if self.fits() { "of" } else { ">" };
                write!(f, " {sign} {} available ({bound})", Mib(available))
            }
            None => write!(f, "; nobody says how much is available"),
        }
    }
}

/// Bytes in mebibytes, rounded up.
struct Mib(usize);

impl fmt::Display for Mib {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} MiB", self.0.div_ceil(1 << 20))
    }
}

/// How many blocks the KV cache gets, and the sum that this makes.
///
/// What `--num-gpu-blocks-override` or `--kv-cache-memory-bytes` asks for is cut down to what fits; `auto` takes a quarter of
/// what weights and activations leave, at most 4 GiB, or on a card all that they leave, no more than `--max-num-seqs`
/// sequences of full length can use, and where that is there no less than `--max-model-len` needs. An eighth of all memory,
/// at most a gibibyte, stays free.
///
/// # Errors
/// `FailedPrecondition` with the sum where the model does not fit, `InvalidArgument` that names the flag where it is too
/// small for a block or too large to number.
pub fn plan_memory(args: &EngineArgs, model: &ModelFacts, machine: &MachineFacts) -> Result<(usize, MemoryPlan)> {
    let block_bytes = model.block_bytes(args.block_size);
    let available = machine.available_memory_bytes;
    // Steps that a card has recorded keep what they work on, and their logits, to themselves.
    let recorded = if machine.bound == MemoryBound::Card { args.recorded_seqs() } else { 0 };
    let logit_rows = args.max_num_seqs.min(args.max_num_batched_tokens).max(PROMPT_LOGIT_ROWS) + recorded;
    let step_tokens = args.max_num_batched_tokens + recorded;
    let mut plan = MemoryPlan {
        weights: model.weight_bytes,
        adapters: model.adapter_bytes,
        kv: 0,
        states: model.state_bytes_per_sequence.saturating_mul(args.max_num_seqs),
        activations: (model.activation_bytes_per_token.saturating_mul(step_tokens))
            .saturating_add(model.logit_row_bytes.saturating_mul(logit_rows)),
        loading: model.loading_bytes,
        room: available.map_or(0, |available| (available / ROOM_SHARE).min(ROOM_CAP_BYTES)),
        available,
        bound: machine.bound,
    };
    let groups = model.kv_groups;
    let blocks_of = |tokens: usize| groups.blocks(tokens, args.block_size, args.max_num_batched_tokens);
    // No shorter than this: one sequence as long as is asked for, or one of use.
    let least_tokens = args.max_model_len.unwrap_or_else(|| model.max_position_embeddings.min(LEAST_CONTEXT_TOKENS));
    let least = blocks_of(least_tokens);
    let beside = |room| {
        let taken = [plan.weights, plan.adapters, plan.states, plan.activations, room];
        available.map(|bytes| taken.into_iter().fold(bytes, usize::saturating_sub))
    };
    // No more than this is of use to those that run.
    let usable =
        blocks_of(args.max_model_len.unwrap_or(model.max_position_embeddings)).saturating_mul(args.max_num_seqs);
    let (flag, wanted) = match (args.num_gpu_blocks_override, args.kv_cache_memory_bytes) {
        // Each is of all layers, so that the flag means the same tokens for every model.
        (Some(blocks), _) => ("--num-gpu-blocks-override", blocks.saturating_mul(groups.count())),
        (None, KvCacheMemory::Bytes(bytes)) => {
            // What a prefix leaves is kept for others; where nobody can go on from it, a block may take next to nothing.
            let most = if model.prefixes_are_shared { usize::MAX } else { usable };
            ("--kv-cache-memory-bytes", (bytes / block_bytes).min(most))
        }
        (None, KvCacheMemory::Auto) => {
            let share = match (machine.bound, beside(0)) {
                // Nothing else lives there: no files, no other programs that nobody has counted.
                (MemoryBound::Card, _) => beside(plan.room).unwrap_or(0),
                (_, Some(bytes)) => (bytes / AUTO_KV_SHARE).min(AUTO_KV_CAP_BYTES),
                (_, None) => UNKNOWN_MEMORY_KV_BYTES,
            };
            ("--kv-cache-memory-bytes", (share / block_bytes).max(least).min(usable))
        }
    };
    if wanted < groups.count() {
        let bytes = block_bytes.saturating_mul(groups.count());
        let why =
            format!("is too small for {} tokens, a block of all layers, which takes {bytes} bytes", args.block_size);
        return Err(Error::invalid(flag, why));
    }
    // Slots are numbered with 32 bits.
    let most = u32::MAX as usize / args.block_size;
    if wanted > most {
        return Err(Error::invalid(flag, format!("makes {wanted} blocks of {}, at most {most} work", args.block_size)));
    }
    let fitting = beside(plan.room).map_or(wanted, |left| wanted.min(left / block_bytes));
    plan.kv = fitting.saturating_mul(block_bytes);
    if fitting < wanted.min(least) || !plan.fits() {
        plan.kv = wanted.min(least).saturating_mul(block_bytes);
        let tokens = groups.longest(wanted.min(least), args.block_size, args.max_num_batched_tokens);
        return Err(does_not_fit(&plan, tokens.min(least_tokens)));
    }
    if fitting < wanted {
        let asked = MemoryPlan { kv: wanted.saturating_mul(block_bytes), ..plan };
        tracing::warn!(
            "the KV cache is cut from {wanted} to {fitting} blocks of {} tokens, which is what fits: {asked}",
            args.block_size
        );
    }
    Ok((fitting, plan))
}

fn does_not_fit(plan: &MemoryPlan, tokens: usize) -> Error {
    let why = format!(
        "the model does not fit into memory, even with a KV cache of {tokens} tokens: {plan}. What makes it smaller: \
         --quantization (weights), --max-model-len and --kv-cache-dtype fp8 (KV cache), --max-num-batched-tokens and \
          --max-num-seqs (activations, states), --max-loras and --max-lora-rank (adapters)"
    );
    Error::new(Code::FailedPrecondition, why)
}
