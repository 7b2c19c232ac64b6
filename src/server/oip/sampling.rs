//! `sampling_parameters`: a JSON object by vLLM's names, whose values may be written as strings.

use serde_json::{Map, Value};

use crate::{
    error::{Error, Result},
    ids::TokenId,
    params::SamplingParams,
};

const INPUT: &str = "sampling_parameters";

/// Puts one value into the parameters; in words, what it must be.
type Set = fn(&mut SamplingParams, Value) -> Result<(), &'static str>;

/// Every parameter by its name. Ranges are the engine's to check.
const PARAMETERS: &[(&str, Set)] = &[
    ("temperature", |p, v| float(v).map(|v| p.temperature = v)),
    // -1 keeps all, as 0 does.
    ("top_k", |p, v| signed(v).map(|v| p.top_k = u32::try_from(v).unwrap_or(0))),
    ("top_p", |p, v| float(v).map(|v| p.top_p = v)),
    ("min_p", |p, v| float(v).map(|v| p.min_p = v)),
    ("repetition_penalty", |p, v| float(v).map(|v| p.repetition_penalty = v)),
    ("frequency_penalty", |p, v| float(v).map(|v| p.frequency_penalty = v)),
    ("presence_penalty", |p, v| float(v).map(|v| p.presence_penalty = v)),
    ("seed", |p, v| signed(v).map(|v| p.seed = Some(v as u64))),
    ("max_tokens", |p, v| natural(v).map(|v| p.max_tokens = Some(v))),
    ("min_tokens", |p, v| natural(v).map(|v| p.min_tokens = v)),
    ("stop", |p, v| strings(v).map(|v| p.stop = v)),
    ("stop_token_ids", |p, v| ids(v).map(|v| p.stop_token_ids = v)),
    ("include_stop_str_in_output", |p, v| flag(v).map(|v| p.include_stop_str_in_output = v)),
    ("ignore_eos", |p, v| flag(v).map(|v| p.ignore_eos = v)),
    ("skip_special_tokens", |p, v| flag(v).map(|v| p.skip_special_tokens = v)),
    ("n", |_, v| natural(v).and_then(|v| if v == 1 { Ok(()) } else { Err("must be 1: send a request for each") })),
];

/// The parameters that `json` names, over `defaults`.
///
/// # Errors
/// `InvalidArgument` where it is no object, or with the name of a parameter that is unknown or of another type.
pub(super) fn parameters(json: &str, defaults: &SamplingParams) -> Result<SamplingParams> {
    let object: Map<String, Value> =
        serde_json::from_str(json).map_err(|error| Error::invalid(INPUT, format!("must be a JSON object: {error}")))?;
    let mut params = defaults.clone();
    for (name, value) in object {
        let invalid = |why: &str| Error::invalid(format!("{INPUT}.{name}"), why);
        let Some((_, set)) = PARAMETERS.iter().find(|(known, _)| *known == name) else {
            return Err(invalid("is not known here"));
        };
        set(&mut params, value).map_err(invalid)?;
    }
    Ok(params)
}

/// What a string says, where it says a number or a flag.
fn spelled(value: Value) -> Value {
    match &value {
        Value::String(text) => serde_json::from_str(&text.trim().to_ascii_lowercase()).unwrap_or(value),
        _ => value,
    }
}

fn float(value: Value) -> Result<f32, &'static str> {
    spelled(value).as_f64().map(|value| value as f32).ok_or("must be a number")
}

fn signed(value: Value) -> Result<i64, &'static str> {
    spelled(value).as_i64().ok_or("must be a whole number")
}

fn natural(value: Value) -> Result<u32, &'static str> {
    u32::try_from(signed(value)?).map_err(|_| "must be a whole number from 0 to 4294967295")
}

fn flag(value: Value) -> Result<bool, &'static str> {
    match spelled(value) {
        Value::Bool(flag) => Ok(flag),
        Value::Number(number) if number.as_u64() == Some(0) => Ok(false),
        Value::Number(number) if number.as_u64() == Some(1) => Ok(true),
        _ => Err("must be true or false"),
    }
}

fn strings(value: Value) -> Result<Vec<String>, &'static str> {
    const WHY: &str = "must be a string or an array of strings";
    match value {
        // A list may be written as a string too.
        Value::String(text) => Ok(serde_json::from_str(&text).unwrap_or_else(|_| vec![text])),
        other => serde_json::from_value(other).map_err(|_| WHY),
    }
}

fn ids(value: Value) -> Result<Vec<TokenId>, &'static str> {
    let ids: Vec<u32> = serde_json::from_value(spelled(value)).map_err(|_| "must be an array of token ids")?;
    Ok(ids.into_iter().map(TokenId).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_may_be_written_as_strings() {
        let defaults = SamplingParams { top_k: 7, ..SamplingParams::default() };
        let plain = r#"{"temperature": 0.5, "max_tokens": 9, "ignore_eos": true, "stop": ["a", "b"], "seed": -1}"#;
        let strings = r#"{"temperature": "0.5", "max_tokens": "9", "ignore_eos": "True", "stop": "[\"a\", \"b\"]", "seed": "-1"}"#;
        let params = parameters(plain, &defaults).unwrap();
        assert_eq!(params, parameters(strings, &defaults).unwrap());
        let expected = SamplingParams {
            temperature: 0.5,
            max_tokens: Some(9),
            ignore_eos: true,
            stop: vec!["a".into(), "b".into()],
            seed: Some(u64::MAX),
            ..defaults
        };
        assert_eq!(params, expected);
        assert_eq!(parameters(r#"{"stop": "end", "top_k": -1}"#, &expected).unwrap().stop, ["end"]);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let field = |json: &str| parameters(json, &SamplingParams::default()).unwrap_err().violations.remove(0).field;
        assert_eq!(field("[]"), "sampling_parameters");
        assert_eq!(field("{"), "sampling_parameters");
        for (name, value) in [
            ("beams", "3"),
            ("temperature", "\"hot\""),
            ("max_tokens", "-1"),
            ("max_tokens", "1.5"),
            ("ignore_eos", "2"),
            ("stop", "[1]"),
            ("stop_token_ids", "[-1]"),
            ("n", "2"),
        ] {
            assert_eq!(field(&format!("{{\"{name}\": {value}}}")), format!("sampling_parameters.{name}"));
        }
    }
}
