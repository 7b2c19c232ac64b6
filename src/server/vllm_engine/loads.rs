//! How busy the engine is, as routers weigh workers against each other.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use crate::{
    engine::Engine,
    proto::vllm::grpc::engine::{GetLoadsResponse, SchedulerLoad},
};

/// The least time over which a rate is taken; who asks sooner gets the last one.
const WINDOW: Duration = Duration::from_secs(1);

/// Tokens a second, between two looks at the counter.
pub(super) struct Throughput {
    last: Mutex<Look>,
}

struct Look {
    at: Instant,
    tokens: u64,
    rate: f64,
}

impl Throughput {
    pub(super) fn since(at: Instant) -> Self {
        Self { last: Mutex::new(Look { at, tokens: 0, rate: 0.0 }) }
    }

    /// The rate now that `tokens` have been generated in all.
    fn at(&self, now: Instant, tokens: u64) -> f64 {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let elapsed = now.saturating_duration_since(last.at);
        if elapsed >= WINDOW {
            let rate = tokens.saturating_sub(last.tokens) as f64 / elapsed.as_secs_f64();
            *last = Look { at: now, tokens, rate };
        }
        last.rate
    }
}

/// The loads of one engine, which is one rank.
pub(super) fn loads(engine: &Engine, throughput: &Throughput) -> GetLoadsResponse {
    let (config, telemetry) = (engine.config(), engine.telemetry());
    let (state, totals) = (telemetry.state(), telemetry.totals());
    let signed = |n: u64| i32::try_from(n).unwrap_or(i32::MAX);
    let capacity_tokens = (config.num_blocks * config.block_size) as f64;
    let ratio = |part: u64, whole: u64| part as f64 / whole.max(1) as f64;
    let load = SchedulerLoad {
        dp_rank: 0,
        num_running_reqs: signed(state.num_running),
        num_waiting_reqs: signed(state.num_waiting),
        num_total_reqs: signed(state.num_running + state.num_waiting),
        num_used_tokens: (state.kv_cache_usage * capacity_tokens).round() as i32,
        max_total_num_tokens: super::signed(config.num_blocks * config.block_size),
        token_usage: state.kv_cache_usage,
        gen_throughput: throughput.at(Instant::now(), telemetry.generated_tokens()),
        cache_hit_rate: ratio(totals.prefix_cache_hit_tokens, totals.prefix_cache_query_tokens),
        utilization: ratio(state.num_running, config.max_num_seqs as u64),
        max_running_requests: super::signed(config.max_num_seqs),
        num_waiting_uncached_tokens: signed(state.num_waiting_tokens),
    };
    GetLoadsResponse {
        timestamp: jiff::Timestamp::now().to_string(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        dp_rank_count: 1,
        loads: vec![load],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_taken_over_a_second_or_more() {
        let began = Instant::now();
        let throughput = Throughput::since(began);
        assert_eq!(throughput.at(began + WINDOW / 2, 1000), 0.0, "too soon to tell");
        assert_eq!(throughput.at(began + 2 * WINDOW, 1000), 500.0);
        assert_eq!(throughput.at(began + 2 * WINDOW + WINDOW / 2, 5000), 500.0, "the last one");
        assert_eq!(throughput.at(began + 4 * WINDOW, 1000), 0.0);
    }
}
