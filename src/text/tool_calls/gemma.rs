//! Gemma 4's format: `<|tool_call>call:name{key:<|"|>text<|"|>,n:1}<tool_call|>`, objects with bare keys and marked
//! strings, of which JSON is made on the way. FunctionGemma writes the same with other marks.

use super::{
    CallParser, Grammar, Sink, ToolCallFormat,
    json_stream::{escape, quoted},
    sink::CallIds,
};
use crate::text::{
    Tool,
    marks::{Marks, Seen},
};

pub(super) const FORMAT: ToolCallFormat = ToolCallFormat {
    names: &["gemma4"],
    taught_by: &[&["<|tool_call>", "call:"]],
    markers: &["<|tool_call>", "<tool_call|>", "<|\"|>"],
    ids: CallIds::Call,
    is_whole_answer: false,
    parser: |_| Box::new(GemmaCalls::new(&["<|tool_call>call:"], &["<|\"|>"], &["<tool_call|>"])),
    grammar: |tools, grammar| grammar_of(tools, grammar, ["<|tool_call>", "<tool_call|>", "<|\"|>"]),
};

pub(super) const FUNCTION_GEMMA: ToolCallFormat = ToolCallFormat {
    names: &["functiongemma"],
    taught_by: &[&["<start_function_call>"]],
    markers: &["<start_function_call>", "<end_function_call>", "<escape>"],
    ids: CallIds::Call,
    is_whole_answer: false,
    parser: |_| Box::new(GemmaCalls::new(&["<start_function_call>call:"], &["<escape>"], &["<end_function_call>"])),
    grammar: |tools, grammar| grammar_of(tools, grammar, ["<start_function_call>", "<end_function_call>", "<escape>"]),
};

/// The name is enforced, and the shape of the arguments; their schema is not, since they are not JSON.
fn grammar_of(tools: &[Tool], grammar: &Grammar<'_>, [open, close, quote]: [&'static str; 3]) -> String {
    let names = Grammar::any(tools, |tool| Grammar::literal(&tool.name));
    let (open, close, quote) = (grammar.marker(open), grammar.marker(close), grammar.marker(quote));
    let calls = grammar.repeated(&format!("{open} \"call:\" ({names}) g_object {close}"), "");
    format!(
        "{calls}\n\
         g_object: \"{{\" (g_pair (\",\" g_pair)*)? \"}}\"\n\
         g_pair: /[A-Za-z0-9_.-]+/ \":\" g_value\n\
         g_value: g_object | \"[\" (g_value (\",\" g_value)*)? \"]\" | /true|false|null|-?[0-9]+(\\.[0-9]+)?/ \
         | {quote} /[^<]*/ {quote}"
    )
}

/// Most bytes of a name, a key or a bare value.
const MAX_WORD_BYTES: usize = 512;
/// Deepest nesting.
const MAX_DEPTH: usize = 128;

/// What is open.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Open {
    Object,
    Array,
}

enum State {
    Text,
    Name,
    /// Before a key or the end of an object.
    Key,
    /// Before a value, or in a bare one.
    Value,
    /// In a marked string: a key's or a value's.
    Str {
        is_key: bool,
    },
    /// Behind a value.
    Comma,
    /// Behind a call.
    Called,
}

struct GemmaCalls {
    open_mark: &'static [&'static str],
    quote: &'static [&'static str],
    close_mark: &'static [&'static str],
    marks: Marks,
    state: State,
    open: Vec<Open>,
    /// A name, key or bare value as far as it came.
    word: String,
    /// The object or array has an entry.
    entries: bool,
}

impl GemmaCalls {
    fn new(
        open_mark: &'static [&'static str],
        quote: &'static [&'static str],
        close_mark: &'static [&'static str],
    ) -> Self {
        Self {
            open_mark,
            quote,
            close_mark,
            marks: Marks::new(open_mark),
            state: State::Text,
            open: Vec::new(),
            word: String::new(),
            entries: false,
        }
    }

    fn enter(&mut self, state: State, marks: &'static [&'static str]) {
        self.state = state;
        self.marks = Marks::new(marks);
    }

    /// The call is no call any more; what follows is text. Always false: the character is to be read again.
    fn give_up(&mut self, sink: &mut Sink) -> bool {
        if matches!(self.state, State::Name) {
            sink.texts(self.open_mark[0]);
            sink.texts(&std::mem::take(&mut self.word));
        } else {
            sink.break_call();
        }
        self.word.clear();
        self.open.clear();
        self.state = State::Text;
        false
    }

    /// Takes a character that is part of no mark; false where the text begins with it.
    fn plain(&mut self, c: char, sink: &mut Sink) -> bool {
        if self.word.len() > MAX_WORD_BYTES || self.open.len() > MAX_DEPTH {
            return self.give_up(sink);
        }
        match self.state {
            State::Text => sink.text(c),
            State::Called if c.is_whitespace() => {}
            State::Called => {
                self.state = State::Text;
                return false;
            }
            State::Name => return self.name(c, sink),
            State::Str { is_key: true } => self.word.push(c),
            State::Str { is_key: false } => {
                let mut delta = String::new();
                escape(c, &mut delta);
                sink.arguments(&delta);
            }
            State::Key => return self.key(c, sink),
            State::Value => return self.value(c, sink),
            State::Comma => return self.comma(c, sink),
        }
        true
    }

    fn name(&mut self, c: char, sink: &mut Sink) -> bool {
        if c == '{' && !self.word.is_empty() {
            sink.begin_call(&std::mem::take(&mut self.word));
            self.begin(Open::Object, sink);
        } else if c.is_alphanumeric() || "_-.".contains(c) {
            self.word.push(c);
        } else {
            return self.give_up(sink);
        }
        true
    }

    fn begin(&mut self, open: Open, sink: &mut Sink) {
        sink.arguments(if open == Open::Object { "{" } else { "[" });
        self.open.push(open);
        self.entries = false;
        self.enter(if open == Open::Object { State::Key } else { State::Value }, self.quote);
    }

    /// A closing bracket; false where it closes nothing.
    fn end(&mut self, c: char, sink: &mut Sink) -> bool {
        let fits = match self.open.last() {
            Some(Open::Object) => c == '}',
            Some(Open::Array) => c == ']',
            None => false,
        };
        if !fits {
            return false;
        }
        self.open.pop();
        self.entries = true;
        sink.arguments(c.encode_utf8(&mut [0; 4]));
        if self.open.is_empty() {
            sink.end_call();
            self.enter(State::Called, self.close_mark);
        } else {
            self.enter(State::Comma, self.quote);
        }
        true
    }

    fn key(&mut self, c: char, sink: &mut Sink) -> bool {
        match c {
            ':' => {
                let key = std::mem::take(&mut self.word);
                sink.arguments(&format!("{}: ", quoted(key.trim())));
                self.entries = false;
                self.state = State::Value;
            }
            '}' if self.word.trim().is_empty() && !self.entries => {
                self.word.clear();
                self.end(c, sink);
            }
            '{' | '[' | ']' | '}' => return self.give_up(sink),
            c => self.word.push(c),
        }
        true
    }

    fn value(&mut self, c: char, sink: &mut Sink) -> bool {
        let blank = self.word.trim().is_empty();
        match c {
            '{' | '[' if blank => {
                self.word.clear();
                self.begin(if c == '{' { Open::Object } else { Open::Array }, sink);
            }
            ']' if blank && !self.entries => {
                self.word.clear();
                return self.end(c, sink) || self.give_up(sink);
            }
            ',' | '}' | ']' if !blank => {
                let word = std::mem::take(&mut self.word);
                let word = word.trim();
                let json = serde_json::from_str::<serde_json::Value>(word).is_ok();
                sink.arguments(&if json { word.to_owned() } else { quoted(word) });
                self.state = State::Comma;
                return self.comma(c, sink);
            }
            ',' | '}' | ']' | '{' | '[' => return self.give_up(sink),
            c => self.word.push(c),
        }
        true
    }

    fn comma(&mut self, c: char, sink: &mut Sink) -> bool {
        self.entries = true;
        match c {
            ',' => {
                sink.arguments(", ");
                self.state = if self.open.last() == Some(&Open::Object) { State::Key } else { State::Value };
            }
            c if c.is_whitespace() => {}
            c => return self.end(c, sink) || self.give_up(sink),
        }
        true
    }

    fn mark(&mut self, sink: &mut Sink) {
        match self.state {
            State::Text => self.enter(State::Name, &[]),
            State::Called => self.enter(State::Text, self.open_mark),
            State::Key if self.word.trim().is_empty() => {
                self.word.clear();
                self.state = State::Str { is_key: true };
            }
            State::Value if self.word.trim().is_empty() => {
                self.word.clear();
                sink.arguments("\"");
                self.state = State::Str { is_key: false };
            }
            // The key is whole; its colon is still to come.
            State::Str { is_key: true } => self.state = State::Key,
            State::Str { is_key: false } => {
                sink.arguments("\"");
                self.state = State::Comma;
            }
            State::Key | State::Value | State::Comma | State::Name => {
                let mark = self.quote[0];
                mark.chars().for_each(|c| self.word.push(c));
            }
        }
    }
}

impl CallParser for GemmaCalls {
    fn push(&mut self, c: char, sink: &mut Sink) {
        let (seen, text) = self.marks.push(c);
        let mut rest = text.chars();
        while let Some(c) = rest.next() {
            if !self.plain(c, sink) {
                // Other marks count in the text: what the old ones let through or held back is read again.
                let again = format!("{c}{}{}", rest.as_str(), self.marks.finish());
                self.marks = Marks::new(self.open_mark);
                return again.chars().for_each(|c| self.push(c, sink));
            }
        }
        if let Seen::Mark(_) = seen {
            self.mark(sink);
        }
    }

    fn finish(&mut self, cut_off: bool, sink: &mut Sink) {
        let held = self.marks.finish();
        match self.state {
            State::Text => sink.texts(&held),
            State::Name if !cut_off => {
                sink.texts(self.open_mark[0]);
                sink.texts(&std::mem::take(&mut self.word));
            }
            State::Str { is_key: false } if !cut_off => {
                let mut delta = String::new();
                held.chars().for_each(|c| escape(c, &mut delta));
                sink.arguments(&delta);
            }
            _ => {}
        }
    }
}
