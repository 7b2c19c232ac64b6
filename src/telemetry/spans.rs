//! Spans: what became of each request, for a collector of traces that speaks OTLP over gRPC
//! (<https://opentelemetry.io/docs/specs/otlp/>), with the caller's trace as parent
//! (<https://www.w3.org/TR/trace-context/>).
//!
//! A span is made once, when its request has ended, out of what was measured anyway, by the task that read the stream.
//! It goes into a bounded queue that a thread of the exporter's empties; where the queue is full, the span is dropped.
//! So neither the engine nor a stream ever waits for a collector. Names of attributes are vLLM's.

use std::{
    borrow::Cow,
    fmt,
    time::{Duration, SystemTime},
};

use opentelemetry::{
    Context, KeyValue,
    propagation::{Extractor, TextMapPropagator},
    trace::{FutureExt, Span, SpanKind, Status, TraceContextExt, Tracer, TracerProvider},
};
use opentelemetry_otlp::{SpanExporter, WithExportConfig};
use opentelemetry_sdk::{
    Resource,
    propagation::TraceContextPropagator,
    trace::{BatchConfigBuilder, BatchSpanProcessor, Sampler, SdkTracer, SdkTracerProvider},
};

use super::{Outcome, code_label};
use crate::{
    error::{Code, Error, Result},
    params::{SamplingParams, Usage},
};

/// Spans that may wait for the collector.
pub const QUEUE_SPANS: usize = 2048;
/// What a collector gets to take a batch.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(10);
/// What it gets for the last one, when the server ends.
const LAST_EXPORT: Duration = Duration::from_secs(3);

/// Where spans go. Cheap to clone.
#[derive(Clone)]
pub struct Spans {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
}

impl fmt::Debug for Spans {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Spans").finish_non_exhaustive()
    }
}

/// Whose span a request's is: the trace that it came with, and when it came.
#[derive(Clone, Debug)]
pub struct Origin {
    parent: Context,
    arrived: SystemTime,
    request_id: String,
}

impl Origin {
    /// Of the request that the task at hand works on.
    #[must_use]
    pub fn here(request_id: String) -> Self {
        Self { parent: Context::current(), arrived: SystemTime::now(), request_id }
    }
}

/// What a span tells of its request.
#[derive(Clone, Copy, Debug)]
pub struct RequestSpan<'a> {
    /// Where it came from.
    pub origin: &'a Origin,
    /// The model's name.
    pub model: &'a str,
    /// What it asked for.
    pub params: &'a SamplingParams,
    /// What it cost.
    pub usage: Usage,
    /// From arrival to the first run; zero where it never ran.
    pub queue: Duration,
    /// From there to the first token; zero where there was none.
    pub prefill: Duration,
    /// From arrival to the end.
    pub total: Duration,
    /// How it ended.
    pub outcome: Outcome,
    /// The error that ended it.
    pub error: Option<Code>,
}

impl Spans {
    /// Sends to the collector at `endpoint` (`http://host:4317`; `grpc://` and nothing at all mean the same), with at
    /// most `queue_spans` that wait. Nothing is sent yet; a collector that is not there costs spans and a warning in
    /// the log. Must be called on a runtime. What OpenTelemetry's own variables say of headers, of attributes of the
    /// resource and of batches counts.
    ///
    /// # Errors
    /// `InvalidArgument` for what is no address, or one that asks for TLS, which this does not have.
    pub fn to_collector(endpoint: &str, queue_spans: usize) -> Result<Self> {
        let wrong = |why: String| Error::invalid("--otlp-traces-endpoint", format!("{endpoint:?}: {why}"));
        let exporter = SpanExporter::builder()
            .with_tonic()
            .with_endpoint(address(endpoint).map_err(wrong)?)
            .with_timeout(EXPORT_TIMEOUT)
            .build()
            .map_err(|error| wrong(error.to_string()))?;
        let config = BatchConfigBuilder::default().with_max_queue_size(queue_spans).build();
        let resource = Resource::builder()
            .with_service_name(env!("CARGO_PKG_NAME"))
            .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
            .build();
        let provider = SdkTracerProvider::builder()
            .with_span_processor(BatchSpanProcessor::builder(exporter).with_batch_config(config).build())
            .with_sampler(Sampler::ParentBased(Box::new(Sampler::AlwaysOn)))
            .with_resource(resource)
            .build();
        let tracer = provider.tracer(env!("CARGO_PKG_NAME"));
        Ok(Self { provider, tracer })
    }

    /// Queues the span of a request that has ended, or drops it where the queue is full.
    pub fn record(&self, request: &RequestSpan<'_>) {
        let RequestSpan { origin, queue, prefill, total, outcome, .. } = *request;
        let at = |after: Duration| origin.arrived.checked_add(after).unwrap_or(origin.arrived);
        let mut span = self
            .tracer
            .span_builder("llm_request")
            .with_kind(SpanKind::Server)
            .with_start_time(origin.arrived)
            .with_attributes(attributes(request))
            .start_with_context(&self.tracer, &origin.parent);
        let mut event = |name: &'static str, after: Duration| {
            span.add_event_with_timestamp(Cow::Borrowed(name), at(after), Vec::new());
        };
        // What began when.
        event("queue", Duration::ZERO);
        if !queue.is_zero() {
            event("prefill", queue);
        }
        if !prefill.is_zero() {
            event("first_token", queue + prefill);
            event("decode", queue + prefill);
        }
        event("end", total);
        span.set_attribute(KeyValue::new("gen_ai.response.finish_reason", outcome.label()));
        if let Some(code) = request.error {
            span.set_status(Status::error(code_label(code)));
        }
        span.end_with_timestamp(at(total));
    }

    /// Sends what waits, now rather than with the next batch. Blocks.
    pub fn send_now(&self) {
        if let Err(error) = self.provider.force_flush() {
            tracing::warn!(%error, "spans were not sent");
        }
    }

    /// Sends what waits, for three seconds at the most, and nothing after it. Blocks.
    pub fn shut_down(&self) {
        if let Err(error) = self.provider.shutdown_with_timeout(LAST_EXPORT) {
            tracing::warn!(%error, "the last spans were not sent");
        }
    }
}

fn attributes(request: &RequestSpan<'_>) -> Vec<KeyValue> {
    let RequestSpan { origin, model, params, usage, queue, prefill, total, .. } = *request;
    let mut attributes = vec![
        KeyValue::new("gen_ai.request.id", origin.request_id.clone()),
        KeyValue::new("gen_ai.response.model", model.to_owned()),
        KeyValue::new("gen_ai.request.n", i64::from(params.n)),
        KeyValue::new("gen_ai.request.temperature", f64::from(params.temperature)),
        KeyValue::new("gen_ai.request.top_p", f64::from(params.top_p)),
        KeyValue::new("gen_ai.request.max_tokens", i64::from(params.max_tokens.unwrap_or_default())),
        KeyValue::new("gen_ai.usage.prompt_tokens", i64::from(usage.prompt_tokens)),
        KeyValue::new("gen_ai.usage.cached_tokens", i64::from(usage.cached_tokens)),
        KeyValue::new("gen_ai.usage.completion_tokens", i64::from(usage.completion_tokens)),
        KeyValue::new("gen_ai.latency.e2e", total.as_secs_f64()),
    ];
    if !queue.is_zero() {
        attributes.push(KeyValue::new("gen_ai.latency.time_in_queue", queue.as_secs_f64()));
    }
    if !prefill.is_zero() {
        let decode = total.saturating_sub(queue + prefill);
        attributes.push(KeyValue::new("gen_ai.latency.time_to_first_token", (queue + prefill).as_secs_f64()));
        attributes.push(KeyValue::new("gen_ai.latency.time_in_model_prefill", prefill.as_secs_f64()));
        attributes.push(KeyValue::new("gen_ai.latency.time_in_model_decode", decode.as_secs_f64()));
    }
    attributes
}

/// An address as the exporter wants it.
fn address(endpoint: &str) -> std::result::Result<String, String> {
    match endpoint.split_once("://") {
        Some(("http" | "grpc", rest)) if !rest.is_empty() => Ok(format!("http://{rest}")),
        Some(("https" | "grpcs", _)) => Err("TLS is not offered; send to a collector on this machine".to_owned()),
        Some((scheme, _)) => Err(format!("{scheme} is no scheme of OTLP over gRPC; http://host:4317 is an address")),
        None if endpoint.is_empty() => Err("is no address".to_owned()),
        None => Ok(format!("http://{endpoint}")),
    }
}

/// The trace that a call came with.
#[derive(Clone, Debug)]
pub struct Incoming(Context);

/// The headers of a call that matter here.
struct Headers<'h> {
    traceparent: Option<&'h str>,
    tracestate: Option<&'h str>,
}

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        match key {
            "traceparent" => self.traceparent,
            "tracestate" => self.tracestate,
            _ => None,
        }
    }

    fn keys(&self) -> Vec<&str> {
        Vec::new()
    }
}

impl Incoming {
    /// Of a call with these headers, or of gRPC's metadata, which is the same. One that is not as it should be is none.
    pub fn read<'h>(header: impl Fn(&str) -> Option<&'h str>) -> Self {
        let headers = Headers { traceparent: header("traceparent"), tracestate: header("tracestate") };
        Self(TraceContextPropagator::new().extract_with_context(&Context::new(), &headers))
    }

    /// Runs `task` with this as the trace of what it asks for.
    pub fn scope<T: Future>(self, task: T) -> impl Future<Output = T::Output> {
        task.with_context(self.0)
    }

    /// Whether there is one.
    #[must_use]
    pub fn is_some(&self) -> bool {
        self.0.span().span_context().is_valid()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_taken_as_vllm_takes_them() {
        for endpoint in ["http://h:4317", "grpc://h:4317", "h:4317"] {
            assert_eq!(address(endpoint).unwrap(), "http://h:4317");
        }
        for endpoint in ["https://h:4317", "grpcs://h", "udp://h", "", "http://"] {
            assert!(address(endpoint).is_err(), "{endpoint}");
        }
    }

    #[test]
    fn hostile_trace_parents_are_no_trace() {
        let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let read = |value: &'static str| Incoming::read(|name| (name == "traceparent").then_some(value)).is_some();
        assert!(read(good));
        let long = "00-".repeat(50_000).leak();
        for wrong in ["", "-", "00", &good[..46], "zz-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", long, "ü"]
        {
            assert!(!read(wrong), "{wrong}");
        }
        assert!(!read("00-00000000000000000000000000000000-00f067aa0ba902b7-01"));
    }
}
