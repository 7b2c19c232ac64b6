//! The dashboard asks for metrics that there are.

use std::{collections::BTreeSet, fs, time::Duration};

use candlewick::{
    error::Code,
    telemetry::{Outcome, RequestFacts, Telemetry},
};
use serde_json::Value;

use crate::place::repository;

/// What begins with the prefix of a metric in a query: `vllm:num_requests_running`.
fn names(query: &str) -> impl Iterator<Item = &str> {
    let is_of_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | ':');
    query.split(move |c| !is_of_name(c)).filter(|word| word.starts_with("vllm:") || word.starts_with("candlewick:"))
}

/// The queries of a dashboard, wherever they stand in it.
fn queries<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
    match value {
        Value::Object(fields) => fields.iter().for_each(|(key, value)| match value {
            Value::String(text) if key == "expr" || key == "query" => found.push(text),
            value => queries(value, found),
        }),
        Value::Array(list) => list.iter().for_each(|value| queries(value, found)),
        _ => {}
    }
}

#[test]
fn every_metric_and_label_of_the_dashboard_exists() {
    let path = repository("deploy/grafana/candlewick.json");
    let dashboard: Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    let telemetry = Telemetry::new("demo");
    // Series with a label appear with their first event.
    telemetry.record_refused(Code::ResourceExhausted);
    telemetry.record_end(Outcome::Stop, &RequestFacts { total: Duration::from_secs(1), ..RequestFacts::default() });
    telemetry.set_memory_bandwidth(1e10);
    let text = telemetry.encode();
    let samples: Vec<_> = text.lines().filter(|line| !line.starts_with('#')).collect();
    let known: BTreeSet<_> = samples.iter().filter_map(|line| line.split(['{', ' ']).next()).collect();

    let mut asked = Vec::new();
    queries(&dashboard, &mut asked);
    assert!(asked.len() > 30, "these are not all: {asked:?}");
    for query in &asked {
        for name in names(query) {
            assert!(known.contains(name), "{name} is no metric, in {query}");
        }
        let labels = query.split("sum by (").skip(1).filter_map(|rest| rest.split(')').next());
        for label in labels.flat_map(|labels| labels.split(", ")) {
            let name = names(query).next().unwrap();
            let has = |line: &&str| line.starts_with(name) && line.contains(&format!("{label}=\""));
            assert!(samples.iter().any(has), "{name} has no label {label}, in {query}");
        }
    }
    // A panel without a query shows nothing.
    assert!(dashboard["panels"].as_array().unwrap().iter().all(|panel| panel["targets"][0]["expr"].is_string()));
}
