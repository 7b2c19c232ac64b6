//! Metrics as text, of one engine and of several.

use std::sync::Arc;

use prometheus_client::{encoding::text, registry::Registry};

use super::Telemetry;

/// The media type of [`Telemetry::encode`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The last line of the format.
const END: &str = "# EOF";

pub(super) fn encode(registries: &[&Registry]) -> String {
    let mut text = String::new();
    let encoded = registries.iter().try_for_each(|registry| text::encode_registry(&mut text, registry));
    match encoded.and_then(|()| text::encode_eof(&mut text)) {
        Ok(()) => text,
        // Writing into a String fails only where a label's own formatter does, and ours do not.
        Err(std::fmt::Error) => format!("{END}\n"),
    }
}

/// The metrics of several engines as one text: each metric once, with the series of all; those of tenants where asked for.
#[must_use]
pub fn encode_all(all: &[Arc<Telemetry>], with_tenants: bool) -> String {
    let text = |telemetry: &Arc<Telemetry>| match with_tenants {
        true => telemetry.encode(),
        false => telemetry.encode_without_tenants(),
    };
    if let [only] = all {
        return text(only);
    }
    // Every engine has the same metrics in the same order; each begins with a line of help.
    let texts: Vec<String> = all.iter().map(text).collect();
    let mut metrics: Vec<(&str, String)> = Vec::new();
    for text in &texts {
        let mut at = None;
        for line in text.lines().filter(|line| *line != END) {
            if let Some(name) = line.strip_prefix("# HELP ").and_then(|rest| rest.split(' ').next()) {
                let known = metrics.iter().position(|(known, _)| *known == name);
                at = Some((known.unwrap_or(metrics.len()), known.is_none()));
                if known.is_none() {
                    metrics.push((name, String::new()));
                }
            }
            let Some((index, is_new)) = at else { continue };
            if let Some((_, series)) = metrics.get_mut(index).filter(|_| is_new || !line.starts_with('#')) {
                series.push_str(line);
                series.push('\n');
            }
        }
    }
    metrics.into_iter().map(|(_, series)| series).chain([format!("{END}\n")]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_series_of_several_models_stand_under_one_name() {
        let all = ["a", "b"].map(|name| Arc::new(Telemetry::new(name)));
        all[1].record_generated(3);
        let text = encode_all(&all, true);
        let help = "# HELP vllm:generation_tokens ";
        assert_eq!(text.lines().filter(|line| line.starts_with(help)).count(), 1, "{text}");
        let at = text.lines().position(|line| line.starts_with(help)).unwrap();
        let lines: Vec<_> = text.lines().skip(at + 1).take_while(|line| !line.starts_with("# HELP")).collect();
        let series = [r#"{model_name="a"} 0"#, r#"{model_name="b"} 3"#];
        let series = series.map(|rest| format!("vllm:generation_tokens_total{rest}"));
        assert_eq!(lines, ["# TYPE vllm:generation_tokens counter", &series[0], &series[1]]);
        assert!(text.ends_with("# EOF\n") && text.matches("# EOF").count() == 1);
        let samples = |text: &str| text.lines().filter(|line| !line.starts_with('#')).count();
        assert_eq!(samples(&text), samples(&all[0].encode()) + samples(&all[1].encode()));
        assert_eq!(encode_all(&all[..1], true), all[0].encode());
        assert_eq!(encode_all(&[], true), "# EOF\n");
    }
}
