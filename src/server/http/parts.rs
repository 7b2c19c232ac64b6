//! The parts of an answer in order, as its pieces come or at once: what the model thought, what it said, and the tools that
//! it called. Each face writes them in its own shape.

use crate::text::{ChatMessage, Piece, Role, ToolCall};

/// One part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// What the model thought before it went on.
    Reasoning(String),
    /// Text for the reader.
    Text(String),
    /// A call of a tool.
    Call(ToolCall),
}

/// Which of them a part is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Reasoning,
    Text,
    Call,
}

/// What becomes of the part with this index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) index: usize,
    pub(crate) what: What,
}

/// See [`Change`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum What {
    /// It begins, with nothing in it: no text, no arguments.
    Opened(Part),
    /// It goes on with more text, or more of a call's arguments.
    Grew(Kind, String),
    /// It has ended, and this is all of it.
    Closed(Part),
}

impl Part {
    pub(crate) fn kind(&self) -> Kind {
        match self {
            Self::Reasoning(_) => Kind::Reasoning,
            Self::Text(_) => Kind::Text,
            Self::Call(_) => Kind::Call,
        }
    }

    fn text_mut(&mut self) -> &mut String {
        match self {
            Self::Reasoning(text) | Self::Text(text) => text,
            Self::Call(call) => &mut call.arguments,
        }
    }
}

/// Puts the parts of one answer together.
#[derive(Debug, Default)]
pub(crate) struct Parts {
    open: Option<Part>,
    /// Of the part that is open, or of the next one.
    index: usize,
}

impl Parts {
    /// What a piece changes.
    pub(crate) fn take(&mut self, piece: Piece) -> Vec<Change> {
        let mut changes = Vec::new();
        let (begun, more) = match piece {
            Piece::Text(more) => (Some(Part::Text(String::new())), more),
            Piece::Reasoning(more) => (Some(Part::Reasoning(String::new())), more),
            Piece::ToolCall { id, name, .. } => {
                let begun = Part::Call(ToolCall { id, name, arguments: String::new() });
                changes.extend(self.end());
                changes.push(self.begin(begun));
                return changes;
            }
            // Of the call that is open: the next begins when it has ended.
            Piece::Arguments { delta, .. } => (None, delta),
        };
        if more.is_empty() {
            return changes;
        }
        if let Some(begun) = begun.filter(|begun| self.open.as_ref().map(Part::kind) != Some(begun.kind())) {
            changes.extend(self.end());
            changes.push(self.begin(begun));
        }
        if let Some(open) = &mut self.open {
            open.text_mut().push_str(&more);
            changes.push(Change { index: self.index, what: What::Grew(open.kind(), more) });
        }
        changes
    }

    fn begin(&mut self, part: Part) -> Change {
        self.open = Some(part.clone());
        Change { index: self.index, what: What::Opened(part) }
    }

    /// The end of the part that is open, if one is.
    pub(crate) fn end(&mut self) -> Option<Change> {
        let change = Change { index: self.index, what: What::Closed(self.open.take()?) };
        self.index += 1;
        Some(change)
    }
}

/// The parts of an answer that is whole.
pub(crate) fn parts(pieces: Vec<Piece>) -> Vec<Part> {
    let mut whole = Parts::default();
    let mut changes: Vec<_> = pieces.into_iter().flat_map(|piece| whole.take(piece)).collect();
    changes.extend(whole.end());
    let closed = |change: Change| match change.what {
        What::Closed(part) => Some(part),
        What::Opened(_) | What::Grew(..) => None,
    };
    changes.into_iter().filter_map(closed).collect()
}

/// The answer as a message of the conversation that goes on from it.
pub(crate) fn turn(parts: &[Part]) -> ChatMessage {
    let mut turn = ChatMessage::new(Role::Assistant, "");
    for part in parts {
        match part {
            Part::Reasoning(text) => turn.reasoning.get_or_insert_default().push_str(text),
            Part::Text(text) => turn.content.push_str(text),
            Part::Call(call) => turn.tool_calls.push(call.clone()),
        }
    }
    turn
}

/// Counts the tokens that went into reasoning. A token counts to what it brings; one that brings nothing yet, because a mark is
/// not whole or a character is not, to what comes next.
#[derive(Debug, Default)]
pub(crate) struct ReasoningTokens {
    count: u32,
    pending: u32,
}

impl ReasoningTokens {
    /// So many tokens brought these pieces.
    pub(crate) fn take(&mut self, tokens: usize, pieces: &[Piece]) {
        self.pending = self.pending.saturating_add(u32::try_from(tokens).unwrap_or(u32::MAX));
        if let Some(first) = pieces.first() {
            let tokens = std::mem::take(&mut self.pending);
            if matches!(first, Piece::Reasoning(_)) {
                self.count = self.count.saturating_add(tokens);
            }
        }
    }

    /// How many there were so far.
    pub(crate) fn count(&self) -> u32 {
        self.count
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// An answer with something of everything: two thoughts, no text and some, and calls in two pieces, in none and in one.
    pub(crate) fn pieces() -> Vec<Piece> {
        let call = |index, name: &str| Piece::ToolCall { index, id: format!("call_{index}"), name: name.into() };
        let arguments = |index, delta: &str| Piece::Arguments { index, delta: delta.into() };
        vec![
            Piece::Reasoning("first ".into()),
            Piece::Reasoning("this".into()),
            Piece::Text(String::new()),
            Piece::Text("well".into()),
            call(0, "add"),
            arguments(0, "{\"a\":"),
            arguments(0, " 1}"),
            call(1, "stop"),
            call(2, "go"),
            arguments(2, "{}"),
        ]
    }

    fn whole() -> Vec<Part> {
        let call = |k: usize, name: &str, arguments: &str| {
            Part::Call(ToolCall { id: format!("call_{k}"), name: name.into(), arguments: arguments.into() })
        };
        vec![
            Part::Reasoning("first this".into()),
            Part::Text("well".into()),
            call(0, "add", "{\"a\": 1}"),
            call(1, "stop", ""),
            call(2, "go", "{}"),
        ]
    }

    #[test]
    fn neighbours_of_one_kind_are_one_part_and_each_call_is_its_own() {
        assert_eq!(parts(pieces()), whole());
        let turn = turn(&whole());
        assert_eq!((turn.reasoning.as_deref(), turn.content.as_str()), (Some("first this"), "well"));
        assert_eq!(turn.tool_calls.len(), 3);
        assert_eq!(parts(Vec::new()), []);
    }

    #[test]
    fn a_part_opens_grows_and_closes_before_the_next() {
        let mut growing = Parts::default();
        let mut changes: Vec<_> = pieces().into_iter().flat_map(|piece| growing.take(piece)).collect();
        changes.extend(growing.end());
        assert_eq!(growing.end(), None, "nothing is left open");
        for (index, part) in whole().into_iter().enumerate() {
            let own: Vec<_> =
                changes.iter().filter(|change| change.index == index).map(|change| &change.what).collect();
            assert!(matches!(own[0], What::Opened(begun) if begun.kind() == part.kind()), "{own:?}");
            assert_eq!(own[own.len() - 1], &What::Closed(part));
            assert!(own[1..own.len() - 1].iter().all(|what| matches!(what, What::Grew(..))), "{own:?}");
        }
        assert!(changes.is_sorted_by_key(|change| change.index));
    }

    #[test]
    fn tokens_count_to_what_they_bring() {
        let mut counted = ReasoningTokens::default();
        // The mark, a word, a word in two tokens, the mark of the end, the answer.
        for (tokens, pieces) in [
            (1, vec![]),
            (1, vec![Piece::Reasoning("a".into())]),
            (1, vec![]),
            (1, vec![Piece::Reasoning("b".into())]),
            (1, vec![]),
            (2, vec![Piece::Text("c".into())]),
        ] {
            counted.take(tokens, &pieces);
        }
        assert_eq!(counted.count(), 4);
    }
}
