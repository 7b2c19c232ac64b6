//! Conversations behind the API: what is forgotten where the context is full, and what is known again.

use candlewick::{
    config::{EngineConfig, StreamArgs},
    engine::{Event, Generation, Prompt, Request, Session, SessionMemory, SessionSettings, Turn, TurnStart, WhenFull},
    error::{Code, Result},
    params::SamplingParams,
    text::{ChatMessage, Role},
};
use futures::StreamExt;

use crate::{
    engine::config,
    grpc::{Server, text::server_with},
};

/// A server whose context holds two turns of thirty characters, and not three.
async fn small_server() -> Server {
    server_with(None, EngineConfig { max_model_len: 160, ..config() }, StreamArgs::default()).await
}

fn open(server: &Server, max_bytes: usize) -> Result<Session> {
    open_with(server, Vec::new(), max_bytes, &SessionMemory::new(usize::MAX))
}

fn open_with(server: &Server, messages: Vec<ChatMessage>, max_bytes: usize, memory: &SessionMemory) -> Result<Session> {
    server.engine.open_session(SessionSettings {
        chat: messages.into(),
        cache_salt: None,
        pinned: false,
        lease_bytes: None,
        when_full: WhenFull::DropOldest,
        max_bytes,
        other_bytes: 0,
        memory: memory.clone(),
    })
}

fn said(session: &Session) -> Vec<ChatMessage> {
    session.messages().cloned().collect()
}

async fn begin(session: &mut Session, role: Role, content: &str) -> Result<(Generation, TurnStart)> {
    let params = SamplingParams { max_tokens: Some(10), ignore_eos: true, ..SamplingParams::default() };
    let request = Request { params, ..Request::new(Prompt::Tokens(Vec::new())) };
    session.begin(Turn { messages: vec![ChatMessage::new(role, content)], request }).await
}

/// A turn of thirty characters, and its answer of ten.
async fn turn(session: &mut Session, role: Role, letter: &str) -> TurnStart {
    turn_of(session, role, &letter.repeat(30)).await
}

/// A turn, and its answer of ten characters.
async fn turn_of(session: &mut Session, role: Role, content: &str) -> TurnStart {
    let (mut generation, start) = begin(session, role, content).await.unwrap();
    let (mut text, mut tokens) = (String::new(), Vec::new());
    while let Some(event) = generation.next().await {
        if let Event::Delta(delta) = event.unwrap() {
            text += &delta.text;
            tokens.extend(delta.tokens.iter().map(|token| token.id));
        }
    }
    session.end(ChatMessage::new(Role::Assistant, text), &tokens);
    start
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tools_answer_is_forgotten_with_its_call() {
    let server = small_server().await;
    let mut session = open(&server, 1 << 20).unwrap();
    turn(&mut session, Role::User, "a").await;
    turn(&mut session, Role::Tool, "b").await;
    let start = turn(&mut session, Role::User, "c").await;
    assert_eq!((start.index, start.forgotten_turns), (0, 2));
    let roles: Vec<_> = session.messages().map(|message| message.role).collect();
    assert_eq!(roles, [Role::User, Role::Assistant]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn as_many_turns_as_must_be_are_forgotten_and_are_not_tried_one_after_another() {
    // With its marks and its answer a turn of a character takes 28 tokens, one of a hundred 127.
    for (turns, forgotten) in [(2, 1), (3, 2), (5, 4)] {
        let server = small_server().await;
        let mut session = open(&server, 1 << 20).unwrap();
        for _ in 0..turns {
            assert_eq!(turn_of(&mut session, Role::User, "a").await.forgotten_turns, 0);
        }
        let start = turn_of(&mut session, Role::User, &"b".repeat(100)).await;
        assert_eq!((start.index, start.forgotten_turns), (turns - forgotten, forgotten));
        let tried = server.engine.telemetry().refused(Code::InvalidArgument);
        assert_eq!(tried, forgotten.min(2) as u64, "a request that is too long is refused, and counted");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_waits_for_its_answer_is_not_forgotten_for_it() {
    let server = small_server().await;
    let mut session = open(&server, 1 << 20).unwrap();
    turn(&mut session, Role::User, "a").await;
    let before = said(&session);
    let error = begin(&mut session, Role::Tool, &"b".repeat(120)).await.err().unwrap();
    assert_eq!(error.code, Code::InvalidArgument);
    assert_eq!((said(&session), session.num_turns()), (before, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_forgotten_for_a_turn_that_is_undone_is_known_again() {
    let server = small_server().await;
    let mut session = open(&server, 1 << 20).unwrap();
    turn(&mut session, Role::User, "a").await;
    turn(&mut session, Role::User, "b").await;
    let before = said(&session);
    let (generation, start) = begin(&mut session, Role::User, &"c".repeat(30)).await.unwrap();
    assert_eq!((start.index, start.forgotten_turns, session.num_turns()), (1, 1, 2));
    // Others that begin like this one do not know of the turn under way, nor of what it cost.
    let fork = session.fork(None).unwrap();
    assert_eq!((said(&fork), fork.num_turns()), (before.clone(), 2));
    drop(generation);
    session.end(ChatMessage::new(Role::Assistant, ""), &[]);
    assert_eq!((said(&session), session.num_turns()), (before, 2));
    assert_eq!(turn(&mut session, Role::User, "d").await.forgotten_turns, 1, "and it can go on");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fork_beside_a_turn_under_way_begins_as_the_last_turn_left_it() {
    let server = small_server().await;
    let mut session = open(&server, 1 << 20).unwrap();
    turn(&mut session, Role::User, "a").await;
    let before = said(&session);
    let (_generation, _) = begin(&mut session, Role::User, "b").await.unwrap();
    for (index, num_messages) in [(None, 2), (Some(1), 2), (Some(0), 0)] {
        let fork = session.fork(index).unwrap();
        assert_eq!(said(&fork), before[..num_messages], "before turn {index:?}");
    }
    assert_eq!(session.fork(Some(2)).err().unwrap().violations[0].field, "turn");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_and_ids_count_among_the_bytes_of_a_conversation() {
    let server = small_server().await;
    let mut session = open(&server, 700).unwrap();
    let long = || Some("x".repeat(600));
    let message = ChatMessage::new(Role::Tool, "");
    for message in [
        ChatMessage { name: long(), ..message.clone() },
        ChatMessage { tool_call_id: long(), ..message.clone() },
        ChatMessage { reasoning: long(), ..message.clone() },
    ] {
        assert_eq!(session.add(message).unwrap_err().code, Code::FailedPrecondition);
    }
    session.add(message).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forks_share_what_was_said_and_all_conversations_share_their_memory() {
    let server = server_with(None, config(), StreamArgs::default()).await;
    let long = || vec![ChatMessage::new(Role::System, "s".repeat(400))];
    let memory = SessionMemory::new(12_000);
    let mut session = open_with(&server, long(), 2000, &memory).unwrap();
    turn(&mut session, Role::User, "a").await;
    let one = memory.used();
    assert!((1000..5000).contains(&one), "the messages, and the prompt that was made of them: {one}");
    let mut forks: Vec<_> = (0..40).map(|_| session.fork(None).unwrap()).collect();
    let each = (memory.used() - one) / 40;
    assert!(each < 100, "a fork takes {each} bytes");
    turn(&mut forks[0], Role::User, "b").await;
    let spoke = memory.used() - one - 40 * each;
    assert!(spoke > 400, "who goes on remembers a prompt of its own: {spoke}");

    let mut others = Vec::new();
    let refused = loop {
        match open_with(&server, long(), 2000, &memory) {
            Ok(other) => others.push(other),
            Err(refused) => break refused,
        }
    };
    assert!(refused.code == Code::ResourceExhausted && refused.message.contains("--session-memory-bytes"));
    let left = 12_000 - memory.used();
    let more = ChatMessage::new(Role::User, "c".repeat(left));
    assert_eq!(session.add(more).unwrap_err().code, Code::ResourceExhausted);
    drop(session);
    assert!(memory.used() > one, "the forks have it all");
    drop((forks, others));
    assert_eq!(memory.used(), 0);
}
