//! `candlewick chat`: a conversation in the terminal, streaming. Ctrl-C ends the answer under way, not the program.

mod commands;
mod terminal;

use std::{
    fs,
    io::{self, IsTerminal, Write},
    path::PathBuf,
    time::{Duration, Instant},
};

use clap::Args;
use console::style;
use futures::StreamExt;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::runtime::Runtime;

use self::{
    commands::{Command, Input, help},
    terminal::Lines,
};
use super::{
    Stop,
    backend::{Backend, BackendArgs, Events},
    runtime,
    sampling_args::SamplingArgs,
    say,
};
use crate::{
    engine::{Event, Prompt},
    error::{Error, Result},
    params::Usage,
    text::{ChatMessage, MAX_TEXT_BYTES, Piece, Role},
};

/// What `chat` takes.
#[derive(Args, Clone, Debug)]
pub(super) struct ChatArgs {
    #[command(flatten)]
    pub(super) backend: BackendArgs,
    /// Instructions to the model, before the conversation.
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Keep what is typed here, for the next time; nothing is kept without it.
    #[arg(long, value_name = "FILE")]
    history_file: Option<PathBuf>,
    /// Print each answer as one JSON object in a line: text, usage, timings.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    sampling: SamplingArgs,
}

pub(super) fn run(args: ChatArgs) -> Result<(), Stop> {
    let runtime = runtime()?;
    let backend = runtime.block_on(Backend::open(&args.backend))?;
    if !backend.has_tokenizer() {
        return Err(Error::invalid("MODEL", "has no tokenizer, so it cannot talk; generate takes token ids").into());
    }
    let mut lines = Lines::open(args.history_file.as_deref())?;
    let interactive = lines.interactive();
    if interactive {
        say(format_args!("Talking to {}; /help lists commands.", backend.model_name()));
    }
    let mut chat = Chat { messages: opening(args.system.as_deref()), settings: Vec::new(), args, backend, runtime };
    while let Some(line) = lines.next()? {
        match chat.obey(&line, interactive) {
            Ok(true) => {}
            Ok(false) => break,
            // A person can try again; a script would not know.
            Err(Stop::Error(error)) if interactive => say(style(format_args!("error: {error}")).red().for_stderr()),
            Err(stop) => return Err(stop),
        }
    }
    if let Some(path) = &chat.args.history_file {
        lines.save_history(path)?;
    }
    Ok(())
}

fn opening(system: Option<&str>) -> Vec<ChatMessage> {
    system.filter(|text| !text.is_empty()).map(|text| ChatMessage::new(Role::System, text)).into_iter().collect()
}

/// A message as it is saved, which is OpenAI's shape.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Saved {
    role: String,
    content: String,
}

/// The roles that a conversation here has.
const ROLES: [(&str, Role); 3] = [("system", Role::System), ("user", Role::User), ("assistant", Role::Assistant)];

/// The conversation so far, and who answers.
struct Chat {
    messages: Vec<ChatMessage>,
    /// What was set with `/set`, as it was typed.
    settings: Vec<String>,
    args: ChatArgs,
    backend: Backend,
    runtime: Runtime,
}

impl Chat {
    /// Does what a line asks for; false where that is to leave.
    fn obey(&mut self, line: &str, interactive: bool) -> Result<bool, Stop> {
        let mut out = io::stdout();
        match Input::of(line) {
            Input::Nothing => {}
            Input::Say(text) => {
                self.messages.push(ChatMessage::new(Role::User, text));
                self.answer(interactive)?;
            }
            Input::Unknown(word, near) => {
                let hint =
                    near.map_or_else(|| "/help lists commands.".to_owned(), |near| format!("Did you mean {near}?"));
                say(format_args!("There is no such command: {word}. {hint}"));
            }
            Input::Command(Command::Help, _) => writeln!(out, "{}", help())?,
            Input::Command(Command::Reset, _) => self.messages = opening(self.args.system.as_deref()),
            Input::Command(Command::System, text) => {
                self.args.system = Some(text.to_owned());
                self.messages = opening(Some(text));
            }
            Input::Command(Command::Set, what) => {
                let (name, value) = what.split_once(char::is_whitespace).unwrap_or((what, ""));
                self.args.sampling.set(name, Some(value.trim()).filter(|value| !value.is_empty()))?;
                self.settings.push(what.to_owned());
            }
            Input::Command(Command::Settings, _) => {
                self.settings.iter().try_for_each(|setting| writeln!(out, "{setting}"))?;
            }
            Input::Command(Command::Retry, _) => {
                self.messages.pop_if(|message| message.role == Role::Assistant);
                if self.messages.last().is_none_or(|message| message.role != Role::User) {
                    return Err(Error::invalid("/retry", "nothing was said yet").into());
                }
                self.answer(interactive)?;
            }
            Input::Command(Command::Undo, _) => {
                let kept = self.messages.iter().rposition(|message| message.role == Role::User);
                self.messages.truncate(kept.unwrap_or(self.messages.len()));
            }
            Input::Command(Command::Show, _) => {
                for message in self.saved() {
                    writeln!(out, "{}: {}", style(message.role).bold(), message.content)?;
                }
            }
            Input::Command(Command::Save, path) => self.save(path)?,
            Input::Command(Command::Load, path) => self.messages = load(path)?,
            Input::Command(Command::Model, _) => writeln!(out, "{}", self.backend.model_name())?,
            Input::Command(Command::Quit, _) => return Ok(false),
        }
        Ok(true)
    }

    /// Answers what was said last and prints it. A refused turn is taken back; an interrupted answer stays as far as it
    /// came.
    fn answer(&mut self, interactive: bool) -> Result<(), Stop> {
        let prompt = Prompt::Chat(self.messages.clone().into());
        let style = if self.args.json { Style::Json } else { Style::Text { interactive } };
        let answer = self.runtime.block_on(async {
            let events = self.backend.generate(prompt, &self.args.sampling).await?;
            if interactive {
                // Only here: whoever listens for Ctrl-C once is never again ended by it.
                let interrupted = async { tokio::signal::ctrl_c().await.unwrap_or_default() };
                print_answer(events, style, interrupted).await
            } else {
                print_answer(events, style, std::future::pending()).await
            }
        });
        match answer {
            Ok(answer) => self.messages.push(ChatMessage::new(Role::Assistant, &answer)),
            Err(error) => {
                self.messages.pop();
                return Err(error);
            }
        }
        Ok(())
    }

    fn saved(&self) -> Vec<Saved> {
        let name = |role: Role| ROLES.iter().find(|row| row.1 == role).map_or("user", |row| row.0);
        let saved = |m: &ChatMessage| Saved { role: name(m.role).to_owned(), content: m.content.clone() };
        self.messages.iter().map(saved).collect()
    }

    fn save(&self, path: &str) -> Result<()> {
        let wrong = |error: String| Error::invalid("/save", format!("{path}: {error}"));
        let text = serde_json::to_string_pretty(&self.saved()).map_err(|error| wrong(error.to_string()))?;
        // What is there is somebody's.
        let mut file = fs::File::create_new(path).map_err(|error| wrong(error.to_string()))?;
        writeln!(file, "{text}").map_err(|error| wrong(error.to_string()))
    }
}

/// A conversation that was saved.
fn load(path: &str) -> Result<Vec<ChatMessage>> {
    let wrong = |why: String| Error::invalid("/load", format!("{path}: {why}"));
    let size = fs::metadata(path).map_err(|error| wrong(error.to_string()))?.len();
    if size > MAX_TEXT_BYTES as u64 {
        return Err(wrong(format!("is longer than {MAX_TEXT_BYTES} bytes")));
    }
    let text = fs::read_to_string(path).map_err(|error| wrong(error.to_string()))?;
    let saved: Vec<Saved> = serde_json::from_str(&text).map_err(|error| wrong(error.to_string()))?;
    let message = |saved: Saved| {
        let role = ROLES.iter().find(|row| row.0 == saved.role).map(|row| row.1);
        let role = role.ok_or_else(|| wrong(format!("{:?} is no role", saved.role)))?;
        Ok(ChatMessage::new(role, &saved.content))
    };
    saved.into_iter().map(message).collect()
}

/// How an answer is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Style {
    /// As it comes; to a person with what the model thought, and what it cost.
    Text { interactive: bool },
    /// As one object at its end.
    Json,
}

/// Prints an answer as it comes and returns it, whole or as far as it came before `interrupted`.
async fn print_answer(mut events: Events, style: Style, interrupted: impl Future<Output = ()>) -> Result<String, Stop> {
    let mut interrupted = std::pin::pin!(interrupted);
    let mut answer = Answer::new(style);
    let outcome = loop {
        let event = tokio::select! {
            biased;
            () = &mut interrupted => break Ok(()),
            event = events.next() => event,
        };
        match event {
            Some(Ok(Event::Delta(delta))) => {
                for piece in &delta.pieces {
                    if let Piece::Reasoning(text) = piece {
                        answer.think(text)?;
                    }
                }
                answer.usage = delta.usage;
                answer.say(&delta.text)?;
            }
            Some(Ok(Event::Finished(finished))) => {
                answer.usage = finished.usage;
                break Ok(());
            }
            Some(Ok(Event::Started(_) | Event::Prompt(_))) => {}
            None => break Ok(()),
            Some(Err(error)) => break Err(error),
        }
    };
    answer.end()?;
    outcome?;
    Ok(answer.text)
}

/// An answer under way.
struct Answer {
    style: Style,
    text: String,
    /// The line under way has what the model thinks.
    thinks: bool,
    usage: Usage,
    asked: Instant,
    first: Option<Duration>,
}

impl Answer {
    fn new(style: Style) -> Self {
        let (text, usage, asked) = (String::new(), Usage::default(), Instant::now());
        Self { style, text, thinks: false, usage, asked, first: None }
    }

    fn think(&mut self, text: &str) -> io::Result<()> {
        self.first.get_or_insert_with(|| self.asked.elapsed());
        if self.style == (Style::Text { interactive: true }) {
            self.thinks = true;
            write!(io::stdout(), "{}", style(text).dim())?;
            io::stdout().flush()?;
        }
        Ok(())
    }

    fn say(&mut self, text: &str) -> io::Result<()> {
        self.first.get_or_insert_with(|| self.asked.elapsed());
        self.text.push_str(text);
        if self.style == Style::Json || text.is_empty() {
            return Ok(());
        }
        let mut out = io::stdout().lock();
        if std::mem::take(&mut self.thinks) {
            out.write_all(b"\n\n")?;
        }
        out.write_all(text.as_bytes())?;
        out.flush()
    }

    fn end(&self) -> io::Result<()> {
        let (total, first) = (self.asked.elapsed(), self.first.unwrap_or_default());
        let Usage { prompt_tokens, cached_tokens, completion_tokens } = self.usage;
        if self.style == Style::Json {
            let round = |duration: Duration| (duration.as_secs_f64() * 1e6).round() / 1e3;
            let object = json!({
                "role": "assistant",
                "content": self.text,
                "usage": {
                    "prompt_tokens": prompt_tokens,
                    "cached_tokens": cached_tokens,
                    "completion_tokens": completion_tokens,
                },
                "timings": { "ttft_ms": round(first), "total_ms": round(total) },
            });
            return writeln!(io::stdout(), "{object}");
        }
        // Whatever comes next begins on a line of its own.
        if self.thinks || !self.text.is_empty() && !self.text.ends_with('\n') {
            writeln!(io::stdout())?;
        }
        if self.style == (Style::Text { interactive: true }) && completion_tokens > 1 && io::stderr().is_terminal() {
            let rate = f64::from(completion_tokens - 1) / (total - first.min(total)).as_secs_f64().max(1e-9);
            let said =
                format!("{completion_tokens} tokens, {rate:.1} a second, the first after {:.2} s", first.as_secs_f64());
            say(style(said).dim().for_stderr());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use futures::stream;

    use super::*;
    use crate::{
        engine::{Delta, Finished, Timings},
        params::{FinishReason, SampledTokens},
    };

    const PLAIN: Style = Style::Text { interactive: false };

    fn delta(text: &str) -> Result<Event> {
        Ok(Event::Delta(Delta {
            index: 0,
            text: text.into(),
            pieces: Vec::new(),
            tokens: SampledTokens::new(),
            usage: Usage::default(),
        }))
    }

    #[test]
    fn a_conversation_opens_with_its_instructions() {
        assert!(opening(None).is_empty() && opening(Some("")).is_empty());
        assert_eq!(opening(Some("Be brief.")), [ChatMessage::new(Role::System, "Be brief.")]);
    }

    #[test]
    fn what_is_loaded_must_be_a_conversation() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("chat.json");
        let read = |text: &str| {
            fs::write(&path, text).unwrap();
            load(path.to_str().unwrap())
        };
        let messages = read(r#"[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]"#).unwrap();
        assert_eq!(messages, [ChatMessage::new(Role::User, "a"), ChatMessage::new(Role::Assistant, "b")]);
        for (text, says) in [
            ("", "EOF"),
            ("{}", "sequence"),
            (r#"[{"role": "king", "content": "a"}]"#, "\"king\" is no role"),
            (r#"[{"role": "user"}]"#, "content"),
            (r#"[{"role": "user", "content": "a", "more": 1}]"#, "more"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.message.contains(says) && error.message.contains("/load"), "{error}");
        }
        assert!(load("/no/such/chat.json").is_err());
    }

    #[tokio::test]
    async fn an_answer_is_what_came_before_the_end() {
        let finished = Finished {
            index: 0,
            reason: FinishReason::Length,
            tool_calls: false,
            usage: Usage::default(),
            timings: Timings::default(),
            receipt: None,
        };
        let events: Events = Box::pin(stream::iter([delta("a"), delta("b\n"), Ok(Event::Finished(finished))]));
        assert_eq!(print_answer(events, PLAIN, std::future::pending()).await.unwrap(), "ab\n");
    }

    #[tokio::test]
    async fn an_interrupted_answer_stays_as_far_as_it_came() {
        let (interrupt, interrupted) = tokio::sync::oneshot::channel::<()>();
        let mut interrupt = Some(interrupt);
        // The second piece is followed by an interruption; the stream itself would never end.
        let events = stream::iter([delta("a"), delta("b\n")]).chain(stream::once(async move {
            interrupt.take().map(|sender| sender.send(()));
            std::future::pending().await
        }));
        let interrupted = async { interrupted.await.unwrap_or_default() };
        assert_eq!(print_answer(Box::pin(events), PLAIN, interrupted).await.unwrap(), "ab\n");
    }
}
