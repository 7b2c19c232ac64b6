//! The task of one session: obeys what clients say, runs one turn at a time, and tells what comes of it. It never waits for
//! anything else than the next thing to do, so a client is heard whatever its turn waits for.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use futures::{StreamExt, future::BoxFuture};
use prost::Message as _;
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep_until},
};

use super::super::{
    Backend, FieldPaths, convert,
    status::{fields, retry_after_ms, status},
    stream::{Telling, timings_to_wire},
    told::Told as Heard,
};
use super::{
    Place,
    asked::{EDIT, Heard as HeardBefore, names},
    asking::{Asking, stream_edit},
    kept::Kept,
    open::{self, Opened},
    turn::{self, Running},
};
use crate::{
    engine::{Beginning, LeaseState, Session, Turn},
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

/// Most bytes that the task of a session takes while it is idle. What only turns need is boxed.
const TASK_BYTES: usize = 4 << 10;

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
pub(super) type Answered = (Option<u64>, &'static str);

/// What is under way; boxed, because a session has nothing under way for most of its time.
#[derive(Default)]
enum Phase {
    #[default]
    Idle,
    /// A turn waits to be admitted.
    Asking(Box<Asking>),
    Running(Box<Running>),
}

impl Phase {
    fn is_idle(&self) -> bool {
        matches!(self, Self::Idle)
    }
}

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
    phase: Phase,
    lease: watch::Receiver<LeaseState>,
    /// Times that its keys and values have gone, as far as they were told.
    lease_losses: u64,
    /// The client of this connection has said all it wants to: it is let go when nothing is under way.
    nothing_more: Option<u64>,
}

/// What woke the task.
enum Woken {
    Command(Command),
    Begun(Box<Result<Beginning>>),
    /// It is time to say that a turn waits.
    Beat,
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
            phase: Phase::Idle,
            lease,
            lease_losses: 0,
            nothing_more: None,
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
            Told::Opened(Box::new(wire::Opened {
                session_id: self.place.id.clone(),
                model: engine.info().name.clone(),
                effective: effective.map(|request| convert::effective(request.params)),
                ttl_ms: u64::try_from(self.ttl.as_millis()).unwrap_or(u64::MAX),
                context_policy: self.policy.into(),
                max_model_len: u32::try_from(engine.config().max_model_len).unwrap_or(u32::MAX),
            })),
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
                Woken::Command(command) => self.obey(command),
                Woken::Begun(beginning) => self.begun(*beginning),
                Woken::Beat => self.tell_of_queue(),
                Woken::Turn(event) => self.hear(event),
                Woken::Lease => self.tell_of_lease(),
                Woken::End(error) => break error.map_or(Ok(()), Err),
            }
            self.place.is_busy.store(!self.phase.is_idle(), Ordering::Relaxed);
            if let Some(reader) = self.nothing_more.take_if(|_| self.phase.is_idle()) {
                self.ring.let_go(reader);
            }
        };
        self.ring.end(end);
    }

    async fn wake(&mut self) -> Woken {
        let Self { commands, phase, ring, lease, backend, ttl, .. } = self;
        let (closing, is_idle) = (backend.closing.clone(), phase.is_idle());
        let ends = async {
            match is_idle {
                // Nothing is left to finish: who still listens would only hold up the end.
                true => closing.leaving().await,
                false => closing.cut().await,
            }
        };
        let turn = async {
            match phase {
                Phase::Idle => std::future::pending().await,
                Phase::Asking(asking) => match asking.wait(ring.room(0)).await {
                    Some(beginning) => Woken::Begun(Box::new(beginning)),
                    None => Woken::Beat,
                },
                Phase::Running(running) => {
                    let deadline = running.telling.generation().and_then(|generation| generation.deadline());
                    tokio::select! {
                        biased;
                        () = ring.room(0) => {}
                        // A turn ends in time though nobody reads it.
                        () = sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => {}
                    }
                    Woken::Turn(running.telling.next().await)
                }
            }
        };
        tokio::select! {
            biased;
            () = ends => Woken::End(Some(backend.closing.error("the session was closed"))),
            command = commands.recv() => command.map_or(Woken::End(None), Woken::Command),
            Ok(()) = lease.changed() => Woken::Lease,
            woken = turn => woken,
            () = ring.abandoned(*ttl) => Woken::End(Some(Error::new(Code::NotFound, "the session's lease has ended"))),
        }
    }

    fn obey(&mut self, command: Command) {
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
            Asked::User(user) => self.user((asked, paths), user),
            Asked::ToolResult(result) => self.tool_result((asked, paths), result),
            Asked::Cancel(_) => self.cancel(),
            Asked::Rewind(rewind) => self.rewind(id, rewind),
            Asked::Fork(fork) => self.fork(id, fork),
            Asked::Edit(edit) => self.edit(asked, edit),
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

    fn user(&mut self, asked: (Answered, &'static FieldPaths), user: wire::UserTurn) -> Result<()> {
        let name = user.name.map(|given| name("user.name", given)).transpose()?;
        let message = ChatMessage { name, ..ChatMessage::new(Role::User, user.content) };
        let timeout = user.timeout_ms.map(Duration::from_millis);
        let request_id = request_id("user.request_id", user.request_id)?;
        let (sampling, priority) = (user.sampling, user.priority);
        self.begin(asked, Ask { messages: vec![message], sampling, priority, request_id, timeout })
    }

    fn tool_result(&mut self, asked: (Answered, &'static FieldPaths), result: wire::ToolResult) -> Result<()> {
        self.check_idle()?;
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
        let (sampling, priority) = (result.sampling, result.priority);
        let timeout = result.timeout_ms.map(Duration::from_millis);
        let request_id = request_id("tool_result.request_id", result.request_id)?;
        self.begin(asked, Ask { messages: vec![message], sampling, priority, request_id, timeout })
    }

    fn check_idle(&self) -> Result<()> {
        match self.phase {
            Phase::Idle => Ok(()),
            _ => Err(Error::new(Code::FailedPrecondition, "a turn is under way: wait for its end, or cancel it")),
        }
    }

    /// Has the engine admit a turn.
    fn begin(&mut self, asked: (Answered, &'static FieldPaths), ask: Ask) -> Result<()> {
        // Before it costs anything of a quota.
        self.check_idle()?;
        let mut request = open::request(&self.backend, &self.defaults, ask.sampling)?;
        request.request_id = ask.request_id;
        request.priority = ask.priority.unwrap_or(request.priority);
        request.deadline = ask.timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        request.params.prompt_logprobs = None;
        request.stream.credits = self.credits;
        let quota = self.caller.admit(&request).map_err(|error| self.backend.refused(error))?;
        let turn = Turn { messages: ask.messages, request: self.caller.own(request) };
        let asking = Asking::new(asked, (&self.backend, &mut self.session), turn, quota, self.heartbeat)?;
        self.phase = Phase::Asking(Box::new(asking));
        Ok(())
    }

    /// The engine has admitted the turn, or refused it.
    fn begun(&mut self, beginning: Result<Beginning>) {
        let Phase::Asking(mut asking) = std::mem::take(&mut self.phase) else { return };
        let known_tokens = self.session.ids().len();
        match beginning.and_then(|beginning| self.session.begun(beginning)) {
            Ok((mut generation, start)) => {
                if let Err((asked, error)) = asking.catch_up(&mut generation) {
                    self.tell_error(EDIT.locate(error), asked, None);
                }
                let Asking { asked, quota, teller, .. } = *asking;
                let events = Events::of(&self.backend, quota, generation);
                let telling = Telling::new(&self.backend, events, teller);
                self.phase = Phase::Running(Box::new(Running::new(asked, telling, start, known_tokens)));
            }
            Err(error) => {
                let (asked, paths) = (asking.asked, asking.paths);
                drop(asking);
                self.end_unsaid();
                self.tell_error(paths.locate(error), asked, None);
            }
        }
    }

    /// The turn under way waits to be admitted, and says so.
    fn tell_of_queue(&self) {
        if let Phase::Asking(asking) = &self.phase
            && let Some(progress) = asking.progress(&self.backend)
        {
            self.tell(None, Told::Progress(progress));
        }
    }

    /// The turn under way said nothing: the conversation is as it was before it.
    fn end_unsaid(&mut self) {
        self.session.end(ChatMessage::new(Role::Assistant, ""), &[]);
    }

    /// One event of the turn under way.
    fn hear(&mut self, event: Option<Result<Heard>>) {
        let Phase::Running(running) = &mut self.phase else { return };
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
                self.phase = Phase::Idle;
                self.end_unsaid();
                self.tell_error(error, asked, Some(index));
            }
            None => {
                if let Phase::Running(running) = std::mem::take(&mut self.phase) {
                    self.end_turn(*running);
                }
            }
        }
    }

    /// A turn is over, finished or not.
    fn end_turn(&mut self, mut running: Running) {
        let usage = running.telling.generation().map(|generation| generation.usage()).unwrap_or_default();
        let timings = running.telling.generation().map(|generation| generation.timings()).unwrap_or_default();
        let (asked, index) = (running.asked, running.index());
        match running.done(usage, timings_to_wire(timings)) {
            Ok((message, output, done)) => {
                self.session.end(message, &output);
                self.tell(asked.0, Told::TurnDone(Box::new(done)));
            }
            Err(error) => {
                self.end_unsaid();
                self.tell_error(error, asked, Some(index));
            }
        }
        self.ring.settle();
    }

    fn cancel(&mut self) -> Result<()> {
        match std::mem::take(&mut self.phase) {
            Phase::Idle => return Err(no_turn()),
            Phase::Asking(asking) => {
                let (id, _) = asking.asked;
                // Who hears of the end may take its place at once.
                drop(asking);
                self.end_unsaid();
                let index = u32::try_from(self.session.num_turns()).unwrap_or(u32::MAX);
                self.tell(id, Told::TurnDone(Box::new(turn::never_begun(index))));
            }
            Phase::Running(running) => self.end_turn(*running),
        }
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
        let run = self.run();
        debug_assert!(size_of_val(&run) <= TASK_BYTES, "an idle session's task has {} bytes", size_of_val(&run));
        // By name, since a session's task starts those of its forks.
        let run: BoxFuture<'static, ()> = Box::pin(run);
        tokio::spawn(run);
    }

    fn edit(&mut self, asked: Answered, edit: wire::EditTurn) -> Result<()> {
        match &mut self.phase {
            Phase::Idle => Err(no_turn()),
            Phase::Asking(asking) => asking.edit(asked, edit),
            Phase::Running(running) => running.telling.generation().ok_or_else(no_turn)?.edit(stream_edit(edit)),
        }
    }

    fn grant(&mut self, tokens: u64) {
        let before = self.credits.unwrap_or(0);
        self.credits = Some(before.saturating_add(tokens).min(u64::MAX - 1));
        match &mut self.phase {
            Phase::Idle => {}
            Phase::Asking(asking) => asking.grant(tokens),
            Phase::Running(running) => {
                if let Some(generation) = running.telling.generation() {
                    generation.grant(tokens);
                }
            }
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

fn no_turn() -> Error {
    Error::new(Code::FailedPrecondition, "no turn is under way")
}
