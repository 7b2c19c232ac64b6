//! Reads recorded arrivals and lengths: Azure's CSV (<https://github.com/Azure/AzurePublicDataset>) and Mooncake's JSON
//! lines (<https://github.com/kvcache-ai/Mooncake>).

use std::{
    fs::File,
    io::{BufRead, BufReader, Read},
    path::Path,
};

use jiff::civil::DateTime;
use serde::Deserialize;

use crate::error::{Error, Result};

/// Longest line: Mooncake's has a number for each 512 tokens of a prompt.
const MAX_LINE_BYTES: usize = 1 << 20;
/// Tokens of a block that `hash_ids` names.
pub(super) const BLOCK_TOKENS: usize = 512;
/// Longest prompt and answer that is believed.
const MAX_TOKENS: u32 = 1 << 24;

/// One request of a trace.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Recorded {
    /// Seconds after the first.
    pub at: f64,
    pub input_tokens: u32,
    pub output_tokens: u32,
    /// Which blocks of [`BLOCK_TOKENS`] its prompt consists of; equal numbers are equal blocks. Empty where the trace
    /// does not say.
    pub blocks: Vec<u64>,
}

/// The first `most` requests of a file.
///
/// # Errors
/// `InvalidArgument` that names the file, the line and what is wrong with it.
pub(super) fn read(path: &Path, most: usize) -> Result<Vec<Recorded>> {
    let wrong = |why: String| Error::invalid("--dataset-path", format!("{}: {why}", path.display()));
    let file = File::open(path).map_err(|error| wrong(error.to_string()))?;
    parse(BufReader::new(file), most).map_err(wrong)
}

/// The next line, without its break; `None` at the end.
fn next_line(input: &mut impl BufRead) -> Result<Option<String>, String> {
    let mut line = Vec::new();
    input.take(MAX_LINE_BYTES as u64 + 1).read_until(b'\n', &mut line).map_err(|error| error.to_string())?;
    if line.len() > MAX_LINE_BYTES {
        return Err(format!("is longer than {MAX_LINE_BYTES} bytes"));
    }
    let line = String::from_utf8(line).map_err(|_| "is no UTF-8".to_owned())?;
    Ok((!line.is_empty()).then_some(line))
}

fn parse(mut input: impl BufRead, most: usize) -> Result<Vec<Recorded>, String> {
    let mut found: Vec<Recorded> = Vec::new();
    let (mut columns, mut first) = (None, None);
    for number in 1.. {
        if found.len() == most {
            break;
        }
        let in_line = |why: String| format!("line {number} {why}");
        let Some(line) = next_line(&mut input).map_err(in_line)? else { break };
        let line = line.trim_start_matches('\u{feff}').trim();
        if line.is_empty() {
            continue;
        }
        let mut recorded = if line.starts_with('{') {
            of_json(line).map_err(in_line)?
        } else if let Some(columns) = &columns {
            of_csv(line, columns).map_err(in_line)?
        } else {
            columns = Some(Columns::find(line).map_err(in_line)?);
            continue;
        };
        recorded.at -= *first.get_or_insert(recorded.at);
        if found.last().is_some_and(|before| recorded.at < before.at) {
            return Err(in_line("is earlier than the one before it".to_owned()));
        }
        found.push(recorded);
    }
    if found.is_empty() { Err("holds no requests".to_owned()) } else { Ok(found) }
}

/// Where the columns of a CSV file stand.
struct Columns([usize; 3]);

impl Columns {
    const NAMES: [&str; 3] = ["TIMESTAMP", "ContextTokens", "GeneratedTokens"];

    fn find(header: &str) -> Result<Self, String> {
        let names: Vec<_> = header.split(',').map(str::trim).collect();
        let place = |wanted: &str| {
            let found = names.iter().position(|name| name.eq_ignore_ascii_case(wanted));
            found.ok_or_else(|| format!("is no header: it has no column {wanted}"))
        };
        let [at, input, output] = Self::NAMES;
        Ok(Self([place(at)?, place(input)?, place(output)?]))
    }
}

fn of_csv(line: &str, Columns(places): &Columns) -> Result<Recorded, String> {
    let fields: Vec<_> = line.split(',').map(str::trim).collect();
    let field = |k: usize| {
        let name = Columns::NAMES[k];
        fields.get(places[k]).copied().ok_or_else(|| format!("has no {name}"))
    };
    let tokens = |k: usize| {
        let text = field(k)?;
        let number = text.parse().map_err(|_| format!("has {text:?} as {}", Columns::NAMES[k]))?;
        length(number, Columns::NAMES[k])
    };
    let (input_tokens, output_tokens) = (tokens(1)?, tokens(2)?);
    Ok(Recorded { at: time(field(0)?)?, input_tokens, output_tokens, blocks: Vec::new() })
}

/// Seconds since the epoch, of a date and time without a zone or a plain number of seconds.
fn time(text: &str) -> Result<f64, String> {
    let wrong = || format!("has {text:?} as TIMESTAMP");
    if let Ok(seconds) = text.parse::<f64>() {
        return Some(seconds).filter(|seconds| seconds.is_finite()).ok_or_else(wrong);
    }
    let at: DateTime = text.parse().map_err(|_| wrong())?;
    Ok(at.duration_since(DateTime::constant(1970, 1, 1, 0, 0, 0, 0)).as_secs_f64())
}

/// A length in bounds. None at all counts as one token: no server takes less.
fn length(tokens: u64, name: &str) -> Result<u32, String> {
    match u32::try_from(tokens) {
        Ok(tokens) if tokens <= MAX_TOKENS => Ok(tokens.max(1)),
        _ => Err(format!("has {tokens} as {name}, and {MAX_TOKENS} is the most")),
    }
}

#[derive(Deserialize)]
struct Line {
    timestamp: f64,
    input_length: u64,
    output_length: u64,
    #[serde(default)]
    hash_ids: Vec<u64>,
}

fn of_json(line: &str) -> Result<Recorded, String> {
    let line: Line = serde_json::from_str(line).map_err(|error| format!("is no such request: {error}"))?;
    Ok(Recorded {
        at: line.timestamp / 1e3,
        input_tokens: length(line.input_length, "input_length")?,
        output_tokens: length(line.output_length, "output_length")?,
        blocks: line.hash_ids,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_text(text: &str) -> Result<Vec<Recorded>, String> {
        parse(text.as_bytes(), 10)
    }

    fn recorded(at: f64, input_tokens: u32, output_tokens: u32, blocks: &[u64]) -> Recorded {
        Recorded { at, input_tokens, output_tokens, blocks: blocks.to_vec() }
    }

    #[test]
    fn a_csv_file_is_read_by_the_names_of_its_columns() {
        let text = "\u{feff}GeneratedTokens,TIMESTAMP,x,ContextTokens\r\n\
                    44,2023-11-16 23:59:59.5000000,?,374\n\n0,2023-11-17 00:00:01.25,?,1\n";
        assert_eq!(read_text(text).unwrap(), [recorded(0.0, 374, 44, &[]), recorded(1.75, 1, 1, &[])]);
        let text = "TIMESTAMP,ContextTokens,GeneratedTokens\n10.5,1,2\n12,3,4";
        assert_eq!(read_text(text).unwrap(), [recorded(0.0, 1, 2, &[]), recorded(1.5, 3, 4, &[])]);
    }

    #[test]
    fn json_lines_have_milliseconds_and_blocks() {
        let text = r#"{"timestamp": 500, "input_length": 600, "output_length": 5, "hash_ids": [7, 9]}
                      {"timestamp": 3500, "input_length": 3, "output_length": 6, "session": "x"}"#;
        assert_eq!(read_text(text).unwrap(), [recorded(0.0, 600, 5, &[7, 9]), recorded(3.0, 3, 6, &[])]);
    }

    #[test]
    fn no_more_is_read_than_is_asked_for() {
        let text = "TIMESTAMP,ContextTokens,GeneratedTokens\n1,1,1\n2,1,1\nnonsense";
        assert_eq!(parse(text.as_bytes(), 2).unwrap().len(), 2);
    }

    #[test]
    fn hostile_lines_are_named_with_what_is_wrong() {
        let header = "TIMESTAMP,ContextTokens,GeneratedTokens\n";
        let cases = [
            (String::new(), "holds no requests"),
            (header.to_owned(), "holds no requests"),
            ("a,b,c\n1,2,3".to_owned(), "line 1 is no header: it has no column TIMESTAMP"),
            (format!("{header}1,2"), "line 2 has no GeneratedTokens"),
            (format!("{header}1,-2,3"), "line 2 has \"-2\" as ContextTokens"),
            (format!("{header}1,2,1e9"), "line 2 has \"1e9\" as GeneratedTokens"),
            (format!("{header}1,99999999999,3"), "line 2 has 99999999999 as ContextTokens"),
            (format!("{header}1,99999999999999999999999,3"), "as ContextTokens"),
            (format!("{header}nan,2,3"), "line 2 has \"nan\" as TIMESTAMP"),
            (format!("{header}inf,2,3"), "as TIMESTAMP"),
            (format!("{header}2023-13-16 18:15:46,2,3"), "as TIMESTAMP"),
            (format!("{header}5,2,3\n4,2,3"), "line 3 is earlier"),
            ("{\"timestamp\": 1}".to_owned(), "line 1 is no such request"),
            ("{\"timestamp\": 1, \"input_length\": -1, \"output_length\": 1}".to_owned(), "line 1 is no such request"),
            ("{".repeat(2000), "line 1 is no such request"),
            ("x".repeat(MAX_LINE_BYTES + 5), "line 1 is longer than"),
        ];
        for (text, says) in cases {
            let error = read_text(&text).unwrap_err();
            assert!(error.contains(says), "{error} is not {says}");
        }
        assert!(parse(&b"\xff\xfe\n"[..], 1).unwrap_err().contains("UTF-8"));
    }

    #[test]
    fn a_file_that_is_not_there_is_said_by_its_flag() {
        let error = read(Path::new("/no/such/trace.csv"), 1).unwrap_err();
        assert!(error.message.contains("/no/such/trace.csv") && error.message.contains("--dataset-path"), "{error}");
    }
}
