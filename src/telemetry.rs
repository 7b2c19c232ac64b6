//! Every metric by its name: what the engine and the faces count, and how Prometheus reads it.
//!
//! Names and labels are vLLM's (<https://docs.vllm.ai/en/latest/usage/metrics/>) wherever vLLM has the metric, so that
//! its dashboards and the routers that read its gauges work unchanged; what only this server has is `candlewick:…`.
//! Recording costs an atomic or two (histograms: one uncontended lock), so the engine thread may record every step.

use std::{
    borrow::Cow,
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError, atomic::AtomicU64},
    time::Duration,
};

use prometheus_client::{
    encoding::{EncodeLabelSet, text},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

use crate::{error::Code, params::FinishReason};

/// The media type of [`Telemetry::encode`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Upper bounds in seconds. vLLM's, with finer ones below, where a small model on a CPU lives.
const TTFT_SECONDS: [f64; 21] = [
    0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0,
    80.0, 160.0,
];
const INTER_TOKEN_SECONDS: [f64; 19] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 10.0, 40.0];
const REQUEST_SECONDS: [f64; 22] = [
    0.01, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0,
    480.0, 1920.0,
];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabels {
    finished_reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CodeLabels {
    code: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TenantLabels {
    tenant: String,
}

/// Tenants that have series of their own; all that come after them share [`OTHERS`].
const TENANT_SERIES: usize = 64;
const OTHERS: &str = "others";
/// Who has no name.
const NAMELESS: &str = "anonymous";

/// Where one tenant's tokens are counted.
#[derive(Clone, Debug)]
pub struct TenantTokens {
    prompt: Counter,
    generated: Counter,
    /// They are this tenant's alone.
    is_own: bool,
}

impl TenantTokens {
    /// A request was admitted with a prompt of this many tokens.
    pub fn record_prompt(&self, tokens: usize) {
        self.prompt.inc_by(tokens as u64);
    }

    /// Tokens were generated.
    pub fn record_generated(&self, tokens: usize) {
        self.generated.inc_by(tokens as u64);
    }

    /// Tokens generated so far, where they are counted by themselves.
    #[must_use]
    pub fn generated(&self) -> Option<u64> {
        self.is_own.then(|| self.generated.get())
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CacheConfigLabels {
    block_size: u64,
    num_gpu_blocks: u64,
}

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

/// Why a request that was admitted came to its end, as `finished_reason` of `vllm:request_success`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// An end-of-sequence token, a stop token or a stop string.
    Stop,
    /// `max_tokens`, or the end of the context.
    Length,
    /// The client went away, or its deadline passed.
    Abort,
    /// The engine failed it.
    Error,
}

impl From<&FinishReason> for Outcome {
    fn from(reason: &FinishReason) -> Self {
        match reason {
            FinishReason::EndOfSequence(_)
            | FinishReason::StopToken(_)
            | FinishReason::StopString(_)
            | FinishReason::GrammarComplete => Self::Stop,
            FinishReason::Length => Self::Length,
        }
    }
}

impl Outcome {
    fn label(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::Abort => "abort",
            Self::Error => "error",
        }
    }
}

/// All metrics of one engine; shared, and alive across the engine's restarts.
#[derive(Debug)]
pub struct Telemetry {
    registry: Registry,
    num_requests_running: Gauge<u64, AtomicU64>,
    num_requests_waiting: Gauge<u64, AtomicU64>,
    waiting_tokens: Gauge<u64, AtomicU64>,
    kv_cache_usage_perc: Gauge<f64, AtomicU64>,
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
    tenant_prompt_tokens: Family<TenantLabels, Counter>,
    tenant_generation_tokens: Family<TenantLabels, Counter>,
    /// Those that have series.
    tenants: Mutex<HashSet<String>>,
    time_to_first_token: Histogram,
    inter_token_latency: Histogram,
    e2e_request_latency: Histogram,
    request_queue_time: Histogram,
    request_prefill_time: Histogram,
    request_decode_time: Histogram,
}

impl Telemetry {
    /// Metrics at zero; each carries `model_name` as a label, as vLLM's do.
    #[must_use]
    pub fn new(model_name: &str) -> Self {
        let labels = [(Cow::Borrowed("model_name"), Cow::Owned(model_name.to_owned()))];
        let mut telemetry = Self {
            registry: Registry::with_labels(labels.into_iter()),
            num_requests_running: Gauge::default(),
            num_requests_waiting: Gauge::default(),
            waiting_tokens: Gauge::default(),
            kv_cache_usage_perc: Gauge::default(),
            num_preemptions: Counter::default(),
            prefix_cache_queries: Counter::default(),
            prefix_cache_hits: Counter::default(),
            block_copies: Counter::default(),
            block_evictions: Counter::default(),
            prompt_tokens: Counter::default(),
            generation_tokens: Counter::default(),
            engine_restarts: Counter::default(),
            request_success: Family::default(),
            requests_refused: Family::default(),
            cache_config_info: Family::default(),
            tenant_prompt_tokens: Family::default(),
            tenant_generation_tokens: Family::default(),
            tenants: Mutex::default(),
            time_to_first_token: Histogram::new(TTFT_SECONDS),
            inter_token_latency: Histogram::new(INTER_TOKEN_SECONDS),
            e2e_request_latency: Histogram::new(REQUEST_SECONDS),
            request_queue_time: Histogram::new(REQUEST_SECONDS),
            request_prefill_time: Histogram::new(REQUEST_SECONDS),
            request_decode_time: Histogram::new(REQUEST_SECONDS),
        };
        telemetry.register();
        telemetry.register_tenants();
        // A series that is absent until its first event reads as a gap: let all of them start at zero.
        for outcome in [Outcome::Stop, Outcome::Length, Outcome::Abort, Outcome::Error] {
            let _zero = telemetry.request_success.get_or_create(&ReasonLabels { finished_reason: outcome.label() });
        }
        telemetry
    }

    /// The table of names: counters get their `_total` when they are encoded.
    fn register(&mut self) {
        let r = &mut self.registry;
        r.register("vllm:num_requests_running", "Sequences that hold blocks", self.num_requests_running.clone());
        r.register("vllm:num_requests_waiting", "Requests that wait to run", self.num_requests_waiting.clone());
        r.register("vllm:kv_cache_usage_perc", "KV blocks held by sequences, 0 to 1", self.kv_cache_usage_perc.clone());
        r.register("vllm:num_preemptions", "Sequences that lost their blocks to others", self.num_preemptions.clone());
        r.register("vllm:prefix_cache_queries", "Prompt tokens looked up", self.prefix_cache_queries.clone());
        r.register("vllm:prefix_cache_hits", "Prompt tokens found cached", self.prefix_cache_hits.clone());
        r.register("vllm:prompt_tokens", "Prompt tokens of admitted requests", self.prompt_tokens.clone());
        r.register("vllm:generation_tokens", "Tokens generated", self.generation_tokens.clone());
        r.register("vllm:request_success", "Requests ended, by reason", self.request_success.clone());
        r.register("vllm:cache_config_info", "The KV cache's shape", self.cache_config_info.clone());
        r.register("vllm:time_to_first_token_seconds", "Arrival to first token", self.time_to_first_token.clone());
        r.register("vllm:inter_token_latency_seconds", "Token to token", self.inter_token_latency.clone());
        r.register("vllm:e2e_request_latency_seconds", "Arrival to end", self.e2e_request_latency.clone());
        r.register("vllm:request_queue_time_seconds", "Arrival to first scheduling", self.request_queue_time.clone());
        r.register("vllm:request_prefill_time_seconds", "Scheduled to token 1", self.request_prefill_time.clone());
        r.register("vllm:request_decode_time_seconds", "Token 1 to end", self.request_decode_time.clone());
        r.register("candlewick:waiting_tokens", "Tokens that waiting requests bring", self.waiting_tokens.clone());
        r.register("candlewick:block_copies", "Blocks copied on write", self.block_copies.clone());
        r.register("candlewick:block_evictions", "Cached blocks given to others", self.block_evictions.clone());
        r.register("candlewick:engine_restarts", "Times the engine came back", self.engine_restarts.clone());
        r.register("candlewick:requests_refused", "Requests refused, by code", self.requests_refused.clone());
    }

    fn register_tenants(&mut self) {
        let r = &mut self.registry;
        let (prompt, generated) = (self.tenant_prompt_tokens.clone(), self.tenant_generation_tokens.clone());
        r.register("candlewick:tenant_prompt_tokens", "Prompt tokens of admitted requests, by tenant", prompt);
        r.register("candlewick:tenant_generation_tokens", "Tokens generated, by tenant", generated);
    }

    /// Where the tokens of the tenant of that name are counted.
    #[must_use]
    pub fn tenant(&self, name: Option<&str>) -> TenantTokens {
        let name = name.unwrap_or(NAMELESS);
        let mut tenants = self.tenants.lock().unwrap_or_else(PoisonError::into_inner);
        let is_own = tenants.contains(name) || tenants.len() < TENANT_SERIES && tenants.insert(name.to_owned());
        let labels = TenantLabels { tenant: if is_own { name } else { OTHERS }.to_owned() };
        TenantTokens {
            prompt: self.tenant_prompt_tokens.get_or_create(&labels).clone(),
            generated: self.tenant_generation_tokens.get_or_create(&labels).clone(),
            is_own,
        }
    }

    /// The KV cache's shape, once it is known.
    pub fn set_cache_config(&self, block_size: usize, num_blocks: usize) {
        let labels = CacheConfigLabels { block_size: block_size as u64, num_gpu_blocks: num_blocks as u64 };
        self.cache_config_info.clear();
        self.cache_config_info.get_or_create(&labels).set(1);
    }

    /// What the engine holds now.
    pub fn set_state(&self, state: EngineState) {
        self.num_requests_running.set(state.num_running);
        self.num_requests_waiting.set(state.num_waiting);
        self.waiting_tokens.set(state.num_waiting_tokens);
        self.kv_cache_usage_perc.set(state.kv_cache_usage);
    }

    /// What [`set_state`](Self::set_state) last said.
    #[must_use]
    pub fn state(&self) -> EngineState {
        EngineState {
            num_running: self.num_requests_running.get(),
            num_waiting: self.num_requests_waiting.get(),
            num_waiting_tokens: self.waiting_tokens.get(),
            kv_cache_usage: self.kv_cache_usage_perc.get(),
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

    /// A request was admitted with a prompt of this many tokens.
    pub fn record_prompt(&self, prompt_tokens: usize) {
        self.prompt_tokens.inc_by(prompt_tokens as u64);
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

    /// A request that had tokens ended, this long after the first of them.
    pub fn record_decode(&self, since_first_token: Duration) {
        self.request_decode_time.observe(since_first_token.as_secs_f64());
    }

    /// A request got another token, this long after the one before.
    pub fn record_inter_token(&self, since_last: Duration) {
        self.inter_token_latency.observe(since_last.as_secs_f64());
    }

    /// A request ended, this long after it arrived.
    pub fn record_end(&self, outcome: Outcome, since_arrival: Duration) {
        self.request_success.get_or_create(&ReasonLabels { finished_reason: outcome.label() }).inc();
        self.e2e_request_latency.observe(since_arrival.as_secs_f64());
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
        let mut text = String::new();
        match text::encode(&mut text, &self.registry) {
            Ok(()) => text,
            // Writing into a String fails only where a label's own formatter does, and ours do not.
            Err(std::fmt::Error) => String::from("# EOF\n"),
        }
    }
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
mod tests {
    use super::*;

    #[test]
    fn every_series_stands_under_the_name_that_dashboards_read() {
        let telemetry = Arc::new(Telemetry::new("demo"));
        telemetry.set_cache_config(16, 24);
        telemetry.record_refused(Code::ResourceExhausted);
        telemetry.record_end(Outcome::Length, Duration::from_millis(30));
        let totals = EngineTotals { preemptions: 3, ..EngineTotals::default() };
        Reporter::new(telemetry.clone()).report(
            EngineState { num_running: 2, num_waiting: 1, num_waiting_tokens: 7, kv_cache_usage: 0.25 },
            totals,
        );
        let text = telemetry.encode();
        for line in [
            "vllm:num_requests_running{model_name=\"demo\"} 2",
            "vllm:num_requests_waiting{model_name=\"demo\"} 1",
            "vllm:kv_cache_usage_perc{model_name=\"demo\"} 0.25",
            "vllm:num_preemptions_total{model_name=\"demo\"} 3",
            "vllm:request_success_total{model_name=\"demo\",finished_reason=\"length\"} 1",
            "vllm:request_success_total{model_name=\"demo\",finished_reason=\"abort\"} 0",
            "vllm:cache_config_info{model_name=\"demo\",block_size=\"16\",num_gpu_blocks=\"24\"} 1",
            "candlewick:requests_refused_total{model_name=\"demo\",code=\"RESOURCE_EXHAUSTED\"} 1",
            "vllm:e2e_request_latency_seconds_count{model_name=\"demo\"} 1",
        ] {
            assert!(text.lines().any(|l| l == line), "no line {line} in\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));
    }

    #[test]
    fn tenants_beyond_a_bound_share_one_series() {
        let telemetry = Telemetry::new("demo");
        for k in 0..TENANT_SERIES + 3 {
            telemetry.tenant(Some(&format!("t{k}"))).record_generated(2);
        }
        telemetry.tenant(Some("t0")).record_prompt(5);
        telemetry.tenant(None).record_generated(1);
        assert_eq!(telemetry.tenant(Some("t0")).generated(), Some(2));
        assert_eq!(telemetry.tenant(Some("t66")).generated(), None);
        let text = telemetry.encode();
        let series = text.lines().filter(|line| line.starts_with("candlewick:tenant_generation_tokens_total"));
        assert_eq!(series.count(), TENANT_SERIES + 1, "{text}");
        for line in [
            "candlewick:tenant_prompt_tokens_total{model_name=\"demo\",tenant=\"t0\"} 5",
            "candlewick:tenant_generation_tokens_total{model_name=\"demo\",tenant=\"others\"} 7",
        ] {
            assert!(text.lines().any(|l| l == line), "no line {line} in\n{text}");
        }
    }

    #[test]
    fn counters_go_on_from_where_they_were_when_the_engine_restarts() {
        let telemetry = Arc::new(Telemetry::new("demo"));
        let report = |counts: &[u64]| {
            let mut reporter = Reporter::new(telemetry.clone());
            for &preemptions in counts {
                reporter.report(EngineState::default(), EngineTotals { preemptions, ..EngineTotals::default() });
            }
        };
        report(&[2, 5]);
        report(&[0, 1]);
        assert_eq!(telemetry.totals().preemptions, 6);
    }
}
