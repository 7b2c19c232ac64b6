//! What a client asks of a session: by which name an error tells of it, where its fields stand, and which came before.

use std::collections::VecDeque;

use super::super::FieldPaths;
use crate::proto::candlewick::v1::session_request::Event;

/// Events that are remembered by their ids. The contract says so.
const REMEMBERED: usize = 64;

/// An event as [`SessionRequest`](crate::proto::candlewick::v1::SessionRequest) names it, and where in it stands what the
/// engine complains of.
pub(super) fn names(event: &Event) -> (&'static str, &'static FieldPaths) {
    match event {
        Event::Open(_) => ("open", &SAME),
        Event::User(_) => ("user", &USER),
        Event::ToolResult(_) => ("tool_result", &TOOL_RESULT),
        Event::Cancel(_) => ("cancel", &SAME),
        Event::Rewind(_) => ("rewind", &REWIND),
        Event::Fork(_) => ("fork", &FORK),
        Event::Edit(_) => ("edit", &EDIT),
        Event::Grant(_) => ("grant", &SAME),
        Event::Ack(_) => ("ack", &SAME),
        Event::Close(_) => ("close", &SAME),
    }
}

/// Of events whose fields nothing complains of.
const SAME: FieldPaths = FieldPaths { sampling: "sampling", renamed: &[] };
const USER: FieldPaths = FieldPaths {
    sampling: "user.sampling",
    renamed: &[
        ("options.sampling", "user.sampling"),
        ("prompt.text", "user.content"),
        ("prompt", "user.content"),
        ("messages", "user.content"),
    ],
};
const TOOL_RESULT: FieldPaths = FieldPaths {
    sampling: "tool_result.sampling",
    renamed: &[
        ("options.sampling", "tool_result.sampling"),
        ("prompt.text", "tool_result.content"),
        ("prompt", "tool_result.content"),
        ("messages", "tool_result.content"),
    ],
};
pub(super) const EDIT: FieldPaths = FieldPaths { sampling: "edit", renamed: &[] };
const REWIND: FieldPaths = FieldPaths { sampling: "sampling", renamed: &[("turn", "rewind.turn_index")] };
const FORK: FieldPaths = FieldPaths { sampling: "sampling", renamed: &[("turn", "fork.turn_index")] };

/// The ids of the last events that came. A client whose connection broke says again what it is not sure of, and what had
/// arrived must not happen twice.
#[derive(Debug, Default)]
pub(super) struct Heard(VecDeque<u64>);

impl Heard {
    /// Whether an event with this id is new; it is not any more.
    pub(super) fn is_new(&mut self, id: Option<u64>) -> bool {
        let Some(id) = id else { return true };
        if self.0.contains(&id) {
            return false;
        }
        if self.0.len() == REMEMBERED {
            self.0.pop_front();
        }
        self.0.push_back(id);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_that_comes_again_is_known_until_64_others_have_come() {
        let mut heard = Heard::default();
        assert!((0..64).all(|id| heard.is_new(Some(id))));
        assert!((0..64).all(|id| !heard.is_new(Some(id))));
        assert!(heard.is_new(Some(64)));
        assert!(!heard.is_new(Some(1)));
        assert!(heard.is_new(Some(0)), "the oldest made room");
        assert!((0..100).all(|_| heard.is_new(None)), "who does not count may say the same again");
        assert_eq!(heard.0.len(), REMEMBERED);
    }
}
