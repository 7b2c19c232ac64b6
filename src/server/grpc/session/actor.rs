//! The task of one session: obeys what clients say, runs one turn at a time, and tells what comes of it.

use std::{sync::Arc, time::Duration};

use futures::StreamExt;
use prost::Message as _;
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};

use super::super::{
    Backend, convert,
    status::{fields, retry_after_ms, status},
    stream::{Teller, Telling, timings_to_wire},
    told::Told as Heard,
};
use super::{
    Place,
    asked::{Heard as HeardBefore, names},
    kept::Kept,
    open::{self, Opened},
    turn::Running,
};
use crate::{
    engine::{LeaseState, Session, StreamEdit, Turn, scheduler::Edit},
    error::{Code, Error, Result},
    proto::candlewick::v1::{self as wire, session_request::Event as Asked, session_response::Event as Told},
    server::{
        access::Caller,
        backend::{name, request_id},
        events::Events,
        ring::Ring,
    },
    text::{ChatMessage, Role},
};

/// What a connection has for the session.
pub(super) enum Command {
    /// With the client's id of it, where it has one.
    Asked(Option<u64>, Box<Asked>),
    /// The client will say nothing more on the connection with this reader.
    NothingMore(u64),
}

/// What a turn is asked with.
struct Ask {
    messages: Vec<ChatMessage>,
    sampling: Option<wire::SamplingParams>,
    priority: Option<i32>,
    request_id: String,
    timeout: Option<Duration>,
}

/// The client's event that something answers: its id, and its name.
type Answered = (Option<u64>, &'static str);

/// See the [module](self).
pub(super) struct Actor {
    backend: Backend,
    caller: Caller,
    place: Place,
    session: Session,
    defaults: Arc<wire::RequestOptions>,
    heartbeat: Duration,
    ttl: Duration,
    policy: wire::ContextPolicy,
    /// Tokens that may be sent, where the client counts.
    credits: Option<u64>,
    commands: mpsc::Receiver<Command>,
    ring: Arc<Ring<Kept>>,
    heard: HeardBefore,
    running: Option<Running>,
    lease: watch::Receiver<LeaseState>,
    /// Times that its keys and values have gone, as far as they were told.
    lease_losses: u64,
    /// The client of this connection has said all it wants to: it is let go when nothing is under way.
    nothing_more: Option<u64>,
}

/// What woke the task.
enum Woken {
    Command(Command),
    Turn(Option<Result<Heard>>),
    Lease,
    End(Option<Error>),
}

impl Actor {
    pub(super) fn new(
        (backend, caller): (Backend, Caller),
        place: Place,
        opened: Opened,
        commands: mpsc::Receiver<Command>,
        ring: Arc<Ring<Kept>>,
    ) -> Self {
        let Opened { session, defaults, heartbeat, ttl, policy, credits } = opened;
        let lease = session.lease();
        let (running, nothing_more) = (None, None);
        let actor = Self {
            backend,
            caller,
            place,
            session,
            defaults,
            heartbeat,
            ttl,
            policy,
            credits,
            commands,
            ring,
            heard: HeardBefore::default(),
            running,
            lease,
            lease_losses: 0,
            nothing_more,
        };
        actor.announce();
        actor
    }

    /// The first event.
    fn announce(&self) {
        let engine = &self.backend.engine;
        let effective = open::request(&self.backend, &self.defaults, None).ok();
        self.tell(
            None,
            Told::Opened(wire::Opened {
                session_id: self.place.id.clone(),
                model: engine.info().name.clone(),
                effective: effective.map(|request| convert::effective(request.params)),
                ttl_ms: u64::try_from(self.ttl.as_millis()).unwrap_or(u64::MAX),
                context_policy: self.policy.into(),
                max_model_len: u32::try_from(engine.config().max_model_len).unwrap_or(u32::MAX),
            }),
        );
    }

    /// Tells of something, and which event of the client's it answers.
    fn tell(&self, answers: Option<u64>, event: Told) {
        // The ring counts.
        let response = wire::SessionResponse { seq: 0, event: Some(event), answers };
        self.ring.push(response.encoded_len(), response.into());
    }

    fn tell_error(&self, error: Error, (id, event): Answered, turn_index: Option<u32>) {
        let (fields, retry_after_ms) = (fields(&error), retry_after_ms(&error));
        let status = status(error);
        let (code, message) = (i32::from(status.code()), status.message().to_owned());
        let event = event.to_owned();
        self.tell(id, Told::Error(wire::SessionError { code, message, turn_index, fields, retry_after_ms, event }));
    }

    /// Lives until it is closed, or nobody has come back for the time to live, or the server goes down.
    pub(super) async fn run(mut self) {
        let end = loop {
            match self.wake().await {
                Woken::Command(Command::Asked(_, event)) if matches!(*event, Asked::Close(_)) => break Ok(()),
                Woken::Command(command) => self.obey(command).await,
                Woken::Turn(event) => self.hear(event),
                Woken::Lease => self.tell_of_lease(),
                Woken::End(error) => break error.map_or(Ok(()), Err),
            }
            if let Some(reader) = self.nothing_more.take_if(|_| self.running.is_none()) {
                self.ring.let_go(reader);
            }
        };
        self.ring.end(end);
    }

    async fn wake(&mut self) -> Woken {
        let Self { commands, running, ring, lease, backend, ttl, .. } = self;
        let (closing, is_idle) = (backend.closing.clone(), running.is_none());
        let ends = async {
            match is_idle {
                // Nothing is left to finish: who still listens would only hold up the end.
                true => closing.leaving().await,
                false => closing.cut().await,
            }
        };
        let turn = async {
            match running {
                Some(running) => {
                    ring.room().await;
                    running.telling.next().await
                }
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = ends => Woken::End(Some(backend.closing.error("the session was closed"))),
            command = commands.recv() => command.map_or(Woken::End(None), Woken::Command),
            Ok(()) = lease.changed() => Woken::Lease,
            event = turn => Woken::Turn(event),
            () = ring.abandoned(*ttl) => Woken::End(Some(Error::new(Code::NotFound, "the session's lease has ended"))),
        }
    }

    async fn obey(&mut self, command: Command) {
        let (id, event) = match command {
            Command::Asked(id, event) => (id, *event),
            Command::NothingMore(reader) => {
                // An older connection may be found dead after a newer one has said all.
                self.nothing_more = self.nothing_more.max(Some(reader));
                return;
            }
        };
        if !self.heard.is_new(id) {
            return;
        }
        let (name, paths) = names(&event);
        let asked = (id, name);
        let done = match event {
            Asked::Open(_) => Err(Error::invalid("open", "must be the first event of a connection, and is there once")),
            Asked::User(user) => self.user(asked, user).await,
            Asked::ToolResult(result) => self.tool_result(asked, result).await,
            Asked::Cancel(_) => self.cancel(),
            Asked::Rewind(rewind) => self.rewind(id, rewind),
            Asked::Fork(fork) => self.fork(id, fork),
            Asked::Edit(edit) => self.edit(edit),
            Asked::Grant(grant) => {
                self.grant(grant.tokens);
                Ok(())
            }
            Asked::Ack(ack) => {
                self.ring.ack(ack.seq);
                Ok(())
            }
            // Looked at before.
            Asked::Close(_) => Ok(()),
        };
        if let Err(error) = done {
            self.tell_error(paths.locate(error), asked, None);
        }
    }

    async fn user(&mut self, asked: Answered, user: wire::UserTurn) -> Result<()> {
        let name = user.name.map(|given| name("user.name", given)).transpose()?;
        let message = ChatMessage { name, ..ChatMessage::new(Role::User, user.content) };
        let timeout = user.timeout_ms.map(Duration::from_millis);
        let request_id = request_id("user.request_id", user.request_id)?;
        let (sampling, priority) = (user.sampling, user.priority);
        self.begin(asked, Ask { messages: vec![message], sampling, priority, request_id, timeout }).await
    }

    async fn tool_result(&mut self, asked: Answered, result: wire::ToolResult) -> Result<()> {
        if self.running.is_some() {
            return Err(Error::new(Code::FailedPrecondition, "a turn is under way: wait for its end, or cancel it"));
        }
        let open = self.session.open_calls();
        if !open.contains(&result.tool_call_id.as_str()) {
            let why = "is of no call of the last answer that still waits for one";
            return Err(Error::invalid("tool_result.tool_call_id", why));
        }
        let is_last = open.len() == 1;
        let message = ChatMessage {
            name: result.name.map(|given| name("tool_result.name", given)).transpose()?,
            tool_call_id: Some(result.tool_call_id),
            ..ChatMessage::new(Role::Tool, result.content)
        };
        if !is_last {
            return self.session.add(message);
        }
        let (sampling, messages) = (result.sampling, vec![message]);
        let request_id = request_id("tool_result", None)?;
        self.begin(asked, Ask { messages, sampling, priority: None, request_id, timeout: None }).await
    }

    async fn begin(&mut self, asked: Answered, ask: Ask) -> Result<()> {
        let mut request = open::request(&self.backend, &self.defaults, ask.sampling)?;
        request.request_id = ask.request_id;
        request.priority = ask.priority.unwrap_or(request.priority);
        request.deadline = ask.timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        request.params.prompt_logprobs = None;
        request.stream.credits = self.credits;
        let teller = Teller { is_chat: true, ..Teller::new(&request, self.heartbeat) };
        let known_tokens = self.session.ids().len();
        let quota = self.caller.admit(&request).map_err(|error| self.backend.refused(error))?;
        let request = self.caller.own(request);
        let (generation, start) = self.session.begin(Turn { messages: ask.messages, request }).await?;
        let events = Events::of(&self.backend, quota, generation);
        let telling = Telling::new(&self.backend, events, teller);
        self.running = Some(Running::new(asked, telling, start, known_tokens));
        Ok(())
    }

    /// One event of the turn under way.
    fn hear(&mut self, event: Option<Result<Heard>>) {
        let Some(running) = &mut self.running else { return };
        match event {
            Some(Ok(heard)) => {
                if let Heard::Delta(delta) = &heard
                    && let Some(credits) = &mut self.credits
                {
                    *credits = credits.saturating_sub(delta.token_ids.len() as u64);
                }
                if let Some(told) = running.hear(heard) {
                    let answers = running.asked.0.filter(|_| matches!(told, Told::TurnStarted(_)));
                    self.tell(answers, told);
                }
            }
            Some(Err(error)) => {
                let (asked, index) = (running.asked, running.index());
                self.running = None;
                self.session.end(ChatMessage::new(Role::Assistant, ""), &[]);
                self.tell_error(error, asked, Some(index));
            }
            None => self.end_turn(),
        }
    }

    /// The turn under way is over, finished or not.
    fn end_turn(&mut self) {
        let Some(mut running) = self.running.take() else { return };
        let usage = running.telling.generation().map(|generation| generation.usage()).unwrap_or_default();
        let timings = running.telling.generation().map(|generation| generation.timings()).unwrap_or_default();
        let (asked, index) = (running.asked, running.index());
        match running.done(usage, timings_to_wire(timings)) {
            Ok((message, output, done)) => {
                self.session.end(message, &output);
                self.tell(asked.0, Told::TurnDone(done));
            }
            Err(error) => {
                self.session.end(ChatMessage::new(Role::Assistant, ""), &[]);
                self.tell_error(error, asked, Some(index));
            }
        }
    }

    fn cancel(&mut self) -> Result<()> {
        if self.running.is_none() {
            return Err(Error::new(Code::FailedPrecondition, "no turn is under way"));
        }
        self.end_turn();
        Ok(())
    }

    fn rewind(&mut self, id: Option<u64>, rewind: wire::Rewind) -> Result<()> {
        let index = usize::try_from(rewind.turn_index).unwrap_or(usize::MAX);
        self.session.rewind(index)?;
        self.tell(id, Told::Rewound(wire::Rewound { turn_index: rewind.turn_index }));
        Ok(())
    }

    fn fork(&mut self, id: Option<u64>, fork: wire::Fork) -> Result<()> {
        let tag = fork.tag.map(|given| name("fork.tag", given)).transpose()?;
        let index = fork.turn_index.map(|index| usize::try_from(index).unwrap_or(usize::MAX));
        let session = self.session.fork(index)?;
        let turns = u32::try_from(session.num_turns()).unwrap_or(u32::MAX);
        let opened = Opened {
            session,
            defaults: self.defaults.clone(),
            heartbeat: self.heartbeat,
            ttl: self.ttl,
            policy: self.policy,
            credits: self.credits.map(|_| 0),
        };
        let (_, actor) = self.place.all.place(&self.backend, &self.caller, opened)?;
        let session_id = actor.place.id.clone();
        actor.start();
        self.tell(id, Told::Forked(wire::Forked { session_id, tag, turns }));
        Ok(())
    }

    /// Runs as a task of its own.
    pub(super) fn start(self) {
        let run: futures::future::BoxFuture<'static, ()> = Box::pin(self.run());
        tokio::spawn(run);
    }

    fn edit(&mut self, edit: wire::EditTurn) -> Result<()> {
        let running = self.running.as_mut().and_then(|running| running.telling.generation());
        let generation = running.ok_or_else(|| Error::new(Code::FailedPrecondition, "no turn is under way"))?;
        let wire::EditTurn { max_tokens, temperature, stop, priority } = edit;
        generation
            .edit(StreamEdit { engine: Edit { max_tokens, temperature, priority }, stop: stop.map(|stop| stop.stop) })
    }

    fn grant(&mut self, tokens: u64) {
        let before = self.credits.unwrap_or(0);
        self.credits = Some(before.saturating_add(tokens).min(u64::MAX - 1));
        if let Some(generation) = self.running.as_mut().and_then(|running| running.telling.generation()) {
            generation.grant(tokens);
        }
    }

    fn tell_of_lease(&mut self) {
        let before = self.lease_losses;
        let state = *self.lease.borrow_and_update();
        let lost = state.losses > before;
        self.lease_losses = state.losses;
        if lost || state.warned {
            let reason = wire::EvictionReason::Pressure.into();
            self.tell(None, Told::Evicting(wire::Evicting { reason, lost: lost.then_some(true) }));
        }
    }
}
