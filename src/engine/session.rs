//! A conversation that the engine remembers: its messages, the ids that the model has seen, and a lease on their blocks.
//!
//! One turn at a time. [`Session::ask`] has the engine render all messages and admit them, [`Session::begun`] takes what came
//! of it, and whoever reads the stream tells [`Session::end`] what was said. Only what was not computed before is computed: the next prompt keeps the ids of the last
//! one and of its answer wherever the template lets it ([`History`]), and the lease keeps their blocks.

use std::sync::{Arc, atomic::Ordering};

use futures::future::BoxFuture;
use tokio::sync::watch;

use super::{
    Engine, Generation, History, LeaseState, Prompt, Request, StreamOptions, admission,
    lease::Lease,
    sequence::LeaseHolder as _,
    session_memory::{Room, SessionMemory},
    step::Command,
};
use crate::{
    error::{Code, Error, Result},
    ids::TokenId,
    text::{ChatMessage, ChatPrompt, Role, ToolCall},
};

/// What happens where a conversation no longer fits into the context.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WhenFull {
    /// The turn is refused, and the conversation stays as it was.
    #[default]
    Refuse,
    /// The oldest turns are forgotten, as many as needed; the messages that the session began with stay.
    DropOldest,
}

/// What a session is opened with.
#[derive(Clone, Debug)]
pub struct SessionSettings {
    /// Messages before the first turn, tools and variables of the template.
    pub chat: ChatPrompt,
    /// Only requests with the same salt share cached prefixes.
    pub cache_salt: Option<String>,
    /// Whether its blocks go last.
    pub pinned: bool,
    /// Most bytes of keys and values to keep between two turns; none: as many as there are.
    pub lease_bytes: Option<u64>,
    /// What happens where it no longer fits.
    pub when_full: WhenFull,
    /// Most bytes of its messages and of all that is said beside them.
    pub max_bytes: usize,
    /// Bytes that whoever opens it keeps for it besides.
    pub other_bytes: usize,
    /// What all sessions together hold.
    pub memory: SessionMemory,
}

/// What one turn asks beside its messages: the prompt, the salt and the lease are the session's.
#[derive(Clone, Debug)]
pub struct Turn {
    /// Its messages.
    pub messages: Vec<ChatMessage>,
    /// Everything else; the prompt is not looked at.
    pub request: Request,
}

/// What a turn begins with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TurnStart {
    /// Counts the turns of the conversation from 0; those that were rewound or forgotten do not count.
    pub index: usize,
    /// Tokens of the conversation so far that the template writes differently now, so that they are computed anew.
    pub rewritten_tokens: usize,
    /// Turns that were forgotten to make room.
    pub forgotten_turns: usize,
}

/// Where a turn begins.
#[derive(Clone, Copy, Debug)]
struct Start {
    messages: usize,
    marks: usize,
}

/// A turn under way.
enum UnderWay {
    /// The engine has yet to admit it; the conversation is the one before it.
    Asked,
    /// It is the conversation's last.
    Begun {
        rendered: String,
        prompt: Arc<[TokenId]>,
        /// The conversation before the turn, where turns were forgotten to make room for it.
        before: Option<Conversation>,
    },
}

/// A message, and the memory that it takes: all conversations that begin alike share it.
struct Said {
    message: ChatMessage,
    _room: Room,
}

/// What was said, and where each turn begins in it.
#[derive(Clone)]
struct Conversation {
    messages: Vec<Arc<Said>>,
    turns: Vec<Start>,
}

/// What became of a turn that the engine was asked to admit, for [`Session::begun`].
pub struct Beginning {
    outcome: Result<Generation>,
    /// The conversation with the turn.
    conversation: Conversation,
    forgotten_turns: usize,
}

/// See the [module](self).
pub struct Session {
    engine: Engine,
    /// Of the chat, all but the messages.
    settings: SessionSettings,
    messages: Vec<Arc<Said>>,
    /// For what is said beside the messages, which forks share.
    beside: Arc<Room>,
    /// For what is this one's alone.
    _own: Room,
    history: Arc<History>,
    /// For that, shared with it.
    history_room: Arc<Room>,
    turns: Vec<Start>,
    under_way: Option<UnderWay>,
    lease: Lease,
}

impl Engine {
    /// Opens a conversation. Nothing is computed before its first turn.
    ///
    /// # Errors
    /// `FailedPrecondition` where the model has no tokenizer or chat template, `ResourceExhausted` where the messages are
    /// more than one session may hold, or all together.
    pub fn open_session(&self, mut settings: SessionSettings) -> Result<Session> {
        let text = self.text();
        if text.tokenizer.is_none() || text.chat_template.is_none() {
            let why = "a session needs a model with a tokenizer and a chat template: use Generation instead";
            return Err(Error::new(Code::FailedPrecondition, why));
        }
        let (per_token, groups) = (self.info().kv_bytes_per_token as usize, self.config().kv_groups);
        let tokens_in = |bytes| groups.tokens_in(per_token, usize::try_from(bytes).unwrap_or(usize::MAX));
        let most = settings.lease_bytes.map_or(usize::MAX, tokens_in);
        let lease = Lease::new(self.clone(), self.next_lease(), settings.pinned, most);
        let first = std::mem::take(&mut settings.chat.messages);
        let memory = settings.memory.clone();
        let mut session = Session {
            engine: self.clone(),
            beside: memory.take(settings.bytes_beside())?.into(),
            _own: memory.take(0)?,
            history_room: memory.take(0)?.into(),
            messages: Vec::new(),
            settings,
            history: Arc::default(),
            turns: Vec::new(),
            under_way: None,
            lease,
        };
        session.messages = session.take_in(first)?;
        Ok(session)
    }

    /// Whether a request's prompt and answer fit into the context.
    async fn fits(&self, request: Request) -> bool {
        admission::fits(&self.inner.text, self.config(), request).await
    }

    fn next_lease(&self) -> u64 {
        self.inner.next_lease.fetch_add(1, Ordering::Relaxed)
    }
}

impl Session {
    /// What its lease holds, as it changes.
    #[must_use]
    pub fn lease(&self) -> watch::Receiver<LeaseState> {
        self.lease.state()
    }

    /// Whether its blocks go last.
    #[must_use]
    pub fn is_pinned(&self) -> bool {
        self.settings.pinned
    }

    /// Turns that were begun and neither rewound nor forgotten.
    #[must_use]
    pub fn num_turns(&self) -> usize {
        self.turns.len()
    }

    /// All messages, those of a turn under way included.
    #[must_use]
    pub fn messages(&self) -> impl ExactSizeIterator<Item = &ChatMessage> {
        self.messages.iter().map(|said| &said.message)
    }

    /// The ids of the last prompt and its answer.
    #[must_use]
    pub fn ids(&self) -> &[TokenId] {
        self.history.ids()
    }

    /// Calls of the last answer that no tool has answered.
    #[must_use]
    pub fn open_calls(&self) -> Vec<&str> {
        let is_last_answer = |said: &Arc<Said>| said.message.role == Role::Assistant;
        let Some(at) = self.messages.iter().rposition(is_last_answer) else { return Vec::new() };
        let after = &self.messages[at..];
        let answered = |id: &str| after.iter().any(|said| said.message.tool_call_id.as_deref() == Some(id));
        after[0].message.tool_calls.iter().map(|call| call.id.as_str()).filter(|id| !answered(id)).collect()
    }

    /// Has the engine admit a turn: [`ask`](Self::ask) and [`begun`](Self::begun) in one.
    ///
    /// # Errors
    /// Those of both.
    pub async fn begin(&mut self, turn: Turn) -> Result<(Generation, TurnStart)> {
        let beginning = self.ask(turn)?.await;
        self.begun(beginning)
    }

    /// What has the engine admit a turn. It borrows nothing, so the conversation can be looked at and forked meanwhile; what
    /// comes of it goes to [`begun`](Self::begun). Who drops it instead ends the turn: [`end`](Self::end), with nothing said.
    ///
    /// # Errors
    /// `FailedPrecondition` while a turn is under way, `InvalidArgument` where the turn can never work,
    /// `ResourceExhausted` where its messages are too many bytes.
    pub fn ask(&mut self, turn: Turn) -> Result<BoxFuture<'static, Beginning>> {
        if self.under_way.is_some() {
            return Err(Error::new(Code::FailedPrecondition, "a turn is under way: wait for its end, or cancel it"));
        }
        if turn.request.params.num_sequences() > 1 {
            return Err(Error::invalid("n", "must be 1 in a session: a conversation goes one way"));
        }
        // What can never work is no matter of how full the context is.
        turn.request.params.validate()?;
        let context = self.engine.config().max_model_len;
        if let Some(max_tokens) = turn.request.params.max_tokens.filter(|&most| most as usize >= context) {
            let why =
                format!("is {max_tokens}, but the context of {context} tokens must hold the conversation as well");
            return Err(Error::invalid("max_tokens", why));
        }
        let asked = self.take_in(turn.messages)?;
        let (engine, when_full) = (self.engine.clone(), self.settings.when_full);
        let request = self.request(turn.request);
        let mut conversation = Conversation { messages: self.messages.clone(), turns: self.turns.clone() };
        let start = Start { messages: conversation.messages.len(), marks: self.history.num_marks() };
        conversation.turns.push(start);
        conversation.messages.extend(asked);
        let chat = self.settings.chat.with_messages(Vec::new());
        self.under_way = Some(UnderWay::Asked);
        Ok(Box::pin(async move {
            let mut forgotten_turns = 0;
            let with = |conversation: &Conversation| Request {
                prompt: Prompt::Chat(chat.with_messages(conversation.said())),
                ..request.clone()
            };
            let outcome = loop {
                let outcome = engine.generate(with(&conversation)).await;
                if when_full == WhenFull::Refuse || !outcome.as_ref().is_err_and(is_too_long) {
                    break outcome;
                }
                // The oldest is enough as a rule. Where it is not, how many must go is found without a try for each.
                let steps = match forgotten_turns {
                    0 => 1,
                    _ => conversation.steps_to_fit(&engine, &with).await,
                };
                match conversation.forget(steps) {
                    0 => break outcome,
                    gone => forgotten_turns += gone,
                }
            };
            Beginning { outcome, conversation, forgotten_turns }
        }))
    }

    /// Takes what came of a turn that was asked for.
    ///
    /// # Errors
    /// As [`Engine::generate`]; `FailedPrecondition` where the context is full and the session was not opened to forget.
    /// The conversation is then as it was.
    pub fn begun(&mut self, beginning: Beginning) -> Result<(Generation, TurnStart)> {
        let Beginning { outcome, conversation, forgotten_turns } = beginning;
        let generation = outcome.map_err(|error| {
            self.under_way = None;
            if is_too_long(&error) && self.settings.when_full == WhenFull::Refuse { full(&error) } else { error }
        })?;
        let messages = std::mem::replace(&mut self.messages, conversation.messages);
        let turns = std::mem::replace(&mut self.turns, conversation.turns);
        let rewritten_tokens = self.history.num_rewritten(generation.prompt());
        self.under_way = Some(UnderWay::Begun {
            rendered: generation.rendered().unwrap_or_default().to_owned(),
            prompt: generation.prompt().into(),
            before: (forgotten_turns > 0).then_some(Conversation { messages, turns }),
        });
        Ok((generation, TurnStart { index: self.turns.len() - 1, rewritten_tokens, forgotten_turns }))
    }

    /// The turn under way has ended: the assistant said this, in these tokens. Where it said nothing, the turn is undone,
    /// and what was forgotten for it is known again: no template knows of a question without an answer.
    pub fn end(&mut self, answer: ChatMessage, output: &[TokenId]) {
        let Some(UnderWay::Begun { rendered, prompt, before }) = self.under_way.take() else { return };
        if output.is_empty() {
            if let Some(before) = before {
                (self.messages, self.turns) = (before.messages, before.turns);
            } else if let Some(start) = self.turns.pop() {
                self.messages.truncate(start.messages);
            }
            return;
        }
        let room = self.settings.memory.overdraw(message_bytes(&answer));
        self.messages.push(Arc::new(Said { message: answer, _room: room }));
        if let Some(tokenizer) = &self.engine.text().tokenizer {
            Arc::make_mut(&mut self.history).push(tokenizer, (&rendered, &prompt), output);
        }
        self.count_history();
    }

    /// Counts the history, which is this session's own now.
    fn count_history(&mut self) {
        self.history_room = self.settings.memory.overdraw(self.history.num_bytes()).into();
    }

    /// Adds messages that begin no turn: the answers of tools, until the last one is here.
    ///
    /// # Errors
    /// `ResourceExhausted` where its messages are too many bytes.
    pub fn add(&mut self, message: ChatMessage) -> Result<()> {
        let said = self.take_in(vec![message])?;
        self.messages.extend(said);
        Ok(())
    }

    /// Goes back to before turn `index`, as if it and those after it had not been.
    ///
    /// # Errors
    /// `InvalidArgument` where there is no such turn, `FailedPrecondition` while one is under way.
    pub fn rewind(&mut self, index: usize) -> Result<()> {
        if self.under_way.is_some() {
            return Err(Error::new(Code::FailedPrecondition, "a turn is under way: wait for its end, or cancel it"));
        }
        let Some(&start) = self.turns.get(index) else {
            let why = format!("is {index}, but the conversation has {} turns", self.turns.len());
            return Err(Error::invalid("turn", why));
        };
        self.turns.truncate(index);
        self.messages.truncate(start.messages);
        Arc::make_mut(&mut self.history).truncate(start.marks);
        self.count_history();
        Ok(())
    }

    /// Another conversation that begins as this one does, up to before turn `index`; a turn under way is not part of it.
    /// The blocks are shared until either writes, and so are messages and ids.
    ///
    /// # Errors
    /// `InvalidArgument` where there is no such turn; `ResourceExhausted` where the engine has too much to do, or all sessions
    /// together hold too much.
    pub fn fork(&self, index: Option<usize>) -> Result<Self> {
        let Conversation { messages, turns } = self.settled();
        let done = turns.len();
        let own = size_of_val(messages.as_slice()) + size_of_val(turns.as_slice()) + self.settings.bytes_of_fork();
        let mut fork = Self {
            engine: self.engine.clone(),
            settings: SessionSettings {
                chat: self.settings.chat.with_messages(Vec::new()),
                cache_salt: self.settings.cache_salt.clone(),
                memory: self.settings.memory.clone(),
                ..self.settings
            },
            messages,
            beside: self.beside.clone(),
            _own: self.settings.memory.take(own)?,
            history: self.history.clone(),
            history_room: self.history_room.clone(),
            turns,
            under_way: None,
            lease: self.lease.sibling(self.engine.next_lease()),
        };
        match index {
            Some(index) if index < done => fork.rewind(index)?,
            Some(index) if index > done => {
                return Err(Error::invalid("turn", format!("is {index}, but {done} turns have ended")));
            }
            _ => {}
        }
        if let Some(life) = self.engine.inner.supervised.life() {
            life.command(Command::ForkLease {
                parent: self.lease.control.id(),
                child: fork.lease.control.clone(),
                num_tokens: fork.history.ids().len(),
            })?;
        }
        Ok(fork)
    }

    /// The conversation without the turn under way, and with what was forgotten for it.
    fn settled(&self) -> Conversation {
        let mut conversation = Conversation { messages: self.messages.clone(), turns: self.turns.clone() };
        match &self.under_way {
            None | Some(UnderWay::Asked) => {}
            Some(UnderWay::Begun { before: Some(before), .. }) => conversation = before.clone(),
            Some(UnderWay::Begun { before: None, .. }) => {
                if let Some(start) = conversation.turns.pop() {
                    conversation.messages.truncate(start.messages);
                }
            }
        }
        conversation
    }

    /// A turn's request, but for its prompt.
    fn request(&self, request: Request) -> Request {
        Request {
            prompt: Prompt::Tokens(Vec::new()),
            cache_salt: self.settings.cache_salt.clone(),
            stream: StreamOptions {
                lease: Some(self.lease.control.clone()),
                history: Some(self.history.clone()),
                ..request.stream
            },
            ..request
        }
    }

    /// Takes messages in, if there is room for them.
    fn take_in(&self, messages: Vec<ChatMessage>) -> Result<Vec<Arc<Said>>> {
        let said: usize = self.messages().chain(&messages).map(message_bytes).sum();
        let total = said + self.settings.bytes_beside();
        if total > self.settings.max_bytes {
            let most = self.settings.max_bytes;
            let why = format!(
                "the conversation, its tools and options would have {total} bytes, a session holds {most} \
                 (--max-session-bytes): rewind, or say less"
            );
            // No time makes room for it.
            return Err(Error::new(Code::FailedPrecondition, why));
        }
        let said = |message: ChatMessage| -> Result<_> {
            let room = self.settings.memory.take(message_bytes(&message))?;
            Ok(Arc::new(Said { message, _room: room }))
        };
        messages.into_iter().map(said).collect()
    }
}

impl SessionSettings {
    /// Bytes of all but the messages.
    fn bytes_beside(&self) -> usize {
        self.chat.bytes_beside() + self.other_bytes
    }

    /// Bytes of them that a fork does not share.
    fn bytes_of_fork(&self) -> usize {
        [&self.chat.chat_template, &self.cache_salt].into_iter().flatten().map(String::len).sum()
    }
}

/// What a message takes, its place in a conversation included.
fn message_bytes(message: &ChatMessage) -> usize {
    let call = |call: &ToolCall| size_of::<ToolCall>() + call.id.len() + call.name.len() + call.arguments.len();
    let others = [&message.reasoning, &message.name, &message.tool_call_id];
    size_of::<Said>()
        + size_of::<Arc<Said>>()
        + message.content.len()
        + others.into_iter().flatten().map(String::len).sum::<usize>()
        + message.tool_calls.iter().map(call).sum::<usize>()
}

impl Conversation {
    /// All messages.
    fn said(&self) -> Vec<ChatMessage> {
        self.messages.iter().map(|said| said.message.clone()).collect()
    }

    /// How many steps of [`forget_oldest`](Self::forget_oldest) must be taken until the request made of it fits; all there are
    /// where none will do. To look whether one fits is to render and to encode all of it, so it is halved, not counted.
    async fn steps_to_fit(&self, engine: &Engine, request: &(impl Fn(&Self) -> Request + Sync)) -> usize {
        let mut all = self.clone();
        let (mut least, mut most) = (1, std::iter::from_fn(|| (all.forget_oldest() > 0).then_some(())).count());
        while least < most {
            let middle = least.midpoint(most);
            let mut shorter = self.clone();
            shorter.forget(middle);
            match engine.fits(request(&shorter)).await {
                true => most = middle,
                false => least = middle + 1,
            }
        }
        least
    }

    /// Takes so many steps of [`forget_oldest`](Self::forget_oldest), as far as there are as many; says how many turns that were.
    fn forget(&mut self, steps: usize) -> usize {
        (0..steps).map(|_| self.forget_oldest()).sum()
    }

    /// Forgets the oldest turns up to the next one that the user began, so that no tool answers a call that nobody
    /// remembers; says how many. None where that is none but the first.
    fn forget_oldest(&mut self) -> usize {
        let begins = |turn: &Start| self.messages.get(turn.messages).map(|said| said.message.role);
        let next = self.turns.iter().skip(1).position(|turn| begins(turn) == Some(Role::User));
        let (Some(first), Some(gone)) = (self.turns.first().copied(), next.map(|at| at + 1)) else { return 0 };
        let kept = self.turns.split_off(gone);
        let end = kept.first().map_or(first.messages, |next| next.messages);
        self.messages.drain(first.messages..end);
        let messages = end - first.messages;
        self.turns = kept.into_iter().map(|turn| Start { messages: turn.messages - messages, ..turn }).collect();
        gone
    }
}

/// Whether a request was refused because its prompt, or its prompt and `max_tokens`, are more than the context.
fn is_too_long(error: &Error) -> bool {
    let field = error.violations.first().map(|violation| violation.field.as_str());
    error.code == Code::InvalidArgument && matches!(field, Some("prompt" | "prompt.text" | "max_tokens"))
}

fn full(error: &Error) -> Error {
    let why = "the context is full: rewind, ask for fewer tokens, or open a session that forgets its oldest turns";
    Error::new(Code::FailedPrecondition, format!("{why} ({})", error.message))
}
