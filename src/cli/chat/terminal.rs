//! Where lines come from: a person with an editor, its history and its completions, or a pipe.

use std::{
    borrow::Cow,
    io::{self, BufRead, IsTerminal, Read},
    path::Path,
};

use rustyline::{
    Config, Context, Editor, Helper, completion::Completer, error::ReadlineError, highlight::Highlighter, hint::Hinter,
    history::DefaultHistory, validate::Validator,
};

use super::commands::COMMANDS;
use crate::{
    cli::{Stop, say},
    error::{Error, Result},
    text::MAX_TEXT_BYTES,
};

/// Lines that the history keeps.
const HISTORY_LINES: usize = 1000;
/// Begins and ends a text of many lines.
const FENCE: &str = "\"\"\"";

/// Completes commands and colours the prompt.
pub(super) struct Commands;

impl Completer for Commands {
    type Candidate = String;

    fn complete(&self, line: &str, pos: usize, _: &Context<'_>) -> rustyline::Result<(usize, Vec<String>)> {
        let begun = line.get(..pos).filter(|begun| begun.starts_with('/'));
        let names = COMMANDS.iter().map(|row| row.1);
        Ok((0, names.filter(|name| begun.is_some_and(|begun| name.starts_with(begun))).map(str::to_owned).collect()))
    }
}

impl Highlighter for Commands {
    fn highlight_prompt<'b, 's: 'b, 'p: 'b>(&'s self, prompt: &'p str, _: bool) -> Cow<'b, str> {
        Cow::Owned(console::style(prompt).green().bold().to_string())
    }
}

impl Hinter for Commands {
    type Hint = String;
}

impl Validator for Commands {}

impl Helper for Commands {}

/// Lines from a person with an editor, or plainly from a pipe.
pub(super) enum Lines {
    Editor(Box<Editor<Commands, DefaultHistory>>),
    Pipe,
}

impl Lines {
    /// With the lines that `history` has, where it is there.
    pub(super) fn open(history: Option<&Path>) -> Result<Self> {
        if !(io::stdin().is_terminal() && io::stdout().is_terminal()) {
            return Ok(Self::Pipe);
        }
        let config = Config::builder().max_history_size(HISTORY_LINES).map_err(terminal_error)?.build();
        let mut editor = Editor::with_config(config).map_err(terminal_error)?;
        editor.set_helper(Some(Commands));
        if let Some(path) = history.filter(|path| path.exists()) {
            editor.load_history(path).map_err(|error| history_error(path, &error))?;
        }
        Ok(Self::Editor(Box::new(editor)))
    }

    pub(super) fn interactive(&self) -> bool {
        matches!(self, Self::Editor(_))
    }

    /// Keeps what was typed for the next time.
    ///
    /// # Errors
    /// Where the file cannot be written.
    pub(super) fn save_history(&mut self, path: &Path) -> Result<()> {
        match self {
            Self::Editor(editor) => editor.save_history(path).map_err(|error| history_error(path, &error)),
            Self::Pipe => Ok(()),
        }
    }

    /// The next line, or all the lines of one text; `None` at the end of input.
    ///
    /// # Errors
    /// Where a text is longer than any that is served, or the terminal fails.
    pub(super) fn next(&mut self) -> Result<Option<String>, Stop> {
        let mut text = Text::default();
        while let Some(line) = self.line(if text.begun { ". " } else { "> " })? {
            match line {
                // Ctrl-C takes back what was typed so far.
                Line::Interrupted if text.begun => text = Text::default(),
                Line::Interrupted => say("/quit or Ctrl-D leaves."),
                Line::Typed(line) if text.take(&line)? => break,
                Line::Typed(_) => {}
            }
        }
        if !text.begun {
            return Ok(None);
        }
        if let (Self::Editor(editor), false) = (&mut *self, text.said.trim().is_empty()) {
            editor.add_history_entry(text.said.as_str()).map_err(terminal_error)?;
        }
        Ok(Some(text.said))
    }

    fn line(&mut self, prompt: &str) -> Result<Option<Line>, Stop> {
        match self {
            Self::Pipe => {
                let mut line = String::new();
                let taken = io::stdin().lock().take(MAX_TEXT_BYTES as u64 + 1).read_line(&mut line)?;
                Ok((taken > 0).then_some(Line::Typed(line)))
            }
            Self::Editor(editor) => match editor.readline(prompt) {
                Ok(line) => Ok(Some(Line::Typed(line))),
                Err(ReadlineError::Interrupted) => Ok(Some(Line::Interrupted)),
                Err(ReadlineError::Eof) => Ok(None),
                Err(error) => Err(terminal_error(error).into()),
            },
        }
    }
}

enum Line {
    Typed(String),
    Interrupted,
}

/// A text under way.
#[derive(Debug, Default)]
struct Text {
    said: String,
    begun: bool,
    /// Between two fences.
    fenced: bool,
}

impl Text {
    /// Takes a line in; whether the text is whole.
    fn take(&mut self, line: &str) -> Result<bool> {
        let line = line.strip_suffix('\n').unwrap_or(line);
        let line = line.strip_suffix('\r').unwrap_or(line);
        if self.said.len() + line.len() >= MAX_TEXT_BYTES {
            return Err(Error::invalid("standard input", format!("a text is longer than {MAX_TEXT_BYTES} bytes")));
        }
        let opens = !self.begun && line.trim_start().starts_with(FENCE);
        let line = if opens { &line.trim_start()[FENCE.len()..] } else { line };
        if std::mem::replace(&mut self.begun, true) && !(self.fenced && self.said.is_empty()) {
            self.said.push('\n');
        }
        self.fenced |= opens;
        if self.fenced {
            let last = line.trim_end().strip_suffix(FENCE);
            self.said.push_str(last.unwrap_or(line));
            return Ok(last.is_some());
        }
        let more = line.strip_suffix('\\');
        self.said.push_str(more.unwrap_or(line));
        Ok(more.is_none())
    }
}

fn terminal_error(error: ReadlineError) -> Error {
    Error::internal(format!("the terminal: {error}"))
}

fn history_error(path: &Path, error: &ReadlineError) -> Error {
    Error::invalid("--history-file", format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(lines: &[&str]) -> (String, bool) {
        let (mut text, mut whole) = (Text::default(), false);
        for line in lines {
            assert!(!whole, "{line:?} comes after the end");
            whole = text.take(line).unwrap();
        }
        (text.said, whole)
    }

    #[test]
    fn a_text_goes_on_after_a_backslash_and_between_fences() {
        for (lines, expected, whole) in [
            (&["hello\n"][..], "hello", true),
            (&["a\\\n", "b\\\r\n", "c"], "a\nb\nc", true),
            (&["a\\"], "a", false),
            (&["\"\"\"\n", "a\n", "\n", "b\"\"\"\n"], "a\n\nb", true),
            (&["\"\"\"a", "b", "\"\"\""], "a\nb\n", true),
            (&["\"\"\"a\"\"\""], "a", true),
            (&["\"\"\"", "a"], "a", false),
            (&["a \"\"\""], "a \"\"\"", true),
        ] {
            assert_eq!(said(lines), (expected.to_owned(), whole), "{lines:?}");
        }
    }

    #[test]
    fn a_text_has_a_bound() {
        let mut text = Text::default();
        let line = "x".repeat(MAX_TEXT_BYTES / 4) + "\\";
        let error = (0..5).find_map(|_| text.take(&line).err()).unwrap();
        assert!(error.message.contains("longer than"), "{error}");
    }
}
