//! `candlewick chat`: a conversation in the terminal, streaming. Ctrl-C ends the answer under way, not the program.

use std::io::{self, BufRead, IsTerminal, Write};

use clap::Args;
use futures::StreamExt;
use rustyline::{DefaultEditor, error::ReadlineError};
use tokio::runtime::Runtime;

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
    text::{ChatMessage, Role},
};

const HELP: &str = "\
/help   this list
/reset  forget the conversation
/quit   leave (Ctrl-D does too)
Ctrl-C  end the answer under way";

/// What `chat` takes.
#[derive(Args, Clone, Debug)]
pub(super) struct ChatArgs {
    #[command(flatten)]
    backend: BackendArgs,
    /// Instructions to the model, before the conversation.
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    #[command(flatten)]
    sampling: SamplingArgs,
}

pub(super) fn run(args: ChatArgs) -> Result<(), Stop> {
    let runtime = runtime()?;
    let backend = runtime.block_on(Backend::open(&args.backend))?;
    if !backend.has_tokenizer() {
        return Err(Error::invalid("MODEL", "has no tokenizer, so it cannot talk; generate takes token ids").into());
    }
    let mut lines = Lines::open()?;
    if lines.interactive() {
        say(format_args!("Talking to {}; /help lists commands.", backend.model_name()));
    }
    let mut chat = Chat { messages: opening(args.system.as_deref()), args, backend, runtime };
    while let Some(line) = lines.next()? {
        match Input::of(&line) {
            Input::Nothing => {}
            Input::Say(text) => chat.turn(text, lines.interactive())?,
            Input::Help => writeln!(io::stdout(), "{HELP}")?,
            Input::Reset => chat.messages = opening(chat.args.system.as_deref()),
            Input::Quit => break,
            Input::Unknown(command) => say(format_args!("There is no {command}; /help lists commands.")),
        }
    }
    Ok(())
}

/// What a line asks for.
#[derive(Debug, PartialEq, Eq)]
enum Input<'a> {
    Nothing,
    Say(&'a str),
    Help,
    Reset,
    Quit,
    Unknown(&'a str),
}

impl<'a> Input<'a> {
    fn of(line: &'a str) -> Self {
        match line.trim() {
            "" => Self::Nothing,
            "/help" => Self::Help,
            "/reset" => Self::Reset,
            "/quit" | "/exit" => Self::Quit,
            // A path or a date is said, not commanded.
            command if command.starts_with('/') && command[1..].bytes().all(|b| b.is_ascii_alphabetic()) => {
                Self::Unknown(command)
            }
            text => Self::Say(text),
        }
    }
}

fn opening(system: Option<&str>) -> Vec<ChatMessage> {
    system.map(|text| message(Role::System, text)).into_iter().collect()
}

fn message(role: Role, content: &str) -> ChatMessage {
    ChatMessage::new(role, content)
}

/// The conversation so far, and who answers.
struct Chat {
    messages: Vec<ChatMessage>,
    args: ChatArgs,
    backend: Backend,
    runtime: Runtime,
}

impl Chat {
    /// Says something and prints the answer. A refused turn is taken back; an interrupted answer stays as far as it
    /// came.
    fn turn(&mut self, text: &str, interactive: bool) -> Result<(), Stop> {
        self.messages.push(message(Role::User, text));
        let prompt = Prompt::Chat(self.messages.clone().into());
        let answer = self.runtime.block_on(async {
            let events = self.backend.generate(prompt, &self.args.sampling).await?;
            if interactive {
                // Only here: whoever listens for Ctrl-C once is never again ended by it.
                let interrupted = async { tokio::signal::ctrl_c().await.unwrap_or_default() };
                print_answer(events, interrupted).await
            } else {
                print_answer(events, std::future::pending()).await
            }
        });
        match answer {
            Ok(answer) => self.messages.push(message(Role::Assistant, &answer)),
            Err(Stop::Error(error)) if interactive => {
                say(format_args!("error: {error}"));
                self.messages.pop();
            }
            Err(stop) => return Err(stop),
        }
        Ok(())
    }
}

/// Prints an answer as it comes and returns it, whole or as far as it came before `interrupted`.
async fn print_answer(mut events: Events, interrupted: impl Future<Output = ()>) -> Result<String, Stop> {
    let mut interrupted = std::pin::pin!(interrupted);
    let mut answer = String::new();
    let outcome = loop {
        let event = tokio::select! {
            biased;
            () = &mut interrupted => break Ok(()),
            event = events.next() => event,
        };
        match event {
            Some(Ok(Event::Delta(delta))) => {
                let mut out = io::stdout().lock();
                out.write_all(delta.text.as_bytes())?;
                out.flush()?;
                answer.push_str(&delta.text);
            }
            Some(Ok(Event::Started(_) | Event::Prompt(_))) => {}
            Some(Ok(Event::Finished(_))) | None => break Ok(()),
            Some(Err(error)) => break Err(error),
        }
    };
    // Whatever comes next begins on a line of its own.
    if !answer.is_empty() && !answer.ends_with('\n') {
        writeln!(io::stdout())?;
    }
    outcome?;
    Ok(answer)
}

/// Lines from a person with an editor, or plainly from a pipe.
enum Lines {
    Editor(Box<DefaultEditor>),
    Pipe,
}

impl Lines {
    fn open() -> Result<Self> {
        if !(io::stdin().is_terminal() && io::stdout().is_terminal()) {
            return Ok(Self::Pipe);
        }
        let editor = DefaultEditor::new().map_err(terminal_error)?;
        Ok(Self::Editor(Box::new(editor)))
    }

    fn interactive(&self) -> bool {
        matches!(self, Self::Editor(_))
    }

    /// The next line, `None` at the end of input.
    fn next(&mut self) -> Result<Option<String>, Stop> {
        match self {
            Self::Pipe => {
                let mut line = String::new();
                Ok((io::stdin().lock().read_line(&mut line)? > 0).then_some(line))
            }
            Self::Editor(editor) => loop {
                match editor.readline("> ") {
                    Ok(line) => {
                        editor.add_history_entry(line.as_str()).map_err(terminal_error)?;
                        return Ok(Some(line));
                    }
                    Err(ReadlineError::Interrupted) => say("/quit or Ctrl-D leaves."),
                    Err(ReadlineError::Eof) => return Ok(None),
                    Err(error) => return Err(terminal_error(error).into()),
                }
            },
        }
    }
}

fn terminal_error(error: ReadlineError) -> Error {
    Error::internal(format!("the terminal: {error}"))
}

#[cfg(test)]
mod tests {
    use futures::stream;

    use super::*;
    use crate::{
        engine::{Delta, Finished, Timings},
        params::{FinishReason, Usage},
    };

    fn delta(text: &str) -> Result<Event> {
        Ok(Event::Delta(Delta {
            index: 0,
            text: text.into(),
            pieces: Vec::new(),
            tokens: Vec::new(),
            usage: Usage::default(),
        }))
    }

    #[test]
    fn lines_are_commands_only_where_they_look_like_one() {
        for (line, input) in [
            ("", Input::Nothing),
            ("  \n", Input::Nothing),
            (" /help ", Input::Help),
            ("/reset", Input::Reset),
            ("/quit", Input::Quit),
            ("/exit", Input::Quit),
            ("/frob", Input::Unknown("/frob")),
            ("/etc/hosts", Input::Say("/etc/hosts")),
            ("hello /quit\n", Input::Say("hello /quit")),
        ] {
            assert_eq!(Input::of(line), input, "{line:?}");
        }
    }

    #[test]
    fn a_conversation_opens_with_its_instructions() {
        assert!(opening(None).is_empty());
        assert_eq!(opening(Some("Be brief.")), [message(Role::System, "Be brief.")]);
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
        assert_eq!(print_answer(events, std::future::pending()).await.unwrap(), "ab\n");
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
        assert_eq!(print_answer(Box::pin(events), interrupted).await.unwrap(), "ab\n");
    }
}
