//! How busy the engine is, as routers weigh workers against each other.

use std::time::Instant;

use crate::{
    config::EngineConfig,
    proto::vllm::grpc::engine::{GetLoadsResponse, SchedulerLoad},
    server::backend::Backend,
};

/// The loads of one engine, which is one rank; of one that is not in memory, there are none.
pub(super) fn loads(config: &EngineConfig, backend: Option<&Backend>) -> GetLoadsResponse {
    let loads = backend.map(|backend| backend.engine.loads()).unwrap_or_default();
    let throughput = backend.map_or(0.0, |backend| backend.throughput.at(Instant::now(), &loads).all);
    let (state, totals) = (loads.state, loads.totals);
    let signed = |n: u64| i32::try_from(n).unwrap_or(i32::MAX);
    // Where no sequence is longer than a window.
    let tokens_in = |blocks: usize| blocks / config.kv_groups.count() * config.block_size;
    let ratio = |part: u64, whole: u64| part as f64 / whole.max(1) as f64;
    let load = SchedulerLoad {
        dp_rank: 0,
        num_running_reqs: signed(state.num_running),
        num_waiting_reqs: signed(state.num_waiting),
        num_total_reqs: signed(state.num_running + state.num_waiting),
        num_used_tokens: super::signed(tokens_in(loads.used_blocks)),
        max_total_num_tokens: super::signed(tokens_in(config.num_blocks)),
        token_usage: state.kv_cache_usage,
        gen_throughput: throughput,
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
