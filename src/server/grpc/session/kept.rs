//! What a session's ring keeps of what it told: a session may be idle for long, and most of what it keeps are tokens.

use crate::proto::candlewick::v1::{self as wire, SessionResponse, session_response::Event};

/// As little as will do. A message has room for all that an event could be, and that is forty times a token.
#[derive(Clone, Debug)]
pub(super) enum Kept {
    /// A delta that says one token and nothing else of it.
    Token { id: u32, text: Box<str> },
    /// Whatever else.
    Response(Box<SessionResponse>),
}

impl From<SessionResponse> for Kept {
    /// The number is the ring's.
    fn from(response: SessionResponse) -> Self {
        match response {
            SessionResponse { event: Some(Event::Delta(mut delta)), answers: None, .. } if is_plain(&delta) => {
                Self::Token { id: delta.token_ids.pop().unwrap_or_default(), text: delta.text.into() }
            }
            response => Self::Response(Box::new(response)),
        }
    }
}

/// Whether a delta is a token and its text.
fn is_plain(delta: &wire::Delta) -> bool {
    let wire::Delta { text: _, token_ids, logprobs, index, reasoning, tool_calls } = delta;
    token_ids.len() == 1 && logprobs.is_empty() && *index == 0 && reasoning.is_empty() && tool_calls.is_empty()
}

impl From<Kept> for SessionResponse {
    fn from(kept: Kept) -> Self {
        match kept {
            Kept::Token { id, text } => {
                let delta = wire::Delta { text: text.into(), token_ids: vec![id], ..wire::Delta::default() };
                Self { event: Some(Event::Delta(delta)), ..Self::default() }
            }
            Kept::Response(response) => *response,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn response(event: Event) -> SessionResponse {
        SessionResponse { event: Some(event), ..SessionResponse::default() }
    }

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
        let events = deltas.map(Event::Delta).into_iter().chain(others).map(response);
        let answering = SessionResponse { answers: Some(9), ..response(Event::Delta(token())) };
        for response in events.chain([answering]) {
            assert_eq!(SessionResponse::from(Kept::from(response.clone())), response);
        }
    }

    #[test]
    fn a_token_is_small() {
        assert!(size_of::<Kept>() <= 24, "{}", size_of::<Kept>());
        let delta = wire::Delta { token_ids: vec![1], ..wire::Delta::default() };
        assert!(matches!(Kept::from(response(Event::Delta(delta))), Kept::Token { id: 1, .. }));
    }
}
