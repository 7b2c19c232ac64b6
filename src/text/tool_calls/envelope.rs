//! A call as one JSON object, `{"name": …, "arguments": {…}}`, read one character at a time.

use super::{
    Sink,
    json_stream::{JsonString, JsonValue, StringStep, ValueStep},
};

/// What models call the two fields.
const NAME_KEYS: [&str; 3] = ["name", "tool_name", "function"];
const ARGUMENTS_KEYS: [&str; 2] = ["arguments", "parameters"];
/// Most bytes that wait for the name, where the arguments come first.
const MAX_HELD_BYTES: usize = 1 << 20;

/// What a character brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum EnvelopeStep {
    /// The object goes on.
    More,
    /// It ended with this character, and was a call.
    Call,
    /// This is no call. Where one had begun, it is broken off.
    NoCall,
}

enum State {
    /// Before a key, or `}` where the object may end.
    Key {
        may_end: bool,
    },
    InKey(JsonString),
    Colon,
    Value,
    Name(JsonString),
    /// The arguments as they stand.
    Arguments(JsonValue),
    /// The arguments as JSON inside a string.
    QuotedArguments(JsonString),
    /// A value of no interest.
    Other(JsonValue),
    /// Behind a value.
    Comma,
}

/// Reads the object, from behind its `{`.
pub(super) struct Envelope {
    state: State,
    key: String,
    name: String,
    /// The name is whole.
    named: bool,
    /// Arguments that wait for the name.
    held: String,
    /// There were arguments, and they are whole.
    has_arguments: bool,
    /// The call was announced.
    begun: bool,
    /// `{"function": {…}}`: objects around the one with the name.
    nested: usize,
}

impl Envelope {
    pub(super) fn new() -> Self {
        Self {
            state: State::Key { may_end: true },
            key: String::new(),
            name: String::new(),
            named: false,
            held: String::new(),
            has_arguments: false,
            begun: false,
            nested: 0,
        }
    }

    /// Whether the call was announced: then what was read is no text any more.
    pub(super) fn has_begun(&self) -> bool {
        self.begun
    }

    /// Takes a character. `known` says whether a name is one of a tool; where the object stands unmarked in the text,
    /// only those are calls, and only with arguments.
    pub(super) fn push(&mut self, c: char, known: Option<&dyn Fn(&str) -> bool>, sink: &mut Sink) -> EnvelopeStep {
        let step = self.step(c, known, sink);
        if step == EnvelopeStep::NoCall && self.begun {
            sink.break_call();
        }
        step
    }

    fn step(&mut self, c: char, known: Option<&dyn Fn(&str) -> bool>, sink: &mut Sink) -> EnvelopeStep {
        use EnvelopeStep::{More, NoCall};
        match &mut self.state {
            State::Key { .. } | State::Colon | State::Value | State::Comma if c.is_whitespace() => More,
            State::Key { may_end } => match c {
                '"' => {
                    self.key.clear();
                    self.become_state(State::InKey(JsonString::default()))
                }
                '}' if *may_end => self.end(known, sink),
                _ => NoCall,
            },
            State::InKey(string) => match string.push(c) {
                StringStep::Char(c) => {
                    self.key.push(c);
                    if self.key.len() > MAX_HELD_BYTES { NoCall } else { More }
                }
                StringStep::More => More,
                StringStep::End => self.become_state(State::Colon),
                StringStep::Bad => NoCall,
            },
            State::Colon if c == ':' => self.become_state(State::Value),
            State::Colon => NoCall,
            State::Value => self.value(c, known, sink),
            State::Name(string) => match string.push(c) {
                StringStep::Char(c) => {
                    self.name.push(c);
                    if self.name.len() > MAX_HELD_BYTES { NoCall } else { More }
                }
                StringStep::More => More,
                StringStep::Bad => NoCall,
                StringStep::End => {
                    let fits = !self.name.is_empty() && known.is_none_or(|known| known(&self.name));
                    self.named = fits;
                    if fits { self.become_state(State::Comma) } else { NoCall }
                }
            },
            State::Arguments(value) => {
                let mut delta = String::new();
                match value.push(c, &mut delta) {
                    ValueStep::Bad => NoCall,
                    ValueStep::EndBefore => {
                        self.arguments_end();
                        self.step(c, known, sink)
                    }
                    step => {
                        if step == ValueStep::End {
                            self.arguments_end();
                        }
                        self.arguments(&delta, sink)
                    }
                }
            }
            State::QuotedArguments(string) => match string.push(c) {
                StringStep::Char(c) => self.arguments(c.encode_utf8(&mut [0; 4]), sink),
                StringStep::More => More,
                StringStep::End => {
                    self.arguments_end();
                    More
                }
                StringStep::Bad => NoCall,
            },
            State::Other(value) => match value.push(c, &mut String::new()) {
                ValueStep::More => More,
                ValueStep::End => self.become_state(State::Comma),
                ValueStep::EndBefore => {
                    self.state = State::Comma;
                    self.step(c, known, sink)
                }
                ValueStep::Bad => NoCall,
            },
            State::Comma => match c {
                ',' => self.become_state(State::Key { may_end: false }),
                '}' => self.end(known, sink),
                _ => NoCall,
            },
        }
    }

    fn become_state(&mut self, state: State) -> EnvelopeStep {
        self.state = state;
        EnvelopeStep::More
    }

    /// The first character of a value.
    fn value(&mut self, c: char, known: Option<&dyn Fn(&str) -> bool>, sink: &mut Sink) -> EnvelopeStep {
        let key = self.key.as_str();
        if NAME_KEYS.contains(&key) && !self.named && c == '"' {
            return self.become_state(State::Name(JsonString::default()));
        }
        if key == "function" && !self.named && c == '{' {
            self.nested += 1;
            return self.become_state(State::Key { may_end: false });
        }
        if ARGUMENTS_KEYS.contains(&key) && !self.has_arguments {
            if c == '"' {
                return self.become_state(State::QuotedArguments(JsonString::default()));
            }
            if c == '{' {
                self.state = State::Arguments(JsonValue::default());
                return self.step(c, known, sink);
            }
        }
        self.state = State::Other(JsonValue::default());
        self.step(c, known, sink)
    }

    fn arguments(&mut self, delta: &str, sink: &mut Sink) -> EnvelopeStep {
        if self.named {
            self.begin(sink);
            sink.arguments(delta);
        } else {
            self.held.push_str(delta);
        }
        if self.held.len() > MAX_HELD_BYTES { EnvelopeStep::NoCall } else { EnvelopeStep::More }
    }

    fn arguments_end(&mut self) {
        self.has_arguments = true;
        self.state = State::Comma;
    }

    fn begin(&mut self, sink: &mut Sink) {
        if !self.begun {
            self.begun = true;
            sink.begin_call(&self.name);
            sink.arguments(&std::mem::take(&mut self.held));
        }
    }

    /// A closing brace.
    fn end(&mut self, known: Option<&dyn Fn(&str) -> bool>, sink: &mut Sink) -> EnvelopeStep {
        if self.nested > 0 {
            self.nested -= 1;
            return self.become_state(State::Comma);
        }
        if !self.named || (known.is_some() && !self.has_arguments) {
            return EnvelopeStep::NoCall;
        }
        self.begin(sink);
        if !self.has_arguments {
            sink.arguments("{}");
        }
        sink.end_call();
        EnvelopeStep::Call
    }
}
