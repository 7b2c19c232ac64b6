//! The deadline that a client sets with the `grpc-timeout` header (gRPC over HTTP/2, section "Requests").

use std::time::Duration;

use axum::http::HeaderMap;
use tokio::time::Instant;
use tonic::metadata::MetadataMap;

use crate::error::{Error, Result};

const HEADER: &str = "grpc-timeout";

/// When the client stops waiting; none where it sets no limit, or one beyond all reckoning.
///
/// # Errors
/// `InvalidArgument` where the header is not 1 to 8 digits and a unit.
pub(crate) fn deadline(metadata: &MetadataMap) -> Result<Option<Instant>> {
    let Some(value) = metadata.get(HEADER) else { return Ok(None) };
    let timeout = value.to_str().ok().and_then(parse);
    let timeout = timeout.ok_or_else(|| Error::invalid(HEADER, "must be 1 to 8 digits and one of H M S m u n"))?;
    Ok(Instant::now().checked_add(timeout))
}

/// The same of a call that may be another wire's: none where the header cannot be read.
pub(crate) fn of(headers: &HeaderMap) -> Option<Instant> {
    Instant::now().checked_add(parse(headers.get(HEADER)?.to_str().ok()?)?)
}

fn parse(value: &str) -> Option<Duration> {
    let (digits, unit) = value.split_at_checked(value.len().checked_sub(1)?)?;
    if !(1..=8).contains(&digits.len()) || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let n: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(n * 3600)),
        "M" => Some(Duration::from_secs(n * 60)),
        "S" => Some(Duration::from_secs(n)),
        "m" => Some(Duration::from_millis(n)),
        "u" => Some(Duration::from_micros(n)),
        "n" => Some(Duration::from_nanos(n)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_unit_of_the_specification_is_read() {
        for (value, nanos) in [
            ("1H", 3_600_000_000_000),
            ("2M", 120_000_000_000),
            ("3S", 3_000_000_000),
            ("4m", 4_000_000),
            ("5u", 5_000),
            ("6n", 6),
        ] {
            assert_eq!(parse(value), Some(Duration::from_nanos(nanos)), "{value}");
        }
        assert!(parse("99999999H").is_some());
    }

    #[test]
    fn anything_else_is_refused() {
        for value in ["", "S", "5", "-1S", "+1S", "123456789S", "1 S", "1s", "1é", "é"] {
            assert_eq!(parse(value), None, "{value:?}");
        }
    }
}
