//! What the engine thread says of itself after each step.

use std::{
    sync::{Arc, PoisonError},
    time::Duration,
};

use prometheus_client::metrics::counter::Counter;

use super::Telemetry;

/// What the engine holds after a step.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct EngineState {
    /// Sequences that hold blocks.
    pub num_running: u64,
    /// Requests that wait to run, preempted ones included.
    pub num_waiting: u64,
    /// Tokens that they bring and that have yet to be computed.
    pub num_waiting_tokens: u64,
    /// Share of the KV blocks that sequences hold, 0 to 1; cached blocks that nobody refers to do not count.
    pub kv_cache_usage: f64,
    /// Sequences, among those that hold blocks, that are out of the batch until their readers take what was sent.
    pub num_paused: u64,
    /// The KV blocks.
    pub blocks: BlockStates,
}

/// KV blocks by who has them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlockStates {
    /// Sequences, running or paused.
    pub sequences: u64,
    /// Conversations between two turns.
    pub leases: u64,
    /// Nobody.
    pub free: u64,
    /// Blocks of whichever of these whose content the prefix cache can find.
    pub cached: u64,
}

/// What one step computed, and how long its phases took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StepFacts {
    /// Sequences whose prompt, or what a preemption or a grammar left to compute, was in the batch.
    pub prefill_sequences: usize,
    /// … and their tokens.
    pub prefill_tokens: usize,
    /// Sequences that went on by their newest token.
    pub decode_sequences: usize,
    /// Tokens whose keys and values were read: of each sequence all that it has so far.
    pub context_tokens: usize,
    /// Choosing who is in the batch.
    pub schedule: Duration,
    /// The model and the sampler.
    pub execute: Duration,
    /// Taking in what came of it, and handing it over to the readers.
    pub apply: Duration,
}

/// What a step of a model reads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ModelBytes {
    /// All weights, as they are kept. Of experts more than are chosen, and more of an embedding than is looked up.
    pub weights: u64,
    /// Keys and values of a token, all layers together. Layers with a window read fewer tokens than there are.
    pub kv_per_token: u64,
}

/// What one life of the engine has counted since it began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EngineTotals {
    /// Sequences that lost their blocks to others.
    pub preemptions: u64,
    /// Prompt tokens looked up in the prefix cache.
    pub prefix_cache_query_tokens: u64,
    /// … and found there.
    pub prefix_cache_hit_tokens: u64,
    /// Blocks copied on write.
    pub block_copies: u64,
    /// Cached blocks given to others.
    pub block_evictions: u64,
}

/// Turns the running totals of one life of the engine into counters that only ever grow, whichever life it is.
#[derive(Debug)]
pub struct Reporter {
    telemetry: Arc<Telemetry>,
    last: EngineTotals,
}

impl Reporter {
    /// For a new engine, whose totals begin at zero.
    #[must_use]
    pub fn new(telemetry: Arc<Telemetry>) -> Self {
        Self { telemetry, last: EngineTotals::default() }
    }

    /// Publishes what the engine holds and has counted; call it once a step.
    pub fn report(&mut self, state: EngineState, totals: EngineTotals) {
        let (telemetry, last) = (&self.telemetry, &self.last);
        telemetry.set_state(state);
        let advance = |counter: &Counter, now: u64, before: u64| {
            if now > before {
                counter.inc_by(now - before);
            }
        };
        advance(&telemetry.num_preemptions, totals.preemptions, last.preemptions);
        advance(&telemetry.prefix_cache_queries, totals.prefix_cache_query_tokens, last.prefix_cache_query_tokens);
        advance(&telemetry.prefix_cache_hits, totals.prefix_cache_hit_tokens, last.prefix_cache_hit_tokens);
        advance(&telemetry.block_copies, totals.block_copies, last.block_copies);
        advance(&telemetry.block_evictions, totals.block_evictions, last.block_evictions);
        self.last = totals;
    }

    /// Publishes one step: ten uncontended locks at the most.
    pub fn record_step(&self, step: &StepFacts) {
        let telemetry = &self.telemetry;
        self.record_read(step);
        telemetry.iteration_tokens.observe((step.prefill_tokens + step.decode_sequences) as f64);
        let [prefill, decode] = &telemetry.batch_tokens;
        prefill.inc_by(step.prefill_tokens as u64);
        decode.inc_by(step.decode_sequences as u64);
        let [prefill, decode] = &telemetry.batch_sequences;
        prefill.set(step.prefill_sequences as u64);
        decode.set(step.decode_sequences as u64);
        let phases = [step.schedule, step.execute, step.apply];
        for (histogram, took) in telemetry.step_time.iter().zip(phases) {
            histogram.observe(took.as_secs_f64());
        }
    }

    fn record_read(&self, step: &StepFacts) {
        let model = *self.telemetry.model_bytes.lock().unwrap_or_else(PoisonError::into_inner);
        if step.prefill_tokens + step.decode_sequences == 0 {
            return;
        }
        let kv_bytes = model.kv_per_token * step.context_tokens as u64;
        let [weights, kv_cache] = &self.telemetry.read_bytes;
        weights.inc_by(model.weights);
        kv_cache.inc_by(kv_bytes);
        // Steps that compute prompts multiply longer than they read.
        if step.prefill_tokens == 0 && !step.execute.is_zero() {
            let bytes = (model.weights + kv_bytes) as f64;
            self.telemetry.decode_read_rate.observe(bytes / step.execute.as_secs_f64());
        }
    }
}
