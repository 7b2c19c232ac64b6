//! `candlewick tokenize`: text to token ids and back, a line at a time, with a model's tokenizer alone.

use std::io::{self, BufRead, Read, Write};

use clap::Args;
use serde_json::Value;

use super::{Stop, start::find_model};
use crate::{
    config::HubArgs,
    engine::load::{Wanted, load_tokenizer},
    error::{Error, Result},
    ids::TokenId,
    text::{MAX_TEXT_BYTES, Tokenizer},
};

/// Longest line of input: JSON may take six bytes for one of text, and a text as many ids of eight bytes.
const MAX_LINE_BYTES: usize = 8 * MAX_TEXT_BYTES;

/// What `tokenize` takes.
#[derive(Args, Clone, Debug)]
pub(super) struct TokenizeArgs {
    /// Directory, GGUF file or Hugging Face repository, org/name[:file-or-quantization][@revision], of which all but
    /// safetensors are downloaded; or a tokenizer.json, .model or .tiktoken file; the built-in demo if left out.
    pub(super) model: Option<String>,
    #[command(flatten)]
    hub: HubArgs,
    /// Print the ids of this text; without it, of each line of standard input.
    #[arg(long, value_name = "TEXT")]
    text: Option<String>,
    /// Each line of standard input is JSON: a string becomes a list of ids, a list of ids a string.
    #[arg(long, conflicts_with = "text")]
    json: bool,
    /// Frame each text as the model was trained, usually with a begin token.
    #[arg(long)]
    add_special_tokens: bool,
    /// Leave special tokens out of what is decoded.
    #[arg(long)]
    skip_special_tokens: bool,
}

pub(super) fn run(args: TokenizeArgs) -> Result<(), Stop> {
    let path = args.model.as_deref().map(|model| find_model(model, &args.hub, Wanted::BesideWeights)).transpose()?;
    let tokenizer = load_tokenizer(path.as_deref())?;
    let mut out = io::BufWriter::new(io::stdout().lock());
    if let Some(text) = &args.text {
        writeln!(out, "{}", ids(&tokenizer, text, &args)?)?;
        return Ok(out.flush()?);
    }
    let mut input = io::BufReader::new(io::stdin().lock());
    let mut line = Vec::new();
    for number in 1.. {
        line.clear();
        input.by_ref().take(MAX_LINE_BYTES as u64 + 1).read_until(b'\n', &mut line)?;
        if line.is_empty() {
            break;
        }
        let answer = answer(&tokenizer, &line, &args).map_err(|error| error.context(format_args!("line {number}")))?;
        writeln!(out, "{answer}")?;
        if input.buffer().is_empty() {
            out.flush()?; // Whoever asks a line at a time waits for this.
        }
    }
    Ok(out.flush()?)
}

fn answer(tokenizer: &Tokenizer, line: &[u8], args: &TokenizeArgs) -> Result<Value> {
    let wrong = |why: String| Error::invalid("standard input", why);
    if line.len() > MAX_LINE_BYTES {
        return Err(wrong(format!("is longer than {MAX_LINE_BYTES} bytes")));
    }
    let line = std::str::from_utf8(line).map_err(|error| wrong(error.to_string()))?;
    let line = line.strip_suffix('\n').unwrap_or(line);
    if !args.json {
        return ids(tokenizer, line, args);
    }
    match serde_json::from_str(line).map_err(|error| wrong(error.to_string()))? {
        Value::String(text) => ids(tokenizer, &text, args),
        list => {
            let ids: Vec<u32> =
                serde_json::from_value(list).map_err(|_| wrong("is no text and no list of ids".into()))?;
            let ids: Vec<TokenId> = ids.into_iter().map(TokenId).collect();
            Ok(tokenizer.decode(&ids, args.skip_special_tokens).into())
        }
    }
}

fn ids(tokenizer: &Tokenizer, text: &str, args: &TokenizeArgs) -> Result<Value> {
    let ids = tokenizer.encode(text, args.add_special_tokens)?;
    Ok(ids.into_iter().map(|id| id.0).collect())
}
