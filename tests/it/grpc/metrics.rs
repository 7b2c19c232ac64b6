//! The metrics that routers and dashboards read, by name and label: those of the Gateway API inference extension's
//! model server protocol, and vLLM's that dashboards are drawn from.

use super::{Server, ids, read, request};

/// What the protocol asks of a model server: gauges with these names; labels beside the model's name.
const ASKED: &[(&str, &[&str])] = &[
    ("vllm:num_requests_waiting", &[]),
    ("vllm:num_requests_running", &[]),
    ("vllm:kv_cache_usage_perc", &[]),
    ("vllm:cache_config_info", &["block_size", "num_gpu_blocks"]),
];

/// What dashboards are drawn from: counters, with their labels.
const COUNTERS: &[(&str, &[&str])] = &[
    ("vllm:prefix_cache_queries_total", &[]),
    ("vllm:prefix_cache_hits_total", &[]),
    ("vllm:prompt_tokens_total", &[]),
    ("vllm:generation_tokens_total", &[]),
    ("vllm:num_preemptions_total", &[]),
    ("vllm:request_success_total", &["finished_reason"]),
];

/// … and histograms.
const HISTOGRAMS: &[&str] = &[
    "vllm:time_to_first_token_seconds",
    "vllm:inter_token_latency_seconds",
    "vllm:e2e_request_latency_seconds",
    "vllm:request_queue_time_seconds",
    "vllm:request_prefill_time_seconds",
    "vllm:request_decode_time_seconds",
];

/// The sample lines of a series: labels and value.
fn samples<'p>(page: &'p str, name: &str) -> Vec<(&'p str, f64)> {
    let lines = page.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix('{')?.split_once("} "));
    lines.map(|(labels, value)| (labels, value.parse().unwrap())).collect()
}

fn has_label(labels: &str, name: &str) -> bool {
    labels.split(',').any(|label| label.strip_prefix(name).is_some_and(|value| value.starts_with("=\"")))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_series_that_routers_and_dashboards_read_is_there_with_its_labels() {
    let server = Server::well().await;
    let stream = server.generation().await.generate_stream(request(&ids(1, 40), 7)).await.unwrap();
    assert!(read(stream.into_inner()).await.finished.is_some());
    server.idle().await;
    let (head, page) = server.get("/metrics").await;
    assert!(head.contains("content-type: application/openmetrics-text"));
    for (kind, series) in [("gauge", ASKED), ("counter", COUNTERS)] {
        for (name, labels) in series {
            let declared = format!("# TYPE {} {kind}", name.trim_end_matches("_total"));
            assert!(page.lines().any(|line| line == declared), "{declared}");
            let samples = samples(&page, name);
            assert!(!samples.is_empty(), "no sample of {name}");
            for (found, _) in samples {
                assert!(has_label(found, "model_name"), "{name}{{{found}}}");
                assert!(labels.iter().all(|label| has_label(found, label)), "{name}{{{found}}}");
            }
        }
    }
    for name in HISTOGRAMS {
        let count = samples(&page, &format!("{name}_count"));
        assert!(count.iter().all(|(_, count)| *count >= 1.0) && count.len() == 1, "{name}: {count:?}");
        let buckets = samples(&page, &format!("{name}_bucket"));
        assert!(buckets.iter().any(|(labels, _)| labels.contains("le=\"+Inf\"")), "{name}");
    }
    let value = |name: &str| samples(&page, name)[0].1;
    assert_eq!((value("vllm:prompt_tokens_total"), value("vllm:generation_tokens_total")), (40.0, 7.0));
    assert_eq!((value("vllm:num_requests_running"), value("vllm:kv_cache_usage_perc")), (0.0, 0.0));
}
