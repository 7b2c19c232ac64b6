//! What a session's client has to keep in mind, without a transport: turns, answers that are waited for, and what may have
//! been lost when a connection broke.
//!
//! Every event of the client's has an id. Whatever answers it says so, and since events are obeyed in turn, it says as well
//! that those before it arrived. What is left when a connection breaks is said again on the next one: the server obeys no
//! id twice.

use std::collections::VecDeque;

use crate::{
    Error,
    retry::random,
    v1::{
        Delta, Forked, Opened, Progress, SessionOpen, SessionRequest, SessionResponse, TurnDone, TurnStarted,
        session_request::Event as Say, session_response::Event as Told,
    },
};

/// Events that the server remembers by their ids, so many as it is sure to know again. The contract says so.
const REMEMBERED: usize = 64;
/// Refusals of edits, cancels and grants that are kept to be looked at.
const REFUSALS: usize = 16;

/// What is known of one turn.
#[derive(Debug, Default)]
pub(crate) struct TurnLog {
    /// Of the events that began it; none where another connection did.
    ids: Vec<u64>,
    pub(crate) started: Option<TurnStarted>,
    pub(crate) progress: Option<Progress>,
    /// Nobody took them yet.
    pub(crate) deltas: VecDeque<Delta>,
    pub(crate) end: Option<Result<TurnDone, Error>>,
}

/// The answer to a rewind or a fork.
#[derive(Debug)]
pub(crate) enum Answer {
    Rewound,
    Forked(Forked),
}

/// One session as its client sees it.
#[derive(Debug)]
pub(crate) struct Conversation {
    opening: SessionOpen,
    pub(crate) session_id: String,
    pub(crate) last_seq: u64,
    pub(crate) opened: Option<Opened>,
    pub(crate) turn: Option<TurnLog>,
    pub(crate) refusals: VecDeque<Error>,
    pub(crate) evictions: u64,
    /// Another client of this session has ids of its own.
    next_id: u64,
    /// Said, and not known to have arrived.
    unsure: VecDeque<SessionRequest>,
    asked: Option<u64>,
    pub(crate) answer: Option<Result<Answer, Error>>,
}

impl Conversation {
    pub(crate) fn new(opening: SessionOpen) -> Self {
        Self {
            session_id: opening.session_id.clone().unwrap_or_default(),
            last_seq: opening.after_seq.unwrap_or_default(),
            opening,
            opened: None,
            turn: None,
            refusals: VecDeque::new(),
            evictions: 0,
            next_id: random(),
            unsure: VecDeque::new(),
            asked: None,
            answer: None,
        }
    }

    // What the client says.

    /// What a connection begins with: the first event, and those that may have been lost with the one before.
    pub(crate) fn hello(&self) -> Vec<SessionRequest> {
        let open = match self.session_id.is_empty() {
            true => self.opening.clone(),
            false => SessionOpen {
                session_id: Some(self.session_id.clone()),
                after_seq: Some(self.last_seq),
                ..SessionOpen::default()
            },
        };
        let open = SessionRequest { event: Some(Say::Open(open)), id: None };
        std::iter::once(open).chain(self.unsure.iter().cloned()).collect()
    }

    /// An event with its id, kept until it is known to have arrived.
    pub(crate) fn say(&mut self, event: Say) -> SessionRequest {
        let request = SessionRequest { event: Some(event), id: Some(self.next_id) };
        self.next_id = self.next_id.wrapping_add(1);
        if self.unsure.len() == REMEMBERED {
            self.unsure.pop_front();
        }
        self.unsure.push_back(request.clone());
        request
    }

    /// The events that begin a turn.
    pub(crate) fn begin_turn(&mut self, events: impl IntoIterator<Item = Say>) -> Vec<SessionRequest> {
        let said: Vec<_> = events.into_iter().map(|event| self.say(event)).collect();
        let ids = said.iter().filter_map(|request| request.id).collect();
        self.turn = Some(TurnLog { ids, ..TurnLog::default() });
        said
    }

    /// A rewind or a fork, whose answer will be waited for.
    pub(crate) fn ask(&mut self, event: Say) -> SessionRequest {
        let request = self.say(event);
        (self.asked, self.answer) = (request.id, None);
        request
    }

    // What the server says.

    /// Keeps what an event says where it belongs.
    pub(crate) fn take(&mut self, response: SessionResponse) {
        self.last_seq = response.seq;
        let answers = response.answers;
        if let Some(at) = self.unsure.iter().position(|said| said.id == answers && answers.is_some()) {
            self.unsure.drain(..=at);
        }
        match response.event {
            Some(Told::Opened(opened)) => {
                self.session_id.clone_from(&opened.session_id);
                self.opened = Some(opened);
            }
            Some(Told::Rewound(_)) => self.answered(answers, Ok(Answer::Rewound)),
            Some(Told::Forked(forked)) => self.answered(answers, Ok(Answer::Forked(forked))),
            Some(Told::Evicting(evicting)) => self.evictions += u64::from(evicting.lost()),
            Some(Told::Error(error)) => self.refused(answers, error.into()),
            Some(Told::TurnStarted(started)) => self.turn().started = Some(started),
            Some(Told::Progress(progress)) => self.turn().progress = Some(progress),
            Some(Told::Delta(delta)) => self.turn().deltas.push_back(delta),
            Some(Told::TurnDone(done)) => self.turn().end = Some(Ok(done)),
            None => {}
        }
    }

    /// The turn that an event is of: the one under way, or one that was begun before this client came back.
    pub(crate) fn turn(&mut self) -> &mut TurnLog {
        if self.turn.as_ref().is_some_and(|turn| turn.end.is_some()) {
            self.turn = None;
        }
        self.turn.get_or_insert_default()
    }

    fn answered(&mut self, answers: Option<u64>, answer: Result<Answer, Error>) {
        if answers.is_some() && self.asked == answers {
            (self.asked, self.answer) = (None, Some(answer));
        }
    }

    fn refused(&mut self, answers: Option<u64>, error: Error) {
        let of_turn = |turn: &&mut TurnLog| {
            turn.end.is_none() && (error.turn_index.is_some() || answers.is_some_and(|id| turn.ids.contains(&id)))
        };
        if let Some(turn) = self.turn.as_mut().filter(of_turn) {
            turn.end = Some(Err(error));
        } else if answers.is_some() && self.asked == answers {
            self.answered(answers, Err(error));
        } else {
            if self.refusals.len() == REFUSALS {
                self.refusals.pop_front();
            }
            self.refusals.push_back(error);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Code,
        v1::{CancelTurn, Grant, Rewind, Rewound, SessionError, UserTurn},
    };

    fn told(seq: u64, answers: Option<u64>, event: Told) -> SessionResponse {
        SessionResponse { seq, event: Some(event), answers }
    }

    fn refusal(code: Code) -> Told {
        Told::Error(SessionError { code: code as i32, ..SessionError::default() })
    }

    fn ids(said: &[SessionRequest]) -> Vec<u64> {
        said.iter().filter_map(|request| request.id).collect()
    }

    fn user() -> Say {
        Say::User(UserTurn::from("Hi"))
    }

    #[test]
    fn what_was_not_answered_is_said_again_in_its_order_and_nothing_else() {
        let mut talk = Conversation::new(SessionOpen::default());
        talk.take(told(1, None, Told::Opened(Opened { session_id: "s".into(), ..Opened::default() })));
        let grant = talk.say(Say::Grant(Grant { tokens: 5 }));
        let turn = talk.begin_turn([user()]);
        let cancel = talk.say(Say::Cancel(CancelTurn {}));
        assert_eq!(ids(&talk.hello()), ids(&[grant, turn[0].clone(), cancel.clone()]));
        talk.take(told(2, turn[0].id, Told::TurnStarted(TurnStarted::default())));
        let hello = talk.hello();
        assert_eq!(ids(&hello), ids(&[cancel]), "the turn's beginning says that the grant arrived as well");
        let Some(Say::Open(open)) = &hello[0].event else { panic!("{hello:?}") };
        assert_eq!((open.session_id.as_deref(), open.after_seq), (Some("s"), Some(2)));
    }

    #[test]
    fn what_waits_for_an_answer_is_bounded() {
        let mut talk = Conversation::new(SessionOpen::default());
        let said: Vec<_> = (0..100).map(|tokens| talk.say(Say::Grant(Grant { tokens }))).collect();
        assert_eq!(ids(&talk.hello()), ids(&said[36..]));
        for seq in 1..100 {
            talk.take(told(seq, None, refusal(Code::InvalidArgument)));
        }
        assert_eq!(talk.refusals.len(), REFUSALS);
    }

    #[test]
    fn a_refusal_belongs_to_what_it_answers() {
        let mut talk = Conversation::new(SessionOpen::default());
        let late = talk.say(Say::Cancel(CancelTurn {}));
        let turn = talk.begin_turn([user()]);
        talk.take(told(1, late.id, refusal(Code::FailedPrecondition)));
        assert!(talk.turn.as_ref().unwrap().end.is_none(), "the cancel was refused, and not the turn");
        assert_eq!(talk.refusals.len(), 1);
        talk.take(told(2, turn[0].id, refusal(Code::InvalidArgument)));
        let ended = talk.turn.as_ref().unwrap().end.as_ref().unwrap();
        assert_eq!(ended.as_ref().unwrap_err().code, Code::InvalidArgument);
        let rewind = talk.ask(Say::Rewind(Rewind { turn_index: 1 }));
        talk.take(told(3, rewind.id.map(|id| id ^ 1), Told::Rewound(Rewound { turn_index: 1 })));
        assert!(talk.answer.is_none(), "another client's");
        talk.take(told(4, rewind.id, Told::Rewound(Rewound { turn_index: 1 })));
        assert!(matches!(talk.answer, Some(Ok(Answer::Rewound))));
    }

    #[test]
    fn a_turn_that_another_connection_began_is_heard_from_where_it_is() {
        let open = SessionOpen { session_id: Some("s".into()), after_seq: Some(7), ..SessionOpen::default() };
        let mut talk = Conversation::new(open);
        talk.take(told(8, None, Told::Delta(Delta { text: "on".into(), ..Delta::default() })));
        talk.take(told(9, Some(3), Told::TurnDone(TurnDone { turn_index: 4, ..TurnDone::default() })));
        let turn = talk.turn.as_ref().unwrap();
        assert_eq!((turn.deltas.len(), turn.end.as_ref().unwrap().as_ref().unwrap().turn_index), (1, 4));
    }
}
