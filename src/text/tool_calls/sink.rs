//! [`Sink`]: where parsers put what they find; it numbers calls, names them, and joins neighbours.

use std::hash::{DefaultHasher, Hasher};

use crate::text::Piece;

/// How a model expects the ids of calls to look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum CallIds {
    /// `call_` and 24 hexadecimal digits, as OpenAI's.
    #[default]
    Call,
    /// Nine letters and digits: Mistral's templates take nothing else.
    Nine,
    /// `functions.name:0`, which Kimi's templates write back.
    Numbered,
}

/// Spaces held back in case a call follows, in bytes.
const MAX_SPACES: usize = 256;

/// Collects the pieces of an answer.
pub(crate) struct Sink {
    pieces: Vec<Piece>,
    ids: CallIds,
    seed: u64,
    /// Calls that have begun.
    calls: usize,
    /// The last of them has not ended.
    open: bool,
    /// A call broke off in the middle.
    broken: bool,
    /// The answer may hold one call: those behind it are left out.
    first_only: bool,
    /// The call that has begun is one of those.
    left_out: bool,
    /// Spaces at the end of text or reasoning, which a call or the end of the reasoning makes void.
    spaces: String,
    in_reasoning: bool,
}

impl Sink {
    pub(crate) fn new(ids: CallIds, seed: u64) -> Self {
        Self {
            pieces: Vec::new(),
            ids,
            seed,
            calls: 0,
            open: false,
            broken: false,
            first_only: false,
            left_out: false,
            spaces: String::new(),
            in_reasoning: false,
        }
    }

    /// Leaves out all calls but the first.
    pub(crate) fn take_first_call_only(&mut self) {
        self.first_only = true;
    }

    /// A character of text.
    pub(crate) fn text(&mut self, c: char) {
        if self.in_reasoning {
            self.end_reasoning();
        }
        if self.hold(c) {
            return;
        }
        let mut said = std::mem::take(&mut self.spaces);
        said.push(c);
        match self.pieces.last_mut() {
            Some(Piece::Text(text)) => text.push_str(&said),
            _ => self.pieces.push(Piece::Text(said)),
        }
    }

    /// Text of more than one character.
    pub(crate) fn texts(&mut self, text: &str) {
        text.chars().for_each(|c| self.text(c));
    }

    /// A character of reasoning.
    pub(crate) fn reasoning(&mut self, c: char) {
        if !self.in_reasoning {
            self.spaces.clear();
            self.in_reasoning = true;
        }
        if self.hold(c) {
            return;
        }
        let mut said = std::mem::take(&mut self.spaces);
        said.push(c);
        match self.pieces.last_mut() {
            Some(Piece::Reasoning(text)) => text.push_str(&said),
            _ => self.pieces.push(Piece::Reasoning(said)),
        }
    }

    /// The reasoning ends; spaces at its end are left out.
    pub(crate) fn end_reasoning(&mut self) {
        self.spaces.clear();
        self.in_reasoning = false;
    }

    /// Keeps a space back, as far as there is room.
    fn hold(&mut self, c: char) -> bool {
        let held = c.is_whitespace() && self.spaces.len() < MAX_SPACES;
        if held {
            self.spaces.push(c);
        }
        held
    }

    /// A call begins; spaces before it are left out.
    pub(crate) fn begin_call(&mut self, name: &str) {
        self.end_reasoning();
        self.broken |= self.open;
        self.left_out = self.first_only && self.calls > 0;
        if self.left_out {
            self.open = false;
            return;
        }
        let index = self.calls;
        self.calls += 1;
        self.open = true;
        self.pieces.push(Piece::ToolCall { index, id: self.id(index, name), name: name.to_owned() });
    }

    /// More of its arguments.
    pub(crate) fn arguments(&mut self, delta: &str) {
        if delta.is_empty() || self.left_out {
            return;
        }
        match self.pieces.last_mut() {
            Some(Piece::Arguments { delta: text, .. }) => text.push_str(delta),
            _ => self.pieces.push(Piece::Arguments { index: self.calls.saturating_sub(1), delta: delta.to_owned() }),
        }
    }

    /// The call is whole.
    pub(crate) fn end_call(&mut self) {
        self.open = false;
    }

    /// The call that is open will not become whole. One that is left out is never open.
    pub(crate) fn break_call(&mut self) {
        self.broken |= self.open;
        self.open = false;
    }

    /// Whether the answer has calls, and each is whole.
    pub(crate) fn all_calls_whole(&self) -> bool {
        self.calls > 0 && !self.open && !self.broken
    }

    /// The end: spaces behind text stay, spaces behind calls and reasoning go.
    pub(crate) fn finish(&mut self) {
        let spaces = std::mem::take(&mut self.spaces);
        if self.in_reasoning || self.calls > 0 || spaces.is_empty() {
            return;
        }
        match self.pieces.last_mut() {
            Some(Piece::Text(text)) => text.push_str(&spaces),
            _ => self.pieces.push(Piece::Text(spaces)),
        }
    }

    /// What came since the last time.
    pub(crate) fn take(&mut self) -> Vec<Piece> {
        std::mem::take(&mut self.pieces)
    }

    fn id(&self, index: usize, name: &str) -> String {
        let draw = |k: u64| {
            let mut hasher = DefaultHasher::new();
            [self.seed, index as u64, k].iter().for_each(|&n| hasher.write_u64(n));
            hasher.finish()
        };
        match self.ids {
            CallIds::Call => format!("call_{:016x}{:08x}", draw(0), draw(1) as u32),
            CallIds::Nine => {
                let letters = b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
                (0..9).map(|k| char::from(letters[(draw(k) % letters.len() as u64) as usize])).collect()
            }
            CallIds::Numbered => format!("functions.{name}:{index}"),
        }
    }
}
