//! An event of a session as its ring keeps it: a session may be idle for long, and most of what it keeps are tokens.

use crate::proto::candlewick::v1::{self as wire, session_response::Event};

/// As little as will do. A message has room for all that an event could be, and that is forty times a token.
#[derive(Clone, Debug)]
pub(super) enum Kept {
    /// A delta that says one token and nothing else of it.
    Token { id: u32, text: Box<str> },
    /// Whatever else.
    Event(Box<Event>),
}

impl From<Event> for Kept {
    fn from(event: Event) -> Self {
        match event {
            Event::Delta(wire::Delta { text, token_ids, logprobs, index: 0, reasoning, tool_calls })
                if token_ids.len() == 1 && logprobs.is_empty() && reasoning.is_empty() && tool_calls.is_empty() =>
            {
                Self::Token { id: token_ids.first().copied().unwrap_or_default(), text: text.into() }
            }
            event => Self::Event(Box::new(event)),
        }
    }
}

impl From<Kept> for Event {
    fn from(kept: Kept) -> Self {
        match kept {
            Kept::Token { id, text } => {
                Self::Delta(wire::Delta { text: text.into(), token_ids: vec![id], ..wire::Delta::default() })
            }
            Kept::Event(event) => *event,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_back_as_they_were() {
        let token = || wire::Delta { text: "é".into(), token_ids: vec![7], ..wire::Delta::default() };
        let deltas = [
            token(),
            wire::Delta { text: String::new(), ..token() },
            wire::Delta { token_ids: vec![7, 8], ..token() },
            wire::Delta { token_ids: Vec::new(), ..token() },
            wire::Delta { index: 1, ..token() },
            wire::Delta { reasoning: "hm".into(), ..token() },
            wire::Delta { logprobs: vec![wire::PositionLogprobs::default()], ..token() },
            wire::Delta { tool_calls: vec![wire::ToolCallDelta::default()], ..token() },
        ];
        let others = [Event::Rewound(wire::Rewound { turn_index: 3 }), Event::TurnDone(wire::TurnDone::default())];
        for event in deltas.map(Event::Delta).into_iter().chain(others) {
            assert_eq!(Event::from(Kept::from(event.clone())), event);
        }
    }

    #[test]
    fn a_token_is_small() {
        assert!(size_of::<Kept>() <= 24, "{}", size_of::<Kept>());
        assert!(matches!(
            Kept::from(Event::Delta(wire::Delta { token_ids: vec![1], ..wire::Delta::default() })),
            Kept::Token { id: 1, .. }
        ));
    }
}
