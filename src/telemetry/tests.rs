//! Names, values and what a restart keeps.

use std::sync::Arc;

use super::*;

#[test]
fn every_series_stands_under_the_name_that_dashboards_read() {
    let telemetry = Arc::new(Telemetry::new("demo"));
    telemetry.set_cache_config(16, 24);
    telemetry.record_refused(Code::ResourceExhausted);
    let second = Some(Duration::from_secs(1));
    telemetry.record_admitted(12, 2, 64);
    telemetry.record_end(
        Outcome::Length,
        &RequestFacts {
            total: Duration::from_millis(1030),
            since_scheduled: second,
            since_first_token: second,
            prompt_tokens: 12,
            cached_tokens: 4,
            generated_tokens: 5,
        },
    );
    let totals = EngineTotals { preemptions: 3, ..EngineTotals::default() };
    let mut reporter = Reporter::new(telemetry.clone());
    let state = EngineState {
        num_running: 2,
        num_waiting: 1,
        num_waiting_tokens: 7,
        kv_cache_usage: 0.25,
        num_paused: 1,
        blocks: BlockStates { sequences: 6, leases: 3, free: 15, cached: 5 },
    };
    reporter.report(state, totals);
    assert_eq!(telemetry.state(), state);
    let step = StepFacts { prefill_sequences: 1, prefill_tokens: 20, decode_sequences: 3, ..StepFacts::default() };
    reporter.record_step(&step);
    reporter.record_step(&step);
    telemetry.set_model_bytes(ModelBytes { weights: 900, kv_per_token: 10 });
    telemetry.set_memory_bandwidth(4e9);
    let execute = Duration::from_micros(1);
    reporter.record_step(&StepFacts { decode_sequences: 2, context_tokens: 60, execute, ..StepFacts::default() });
    reporter.record_step(&StepFacts { context_tokens: 40, execute, ..step });
    // Another model takes its place.
    telemetry.set_model_bytes(ModelBytes { weights: 5, kv_per_token: 1 });
    reporter.record_step(&StepFacts { context_tokens: 3, ..step });
    reporter.record_step(&StepFacts::default());
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
        "vllm:request_time_per_output_token_seconds_sum{model_name=\"demo\"} 0.25",
        "vllm:request_prefill_kv_computed_tokens_sum{model_name=\"demo\"} 8.0",
        "vllm:request_generation_tokens_sum{model_name=\"demo\"} 5.0",
        "vllm:request_params_n_sum{model_name=\"demo\"} 2.0",
        "vllm:iteration_tokens_total_sum{model_name=\"demo\"} 94.0",
        "candlewick:paused_readers{model_name=\"demo\"} 1",
        "candlewick:kv_blocks{model_name=\"demo\",state=\"lease\"} 3",
        "candlewick:cached_blocks{model_name=\"demo\"} 5",
        "candlewick:batch_sequences{model_name=\"demo\",kind=\"decode\"} 0",
        "candlewick:batch_tokens_total{model_name=\"demo\",kind=\"prefill\"} 80",
        "candlewick:step_time_seconds_count{model_name=\"demo\",phase=\"execute\"} 6",
        "candlewick:step_read_bytes_total{model_name=\"demo\",kind=\"weights\"} 1805",
        "candlewick:step_read_bytes_total{model_name=\"demo\",kind=\"kv_cache\"} 1003",
        "candlewick:decode_read_bytes_per_second_count{model_name=\"demo\"} 1",
        "candlewick:decode_read_bytes_per_second_sum{model_name=\"demo\"} 1500000000.0",
        "candlewick:memory_bandwidth_bytes_per_second{model_name=\"demo\"} 4000000000.0",
    ] {
        assert!(text.lines().any(|l| l == line), "no line {line} in\n{text}");
    }
    assert!(text.ends_with("# EOF\n"));
    let unset = Telemetry::new("demo").encode();
    assert!(!unset.contains("memory_bandwidth_bytes_per_second{"), "a limit that nobody knows is none");
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

#[test]
fn the_adapters_of_now_are_one_series() {
    let telemetry = Telemetry::new("demo");
    let names = |names: &[&str]| names.iter().map(ToString::to_string).collect::<BTreeSet<_>>();
    telemetry.set_lora_requests(4, names(&["b", "a"]), names(&["c"]));
    telemetry.set_lora_requests(4, names(&["a"]), names(&[]));
    let page = telemetry.encode();
    let told: Vec<_> = page.lines().filter(|line| line.starts_with("vllm:lora_requests_info{")).collect();
    assert_eq!(told.len(), 1, "{told:?}");
    for label in ["max_lora=\"4\"", "running_lora_adapters=\"a\"", "waiting_lora_adapters=\"\""] {
        assert!(told[0].contains(label), "{label} in {told:?}");
    }
    telemetry.set_lora_requests(4, names(&["b", "a"]), names(&["c"]));
    assert!(telemetry.encode().contains("running_lora_adapters=\"a,b\""));
}
