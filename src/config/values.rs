//! How the values of flags are read.

use std::time::Duration;

use clap::builder::{PossibleValuesParser, RangedU64ValueParser, TypedValueParser};

use super::{DeviceKind, KvCacheMemory};
use crate::kernels::machine::InstructionSet;

/// A count within bounds.
pub(super) fn count(least: u64, most: u64) -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(least..=most)
}

/// The name of an instruction set.
pub(crate) fn instruction_set() -> impl TypedValueParser<Value = InstructionSet> {
    let names = PossibleValuesParser::new(InstructionSet::NAMES.map(|(_, name)| name));
    names.map(|given| {
        let named = InstructionSet::NAMES.into_iter().find(|(_, name)| *name == given);
        named.map_or(InstructionSet::Baseline, |(set, _)| set)
    })
}

/// A number with an optional unit, as vLLM reads them: `k m g t` are powers of 1000, `K M G T` of 1024.
pub(super) fn number_with_unit(text: &str) -> Result<usize, String> {
    let (digits, unit) = match text.char_indices().next_back() {
        Some((at, unit)) if unit.is_ascii_alphabetic() => (&text[..at], Some(unit)),
        _ => (text, None),
    };
    let (base, exponent) = match unit {
        None => (1, 0),
        Some(unit) => {
            let exponent =
                "kmgt".find(unit.to_ascii_lowercase()).ok_or("the unit must be one of k, m, g, t, K, M, G, T")?;
            (if unit.is_ascii_lowercase() { 1000usize } else { 1024 }, exponent as u32 + 1)
        }
    };
    let number: usize =
        digits.parse().map_err(|_| "must be a whole number, with or without a unit (16384, 16K, 2G)")?;
    base.checked_pow(exponent).and_then(|unit| number.checked_mul(unit)).ok_or_else(|| String::from("is too large"))
}

/// `auto`, or a number with an optional unit.
pub(super) fn kv_cache_memory(text: &str) -> Result<KvCacheMemory, String> {
    if text == "auto" { Ok(KvCacheMemory::Auto) } else { number_with_unit(text).map(KvCacheMemory::Bytes) }
}

/// A device, perhaps with its number.
pub(super) fn device(text: &str) -> Result<DeviceKind, String> {
    let number = |text: &str| text.parse().map_err(|_| format!("{text:?} is no number of a card: cuda:0 is the first"));
    match text.split_once(':') {
        None if text == "auto" => Ok(DeviceKind::Auto),
        None if text == "cpu" => Ok(DeviceKind::Cpu),
        None if text == "cuda" => Ok(DeviceKind::Cuda(0)),
        None if text == "metal" => Ok(DeviceKind::Metal),
        Some(("cuda", ordinal)) => number(ordinal).map(DeviceKind::Cuda),
        _ => Err("must be auto, cpu, cuda, cuda:N or metal".into()),
    }
}

/// A share of something, above zero and at most all of it.
pub(super) fn share(text: &str) -> Result<f64, String> {
    let share: f64 = text.parse().map_err(|_| "must be a number")?;
    if share > 0.0 && share <= 1.0 { Ok(share) } else { Err("must be above 0 and at most 1".into()) }
}

/// A duration in seconds, above zero, with or without a fraction.
pub(super) fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "must be a number of seconds")?;
    if !(0.001..=1e9).contains(&seconds) {
        return Err("must be between 0.001 and 1000000000 seconds".into());
    }
    Ok(Duration::from_secs_f64(seconds))
}
