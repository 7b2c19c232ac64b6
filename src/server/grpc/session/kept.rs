//! What a session's ring keeps of what it told: a session may be idle for long, and most of what it keeps are tokens.

use prost::Message as _;

use crate::proto::candlewick::v1::{self as wire, SessionResponse, session_response::Event};

/// Bytes of text that a token has room for without memory of its own: what leaves no hole beside the other variant.
const TOKEN_BYTES: usize = 18;

/// As little as will do. A message has room for all that an event could be, and that is forty times a token.
#[derive(Clone, Debug)]
pub(super) enum Kept {
    /// A delta that says one token and nothing else of it.
    Token { id: u32, text: [u8; TOKEN_BYTES], length: u8 },
    /// Whatever else, as the wire has it.
    Encoded(Box<[u8]>),
}

impl From<SessionResponse> for Kept {
    /// The number is the ring's.
    fn from(response: SessionResponse) -> Self {
        let token = match &response {
            SessionResponse { event: Some(Event::Delta(delta)), answers: None, .. } => token(delta),
            _ => None,
        };
        token.unwrap_or_else(|| {
            let response = SessionResponse { seq: 0, ..response };
            Self::Encoded(response.encode_to_vec().into())
        })
    }
}

/// A delta that is a token and a text that fits.
fn token(delta: &wire::Delta) -> Option<Kept> {
    let wire::Delta { text: said, token_ids, logprobs, index, reasoning, tool_calls } = delta;
    let &[id] = token_ids.as_slice() else { return None };
    let is_plain = logprobs.is_empty() && *index == 0 && reasoning.is_empty() && tool_calls.is_empty();
    let mut text = [0; TOKEN_BYTES];
    text.get_mut(..said.len()).filter(|_| is_plain)?.copy_from_slice(said.as_bytes());
    Some(Kept::Token { id, text, length: said.len() as u8 })
}

impl From<Kept> for SessionResponse {
    fn from(kept: Kept) -> Self {
        match kept {
            Kept::Token { id, text, length } => {
                let text = String::from_utf8_lossy(&text[..usize::from(length)]).into_owned();
                let delta = wire::Delta { text, token_ids: vec![id], ..wire::Delta::default() };
                Self { event: Some(Event::Delta(delta)), ..Self::default() }
            }
            // What was encoded here can be decoded.
            Kept::Encoded(bytes) => Self::decode(&*bytes).unwrap_or_default(),
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
            wire::Delta { text: "x".repeat(TOKEN_BYTES), ..token() },
            wire::Delta { text: "x".repeat(TOKEN_BYTES + 1), ..token() },
            wire::Delta { token_ids: vec![7, 8], ..token() },
            wire::Delta { token_ids: Vec::new(), ..token() },
            wire::Delta { index: 1, ..token() },
            wire::Delta { reasoning: "hm".into(), ..token() },
            wire::Delta { logprobs: vec![wire::PositionLogprobs::default()], ..token() },
            wire::Delta { tool_calls: vec![wire::ToolCallDelta::default()], ..token() },
        ];
        let others = [Event::Rewound(wire::Rewound { turn_index: 3 }), Event::TurnDone(Box::default())];
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
        let long = wire::Delta { text: "x".repeat(TOKEN_BYTES), token_ids: vec![1], ..wire::Delta::default() };
        assert!(matches!(Kept::from(response(Event::Delta(long))), Kept::Token { id: 1, .. }));
    }
}
