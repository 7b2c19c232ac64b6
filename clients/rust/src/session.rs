//! A conversation that the server keeps.

use futures::{SinkExt, StreamExt, channel::mpsc, stream};
use tokio::time::sleep;
use tonic::Streaming;

use crate::{
    Client, Code, Error, Result,
    conversation::{Answer, Conversation, TurnLog},
    retry::Patience,
    v1::{
        Ack, CancelTurn, CloseSession, Delta, EditTurn, Fork, Grant, Opened, Progress, Rewind, SessionOpen,
        SessionRequest, SessionResponse, ToolResult, TurnDone, TurnStarted, UserTurn, session_request::Event as Say,
        session_response::Event as Told,
    },
};

/// Events that the transport has not taken; the next waits.
const UNSENT: usize = 16;
/// No conversation has so many turns.
const NO_TURN: u32 = u32::MAX;

/// One connection.
struct Line {
    say: mpsc::Sender<SessionRequest>,
    hear: Streaming<SessionResponse>,
}

/// One conversation. A connection that breaks is made anew, and what was said on either side is neither lost nor done
/// twice. Dropping it hangs up: the session stays on the server for its lease, and goes on with its turn.
pub struct Session {
    client: Client,
    /// None after a connection broke.
    line: Option<Line>,
    talk: Conversation,
    patience: Patience,
    connections: u64,
    over: bool,
}

impl Session {
    pub(crate) async fn open(client: Client, open: SessionOpen) -> Result<Self> {
        let patience = Patience::new(client.retry, None);
        let talk = Conversation::new(open);
        let mut session = Self { client, line: None, talk, patience, connections: 0, over: false };
        session.dial().await?;
        while session.talk.session_id.is_empty() {
            session.hear().await?;
        }
        Ok(session)
    }

    /// For coming back to it; nobody can guess it.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.talk.session_id
    }

    /// The number of the last event: what `after_seq` is for who comes back. Events of finished turns are not kept.
    #[must_use]
    pub fn last_seq(&self) -> u64 {
        self.talk.last_seq
    }

    /// The model and the effective parameters; none where the session was opened before.
    #[must_use]
    pub fn opened(&self) -> Option<&Opened> {
        self.talk.opened.as_ref()
    }

    /// Connections that broke and were made anew.
    #[must_use]
    pub fn reconnects(&self) -> u64 {
        self.connections.saturating_sub(1)
    }

    /// How often keys and values were lost to others.
    #[must_use]
    pub fn evictions(&self) -> u64 {
        self.talk.evictions
    }

    /// Edits, cancels and grants that came too late or were wrong: the last 16 that nobody took.
    pub fn refusals(&mut self) -> Vec<Error> {
        self.talk.refusals.drain(..).collect()
    }

    /// Begins a turn of the user's.
    ///
    /// # Errors
    /// `FailedPrecondition` while one is under way: read it to its end, or cancel it.
    pub async fn say(&mut self, turn: impl Into<UserTurn>) -> Result<Turn<'_>> {
        self.begin([Say::User(turn.into())]).await
    }

    /// Answers the calls of the last message; with the last answer the model goes on.
    ///
    /// # Errors
    /// As [`Self::say`].
    pub async fn answer_tools(&mut self, results: impl IntoIterator<Item = ToolResult>) -> Result<Turn<'_>> {
        self.begin(results.into_iter().map(Say::ToolResult)).await
    }

    /// After coming back by id, or after a [`Turn`] was dropped: the last turn that was told of, which may still be under
    /// way.
    ///
    /// # Errors
    /// The server's, where there is no session any more.
    pub async fn current(&mut self) -> Result<Option<Turn<'_>>> {
        // Whatever was told before is here with the answer, which says whether a turn is under way.
        match self.ask(Say::Rewind(Rewind { turn_index: NO_TURN })).await {
            Err(error) if error.code == Code::FailedPrecondition => {
                self.talk.turn();
            }
            Err(error) if error.code == Code::InvalidArgument => {}
            Err(error) => return Err(error),
            Ok(_) => return Err(Error::new(Code::Internal, "a rewind to no turn was done")),
        }
        Ok(self.talk.turn.is_some().then_some(Turn { session: self }))
    }

    /// Allows so many tokens more, where the session was opened with credits.
    ///
    /// # Errors
    /// The server's, where there is no session any more.
    pub async fn grant(&mut self, tokens: u64) -> Result<()> {
        self.tell(Say::Grant(Grant { tokens })).await
    }

    /// Goes back to before this turn.
    ///
    /// # Errors
    /// `InvalidArgument` where there is no such turn, `FailedPrecondition` while one is under way.
    pub async fn rewind(&mut self, turn_index: u32) -> Result<()> {
        self.ask(Say::Rewind(Rewind { turn_index })).await?;
        Ok(())
    }

    /// A session of its own that begins like this one: before this turn, or as the last finished one left it.
    ///
    /// # Errors
    /// `InvalidArgument` where there is no such turn, `ResourceExhausted` where there is no room for another session.
    pub async fn fork(&mut self, turn_index: Option<u32>) -> Result<Self> {
        match self.ask(Say::Fork(Fork { turn_index, tag: None })).await? {
            Answer::Forked(forked) => {
                let session_id = Some(forked.session_id);
                Self::open(self.client.clone(), SessionOpen { session_id, ..SessionOpen::default() }).await
            }
            Answer::Rewound => Err(Error::new(Code::Internal, "a fork was answered as a rewind")),
        }
    }

    /// Ends the session, on the server too.
    ///
    /// # Errors
    /// The server's, where it ended otherwise.
    pub async fn close(mut self) -> Result<()> {
        self.tell(Say::Close(CloseSession {})).await?;
        loop {
            match self.hear().await {
                Ok(()) => {}
                Err(_) if self.over => return Ok(()),
                // The connection broke after the session had ended.
                Err(error) if error.code == Code::NotFound => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }

    async fn begin(&mut self, events: impl IntoIterator<Item = Say>) -> Result<Turn<'_>> {
        if self.talk.turn.as_ref().is_some_and(|turn| turn.end.is_none()) {
            let why = "a turn is under way: read it to its end, or cancel it";
            return Err(Error::new(Code::FailedPrecondition, why));
        }
        for said in self.talk.begin_turn(events) {
            self.send(said).await?;
        }
        Ok(Turn { session: self })
    }

    async fn ask(&mut self, event: Say) -> Result<Answer> {
        let said = self.talk.ask(event);
        self.send(said).await?;
        loop {
            if let Some(answer) = self.talk.answer.take() {
                return answer;
            }
            self.hear().await?;
        }
    }

    async fn tell(&mut self, event: Say) -> Result<()> {
        let said = self.talk.say(event);
        self.send(said).await
    }

    /// Says what the conversation has noted. Where the connection is gone, who hears next finds out, and says it again.
    async fn send(&mut self, said: SessionRequest) -> Result<()> {
        if self.over {
            return Err(ended());
        }
        if let Some(line) = &mut self.line
            && line.say.send(said).await.is_err()
        {
            line.say.close_channel();
        }
        Ok(())
    }

    /// Takes in the next event, on a new connection where the old one broke.
    async fn hear(&mut self) -> Result<()> {
        loop {
            if self.over {
                return Err(ended());
            }
            let heard = self.dial().await?.hear.message().await;
            match heard {
                Ok(Some(response)) => {
                    self.patience.heard();
                    let is_end = matches!(response.event, Some(Told::TurnDone(_)));
                    let seq = response.seq;
                    self.talk.take(response);
                    if is_end {
                        // Said without an id: it may come twice, and never in the place of what may not be lost.
                        self.send(SessionRequest { event: Some(Say::Ack(Ack { seq })), id: None }).await?;
                    }
                    return Ok(());
                }
                Ok(None) => self.over = true,
                Err(status) => {
                    self.line = None;
                    sleep(self.patience.pause(status.into())?).await;
                }
            }
        }
    }

    /// The connection, made anew where there is none.
    async fn dial(&mut self) -> Result<&mut Line> {
        while self.line.is_none() {
            let (say, said) = mpsc::channel(UNSENT);
            let said = stream::iter(self.talk.hello()).chain(said);
            match self.client.chat_service().session(said).await {
                Ok(response) => {
                    self.connections += 1;
                    self.line = Some(Line { say, hear: response.into_inner() });
                }
                Err(status) => sleep(self.patience.pause(status.into())?).await,
            }
        }
        self.line.as_mut().ok_or_else(ended)
    }
}

fn ended() -> Error {
    Error::new(Code::Aborted, "the session has ended: open another one")
}

/// One turn, to be read with [`Self::next`] or to its end with [`Self::done`]. Dropping it leaves it under way.
pub struct Turn<'a> {
    session: &'a mut Session,
}

impl Turn<'_> {
    /// The next delta; none after the last one. What was not read yet is still there where this is dropped in between, so
    /// it can stand in a `select!` beside what cancels the turn.
    ///
    /// # Errors
    /// What the turn failed with; the conversation is as it was before it.
    pub async fn next(&mut self) -> Result<Option<Delta>> {
        loop {
            let Some(turn) = &mut self.session.talk.turn else { return Ok(None) };
            if let Some(delta) = turn.deltas.pop_front() {
                return Ok(Some(delta));
            }
            match &turn.end {
                Some(Ok(_)) => return Ok(None),
                Some(Err(error)) => return Err(error.clone()),
                None => self.session.hear().await?,
            }
        }
    }

    /// How the turn ended, all of it read: the message, its usage, its receipt.
    ///
    /// # Errors
    /// As [`Self::next`].
    pub async fn done(mut self) -> Result<TurnDone> {
        while self.next().await?.is_some() {}
        match self.log().and_then(|turn| turn.end.clone()) {
            Some(end) => end,
            None => Err(Error::new(Code::Internal, "a turn ended without its end")),
        }
    }

    /// Its index and effective parameters, once it was admitted.
    #[must_use]
    pub fn started(&self) -> Option<&TurnStarted> {
        self.log()?.started.as_ref()
    }

    /// The last heartbeat.
    #[must_use]
    pub fn progress(&self) -> Option<&Progress> {
        self.log()?.progress.as_ref()
    }

    /// Ends the turn: what was said so far stays, and its end comes with `cancelled`.
    ///
    /// # Errors
    /// The server's, where there is no session any more.
    pub async fn cancel(&mut self) -> Result<()> {
        self.session.tell(Say::Cancel(CancelTurn {})).await
    }

    /// Changes the turn, from its next token on. An edit that is refused is among [`Session::refusals`].
    ///
    /// # Errors
    /// As [`Self::cancel`].
    pub async fn edit(&mut self, edit: EditTurn) -> Result<()> {
        self.session.tell(Say::Edit(edit)).await
    }

    /// Allows so many tokens more.
    ///
    /// # Errors
    /// As [`Self::cancel`].
    pub async fn grant(&mut self, tokens: u64) -> Result<()> {
        self.session.grant(tokens).await
    }

    fn log(&self) -> Option<&TurnLog> {
        self.session.talk.turn.as_ref()
    }
}
