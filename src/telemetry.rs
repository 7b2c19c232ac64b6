//! Every metric by its name: what the engine and the faces count, and how Prometheus reads it.
//!
//! Names and labels are vLLM's (<https://docs.vllm.ai/en/latest/usage/metrics/>) wherever vLLM has the metric, so that
//! its dashboards and the routers that read its gauges work unchanged; what only this server has is `candlewick:…`.
//! Recording costs an atomic or two (histograms: one uncontended lock), so the engine thread may record every step.

mod buckets;
mod encode;
mod report;
mod requests;
pub mod spans;
mod tenants;

use std::{
    borrow::Cow,
    collections::BTreeSet,
    sync::{Mutex, OnceLock, PoisonError, atomic::AtomicU64},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeMetric},
    metrics::{TypedMetric, counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

use self::{encode::encode, spans::Spans, tenants::Tenants};
pub use self::{
    encode::{CONTENT_TYPE, encode_all},
    report::{BlockStates, EngineState, EngineTotals, ModelBytes, Reporter, StepFacts},
    requests::{Outcome, RequestFacts},
    tenants::TenantTokens,
};
use crate::error::Code;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabels {
    finished_reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CodeLabels {
    code: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CacheConfigLabels {
    block_size: u64,
    num_gpu_blocks: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LoraLabels {
    max_lora: u64,
    /// Names, parted by commas.
    running_lora_adapters: String,
    waiting_lora_adapters: String,
}

/// Which part of a batch.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabels {
    kind: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PhaseLabels {
    phase: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabels {
    state: &'static str,
}

type Level = Gauge<u64, AtomicU64>;

/// All metrics of one engine; shared, and alive across the engine's restarts.
#[derive(Debug)]
pub struct Telemetry {
    registry: Registry,
    /// What is told of each tenant by its name.
    of_tenants: Registry,
    num_requests_running: Level,
    num_requests_waiting: Level,
    waiting_tokens: Level,
    paused_readers: Level,
    kv_cache_usage_perc: Gauge<f64, AtomicU64>,
    /// Of sequences, leases and nobody.
    kv_blocks: [Level; 3],
    cached_blocks: Level,
    /// Prefill and decode.
    batch_sequences: [Level; 2],
    batch_tokens: [Counter; 2],
    /// Schedule, execute, apply.
    step_time: [Histogram; 3],
    iteration_tokens: Histogram,
    /// Weights, keys and values.
    read_bytes: [Counter; 2],
    decode_read_rate: Histogram,
    /// Absent where nobody has said it.
    memory_bandwidth: Family<[(&'static str, &'static str); 0], Gauge<f64, AtomicU64>>,
    /// Of the model that came last: another one may take its name, and its metrics.
    model_bytes: Mutex<ModelBytes>,
    num_preemptions: Counter,
    prefix_cache_queries: Counter,
    prefix_cache_hits: Counter,
    block_copies: Counter,
    block_evictions: Counter,
    prompt_tokens: Counter,
    generation_tokens: Counter,
    engine_restarts: Counter,
    request_success: Family<ReasonLabels, Counter>,
    requests_refused: Family<CodeLabels, Counter>,
    cache_config_info: Family<CacheConfigLabels, Gauge>,
    lora_requests_info: Family<LoraLabels, Gauge<f64, AtomicU64>>,
    /// What that says now.
    lora_labels: Mutex<Option<LoraLabels>>,
    tenants: Tenants,
    time_to_first_token: Histogram,
    inter_token_latency: Histogram,
    time_per_output_token: Histogram,
    e2e_request_latency: Histogram,
    request_queue_time: Histogram,
    request_prefill_time: Histogram,
    request_decode_time: Histogram,
    request_inference_time: Histogram,
    request_prompt_tokens: Histogram,
    request_prefill_kv_computed_tokens: Histogram,
    request_generation_tokens: Histogram,
    request_max_num_generation_tokens: Histogram,
    request_params_max_tokens: Histogram,
    request_params_n: Histogram,
    spans: OnceLock<Spans>,
}

/// Registers metrics as they are made. Counters get their `_total` when they are encoded.
struct Table(Registry);

impl Table {
    fn add<M: Clone + prometheus_client::registry::Metric>(&mut self, name: &str, help: &str, metric: M) -> M {
        self.0.register(name, help, metric.clone());
        metric
    }

    fn level(&mut self, name: &str, help: &str) -> Level {
        self.add(name, help, Gauge::default())
    }

    fn count(&mut self, name: &str, help: &str) -> Counter {
        self.add(name, help, Counter::default())
    }

    fn times(&mut self, name: &str, help: &str, bounds: &[f64]) -> Histogram {
        self.add(name, help, Histogram::new(bounds.iter().copied()))
    }

    /// A series for each label, which is there from the beginning.
    fn family<L, M, const N: usize>(&mut self, name: &str, help: &str, make: fn() -> M, labels: [L; N]) -> [M; N]
    where
        L: Clone + std::hash::Hash + Eq + EncodeLabelSet + std::fmt::Debug + Send + Sync + 'static,
        M: Clone + std::fmt::Debug + EncodeMetric + TypedMetric + Send + Sync + 'static,
    {
        let family = self.add(name, help, Family::<L, M, fn() -> M>::new_with_constructor(make));
        labels.map(|label| family.get_or_create_owned(&label))
    }
}

impl Telemetry {
    /// Metrics at zero; each carries `model_name` as a label, as vLLM's do.
    #[must_use]
    #[rustfmt::skip] // A table.
    pub fn new(model_name: &str) -> Self {
        let labels = [(Cow::Borrowed("model_name"), Cow::Owned(model_name.to_owned()))];
        let mut table = Table(Registry::with_labels(labels.clone().into_iter()));
        let mut of_tenants = Table(Registry::with_labels(labels.into_iter()));
        let t = &mut table;
        let states = ["sequence", "lease", "free"].map(|state| StateLabels { state });
        let kinds = ["prefill", "decode"].map(|kind| KindLabels { kind });
        let phases = ["schedule", "execute", "apply"].map(|phase| PhaseLabels { phase });
        let parts = ["weights", "kv_cache"].map(|kind| KindLabels { kind });
        let telemetry = Self {
            num_requests_running: t.level("vllm:num_requests_running", "Sequences that hold blocks"),
            num_requests_waiting: t.level("vllm:num_requests_waiting", "Requests that wait to run"),
            kv_cache_usage_perc: t.add("vllm:kv_cache_usage_perc", "KV blocks held by sequences, 0 to 1", Gauge::default()),
            num_preemptions: t.count("vllm:num_preemptions", "Sequences that lost their blocks to others"),
            prefix_cache_queries: t.count("vllm:prefix_cache_queries", "Prompt tokens looked up"),
            prefix_cache_hits: t.count("vllm:prefix_cache_hits", "Prompt tokens found cached"),
            prompt_tokens: t.count("vllm:prompt_tokens", "Prompt tokens of admitted requests"),
            generation_tokens: t.count("vllm:generation_tokens", "Tokens generated"),
            request_success: t.add("vllm:request_success", "Requests ended, by reason", Family::default()),
            cache_config_info: t.add("vllm:cache_config_info", "The KV cache's shape", Family::default()),
            lora_requests_info: t.add("vllm:lora_requests_info", "Adapters that requests run with and wait for: when that was so, in seconds since 1970", Family::default()),
            lora_labels: Mutex::default(),
            iteration_tokens: t.times("vllm:iteration_tokens_total", "Tokens a step", &buckets::STEP_TOKENS),
            time_to_first_token: t.times("vllm:time_to_first_token_seconds", "Arrival to first token", &buckets::TTFT_SECONDS),
            inter_token_latency: t.times("vllm:inter_token_latency_seconds", "Token to token", &buckets::INTER_TOKEN_SECONDS),
            time_per_output_token: t.times("vllm:request_time_per_output_token_seconds", "Token to token, a request's mean", &buckets::INTER_TOKEN_SECONDS),
            e2e_request_latency: t.times("vllm:e2e_request_latency_seconds", "Arrival to end", &buckets::REQUEST_SECONDS),
            request_queue_time: t.times("vllm:request_queue_time_seconds", "Arrival to first scheduling", &buckets::REQUEST_SECONDS),
            request_prefill_time: t.times("vllm:request_prefill_time_seconds", "Scheduled to token 1", &buckets::REQUEST_SECONDS),
            request_decode_time: t.times("vllm:request_decode_time_seconds", "Token 1 to end", &buckets::REQUEST_SECONDS),
            request_inference_time: t.times("vllm:request_inference_time_seconds", "Scheduled to end", &buckets::REQUEST_SECONDS),
            request_prompt_tokens: t.times("vllm:request_prompt_tokens", "Prompt tokens a request", &buckets::REQUEST_TOKENS),
            request_prefill_kv_computed_tokens: t.times("vllm:request_prefill_kv_computed_tokens", "Prompt tokens a request that no cache had", &buckets::REQUEST_TOKENS),
            request_generation_tokens: t.times("vllm:request_generation_tokens", "Tokens generated a request", &buckets::REQUEST_TOKENS),
            request_max_num_generation_tokens: t.times("vllm:request_max_num_generation_tokens", "Tokens a request may generate", &buckets::REQUEST_TOKENS),
            request_params_max_tokens: t.times("vllm:request_params_max_tokens", "max_tokens of requests", &buckets::REQUEST_TOKENS),
            request_params_n: t.times("vllm:request_params_n", "n of requests", &buckets::SEQUENCES),
            waiting_tokens: t.level("candlewick:waiting_tokens", "Tokens that waiting requests bring"),
            paused_readers: t.level("candlewick:paused_readers", "Sequences that wait for their reader"),
            kv_blocks: t.family("candlewick:kv_blocks", "KV blocks by who has them", Level::default, states),
            cached_blocks: t.level("candlewick:cached_blocks", "KV blocks that the prefix cache can find"),
            batch_sequences: t.family("candlewick:batch_sequences", "Sequences of the newest batch", Level::default, kinds.clone()),
            batch_tokens: t.family("candlewick:batch_tokens", "Tokens computed", Counter::default, kinds),
            step_time: t.family("candlewick:step_time_seconds", "Time of a step's phases", || Histogram::new(buckets::STEP_SECONDS), phases),
            read_bytes: t.family("candlewick:step_read_bytes", "Bytes that steps read: all weights each step, and the keys and values of all tokens before", Counter::default, parts),
            decode_read_rate: t.times("candlewick:decode_read_bytes_per_second", "… a second, of steps that compute no prompt", &buckets::BYTES_PER_SECOND),
            memory_bandwidth: t.add("candlewick:memory_bandwidth_bytes_per_second", "Bytes a second that the machine reads at most, where that is set", Family::default()),
            model_bytes: Mutex::default(),
            block_copies: t.count("candlewick:block_copies", "Blocks copied on write"),
            block_evictions: t.count("candlewick:block_evictions", "Cached blocks given to others"),
            engine_restarts: t.count("candlewick:engine_restarts", "Times the engine came back"),
            tenants: Tenants::register(&mut of_tenants),
            requests_refused: t.add("candlewick:requests_refused", "Requests refused, by code", Family::default()),
            spans: OnceLock::new(),
            registry: Registry::default(),
            of_tenants: Registry::default(),
        };
        // A series that is absent until its first event reads as a gap: let all of them start at zero.
        for outcome in [Outcome::Stop, Outcome::Length, Outcome::Abort, Outcome::Error] {
            let _zero = telemetry.request_success.get_or_create(&ReasonLabels { finished_reason: outcome.label() });
        }
        Self { registry: table.0, of_tenants: of_tenants.0, ..telemetry }
    }

    /// From now on each request leaves a span there. Of two calls the first one counts.
    pub fn trace_to(&self, spans: Spans) {
        if self.spans.set(spans).is_err() {
            tracing::warn!("spans go somewhere already");
        }
    }

    /// Where spans go, if anywhere.
    #[must_use]
    pub fn spans(&self) -> Option<&Spans> {
        self.spans.get()
    }

    /// Where the tokens of the tenant of that name are counted.
    #[must_use]
    pub fn tenant(&self, name: Option<&str>) -> TenantTokens {
        self.tenants.tokens_of(name)
    }

    /// The KV cache's shape, once it is known.
    pub fn set_cache_config(&self, block_size: usize, num_blocks: usize) {
        let labels = CacheConfigLabels { block_size: block_size as u64, num_gpu_blocks: num_blocks as u64 };
        self.cache_config_info.clear();
        self.cache_config_info.get_or_create(&labels).set(1);
    }

    /// The adapters that requests run with and wait for now, of so many that there may be.
    pub fn set_lora_requests(&self, max_lora: usize, running: BTreeSet<String>, waiting: BTreeSet<String>) {
        let join = |names: BTreeSet<String>| names.into_iter().collect::<Vec<_>>().join(",");
        let labels = LoraLabels {
            max_lora: max_lora as u64,
            running_lora_adapters: join(running),
            waiting_lora_adapters: join(waiting),
        };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut before = self.lora_labels.lock().unwrap_or_else(PoisonError::into_inner);
        self.lora_requests_info.get_or_create(&labels).set(now.as_secs_f64());
        if let Some(before) = before.replace(labels.clone()).filter(|before| *before != labels) {
            self.lora_requests_info.remove(&before);
        }
    }

    /// What a step of the model reads, once that is known. Of two calls the last one counts.
    pub fn set_model_bytes(&self, bytes: ModelBytes) {
        *self.model_bytes.lock().unwrap_or_else(PoisonError::into_inner) = bytes;
    }

    /// Bytes a second that the machine reads at most, as somebody has measured.
    pub fn set_memory_bandwidth(&self, bytes_per_second: f64) {
        self.memory_bandwidth.get_or_create(&[]).set(bytes_per_second);
    }

    /// What the engine holds now.
    pub fn set_state(&self, state: EngineState) {
        self.num_requests_running.set(state.num_running);
        self.num_requests_waiting.set(state.num_waiting);
        self.waiting_tokens.set(state.num_waiting_tokens);
        self.kv_cache_usage_perc.set(state.kv_cache_usage);
        self.paused_readers.set(state.num_paused);
        let BlockStates { sequences, leases, free, cached } = state.blocks;
        for (level, blocks) in self.kv_blocks.iter().zip([sequences, leases, free]) {
            level.set(blocks);
        }
        self.cached_blocks.set(cached);
    }

    /// What [`set_state`](Self::set_state) last said.
    #[must_use]
    pub fn state(&self) -> EngineState {
        EngineState {
            num_running: self.num_requests_running.get(),
            num_waiting: self.num_requests_waiting.get(),
            num_waiting_tokens: self.waiting_tokens.get(),
            kv_cache_usage: self.kv_cache_usage_perc.get(),
            num_paused: self.paused_readers.get(),
            blocks: BlockStates {
                sequences: self.kv_blocks[0].get(),
                leases: self.kv_blocks[1].get(),
                free: self.kv_blocks[2].get(),
                cached: self.cached_blocks.get(),
            },
        }
    }

    /// All engine counters over all of the engine's lives.
    #[must_use]
    pub fn totals(&self) -> EngineTotals {
        EngineTotals {
            preemptions: self.num_preemptions.get(),
            prefix_cache_query_tokens: self.prefix_cache_queries.get(),
            prefix_cache_hit_tokens: self.prefix_cache_hits.get(),
            block_copies: self.block_copies.get(),
            block_evictions: self.block_evictions.get(),
        }
    }

    /// A request was admitted with a prompt of this many tokens, and may generate at most so many.
    pub fn record_admitted(&self, prompt_tokens: usize, n: u32, max_tokens: u32) {
        self.prompt_tokens.inc_by(prompt_tokens as u64);
        self.request_params_n.observe(n.into());
        self.request_params_max_tokens.observe(max_tokens.into());
        self.request_max_num_generation_tokens.observe(max_tokens.into());
    }

    /// Tokens were generated.
    pub fn record_generated(&self, tokens: usize) {
        self.generation_tokens.inc_by(tokens as u64);
    }

    /// A request was scheduled for the first time, this long after it arrived.
    pub fn record_queue_time(&self, waited: Duration) {
        self.request_queue_time.observe(waited.as_secs_f64());
    }

    /// A request got its first token, this long after it arrived, and after it first ran.
    pub fn record_first_token(&self, since_arrival: Duration, since_scheduled: Duration) {
        self.time_to_first_token.observe(since_arrival.as_secs_f64());
        self.request_prefill_time.observe(since_scheduled.as_secs_f64());
    }

    /// A request got another token, this long after the one before.
    pub fn record_inter_token(&self, since_last: Duration) {
        self.inter_token_latency.observe(since_last.as_secs_f64());
    }

    /// A request ended.
    pub fn record_end(&self, outcome: Outcome, facts: &RequestFacts) {
        self.request_success.get_or_create(&ReasonLabels { finished_reason: outcome.label() }).inc();
        self.e2e_request_latency.observe(facts.total.as_secs_f64());
        self.request_prompt_tokens.observe(facts.prompt_tokens.into());
        self.request_generation_tokens.observe(facts.generated_tokens as f64);
        if let Some(inference) = facts.since_scheduled {
            self.request_inference_time.observe(inference.as_secs_f64());
            let computed = facts.prompt_tokens.saturating_sub(facts.cached_tokens);
            self.request_prefill_kv_computed_tokens.observe(computed.into());
        }
        if let Some(decode) = facts.since_first_token {
            self.request_decode_time.observe(decode.as_secs_f64());
            if facts.generated_tokens > 1 {
                self.time_per_output_token.observe(decode.as_secs_f64() / (facts.generated_tokens - 1) as f64);
            }
        }
    }

    /// A request was refused before it was admitted.
    pub fn record_refused(&self, code: Code) {
        self.requests_refused.get_or_create(&CodeLabels { code: code_label(code) }).inc();
    }

    /// The engine came back after a failure.
    pub fn record_restart(&self) {
        self.engine_restarts.inc();
    }

    /// Requests refused so far with `code`.
    #[must_use]
    pub fn refused(&self, code: Code) -> u64 {
        self.requests_refused.get(&CodeLabels { code: code_label(code) }).map_or(0, |counter| counter.get())
    }

    /// Tokens generated so far, all requests together.
    #[must_use]
    pub fn generated_tokens(&self) -> u64 {
        self.generation_tokens.get()
    }

    /// Tokens of the prompts admitted so far.
    #[must_use]
    pub fn prompt_tokens(&self) -> u64 {
        self.prompt_tokens.get()
    }

    /// All metrics in the OpenMetrics text format, which every Prometheus scraper reads ([`CONTENT_TYPE`]).
    #[must_use]
    pub fn encode(&self) -> String {
        encode(&[&self.registry, &self.of_tenants])
    }

    /// The same without what is told of tenants.
    #[must_use]
    pub fn encode_without_tenants(&self) -> String {
        encode(&[&self.registry])
    }
}

fn code_label(code: Code) -> &'static str {
    match code {
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::NotFound => "NOT_FOUND",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Unauthenticated => "UNAUTHENTICATED",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::Unavailable => "UNAVAILABLE",
        Code::Aborted => "ABORTED",
        Code::DataLoss => "DATA_LOSS",
        Code::Cancelled => "CANCELLED",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
    }
}

#[cfg(test)]
mod tests;
