//! `candlewick generate`: continues one prompt, streaming to standard output.

use std::{
    io::{self, IsTerminal, Read, Write},
    time::Instant,
};

use clap::Args;

use super::{
    Stop,
    backend::{Backend, BackendArgs},
    block_on,
    sampling_args::{SamplingArgs, SeveralArgs},
    transcript::Transcript,
};
use crate::{
    engine::Prompt,
    error::{Error, Result},
    ids::TokenId,
    params::SampledToken,
    text::MAX_TEXT_BYTES,
};

/// What `generate` takes.
#[derive(Args, Clone, Debug)]
pub(super) struct GenerateArgs {
    #[command(flatten)]
    pub(super) backend: BackendArgs,
    /// Text to continue; standard input if left out.
    #[arg(long, value_name = "TEXT")]
    prompt: Option<String>,
    /// Token ids to continue.
    #[arg(long, value_name = "ID", value_delimiter = ',', conflicts_with = "prompt")]
    prompt_token_ids: Option<Vec<u32>>,
    /// Print one JSON object at the end instead: text, token ids, why it ended, usage, timings.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    several: SeveralArgs,
}

pub(super) fn run(args: GenerateArgs) -> Result<(), Stop> {
    // Before the model is loaded, so that a missing prompt is said at once.
    let prompt = prompt(&args)?;
    block_on(async move {
        let backend = Backend::open(&args.backend).await?;
        let asked = Instant::now();
        let sampling = args.sampling.clone().with(&args.several);
        let events = backend.generate(prompt, &sampling).await?;
        let speaks = backend.has_tokenizer();
        if args.json {
            let transcript = Transcript::read(events, asked, |_, _| Ok(())).await?;
            writeln!(io::stdout(), "{}", transcript.to_json(backend.model_name()))?;
        } else if args.several.asks_for_several() {
            let transcript = Transcript::read(events, asked, |_, _| Ok(())).await?;
            for (k, answer) in transcript.answers.iter().enumerate() {
                if k > 0 {
                    writeln!(io::stdout())?;
                }
                let mut out = Printer { speaks, ends_with_newline: false };
                out.print(&answer.text, &answer.tokens)?;
                out.end()?;
            }
        } else {
            let mut out = Printer { speaks, ends_with_newline: false };
            Transcript::read(events, asked, |text, tokens| out.print(text, tokens)).await?;
            out.end()?;
        }
        Ok(())
    })
}

fn prompt(args: &GenerateArgs) -> Result<Prompt, Stop> {
    if let Some(ids) = &args.prompt_token_ids {
        return Ok(Prompt::Tokens(ids.iter().copied().map(TokenId).collect()));
    }
    if let Some(text) = &args.prompt {
        return Ok(Prompt::Text(text.clone()));
    }
    let stdin = io::stdin();
    if stdin.is_terminal() {
        let why = "give the text to continue, or --prompt-token-ids, or pipe a text to standard input";
        return Err(Error::invalid("--prompt", why).into());
    }
    let mut bytes = Vec::new();
    stdin.lock().take(MAX_TEXT_BYTES as u64 + 1).read_to_end(&mut bytes)?;
    Ok(Prompt::Text(piped_text(bytes)?))
}

/// The text of a pipe, less the newline that `echo` and editors put at its end.
fn piped_text(bytes: Vec<u8>) -> Result<String> {
    if bytes.len() > MAX_TEXT_BYTES {
        return Err(Error::invalid("standard input", format!("is longer than {MAX_TEXT_BYTES} bytes")));
    }
    let mut text = String::from_utf8(bytes).map_err(|error| Error::invalid("standard input", error.to_string()))?;
    if text.ends_with('\n') {
        text.pop();
    }
    Ok(text)
}

/// Writes what comes, as it comes: text, or token ids where the model has no tokenizer.
struct Printer {
    speaks: bool,
    ends_with_newline: bool,
}

impl Printer {
    fn print(&mut self, text: &str, tokens: &[SampledToken]) -> io::Result<()> {
        let mut out = io::stdout().lock();
        if self.speaks {
            out.write_all(text.as_bytes())?;
            if !text.is_empty() {
                self.ends_with_newline = text.ends_with('\n');
            }
        } else {
            for token in tokens {
                write!(out, "{} ", token.id)?;
            }
        }
        out.flush()
    }

    fn end(self) -> io::Result<()> {
        if self.ends_with_newline { Ok(()) } else { writeln!(io::stdout()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pipe_loses_the_newline_at_its_end_and_no_other() {
        assert_eq!(piped_text(b"a\nb\n\n".to_vec()).unwrap(), "a\nb\n");
        assert_eq!(piped_text(b"ab".to_vec()).unwrap(), "ab");
        assert!(piped_text(vec![0xff]).is_err());
    }
}
