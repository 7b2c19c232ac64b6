//! Conversations that the server remembers: what a turn computes, and what clients may do to one.

use std::{sync::Arc, time::Duration};

use candlewick::{
    config::{EngineConfig, StreamArgs},
    engine::{Health, fake::Gate},
    proto::candlewick::v1::{
        Ack, CancelTurn, ChatOptions, CloseSession, ContextPolicy, EditTurn, FinishReason, Fork,
        GenerateStreamResponse, Grant, Lease, Opened, Progress, RequestOptions, Rewind, SamplingParams, SessionError,
        SessionOpen, SessionRequest, SessionResponse, StopStrings, TokenizeRequest, Tool, ToolResult, TurnDone,
        UnloadRequest, UserTurn, chat_client::ChatClient, finish::Matched, generate_stream_response,
        models_client::ModelsClient, progress::Stage, session_request::Event as Say, session_response::Event as Told,
        tokens_client::TokensClient,
    },
};
use futures::channel::mpsc;
use tonic::{Code, Status, Streaming, transport::Channel};

use super::{
    Server, config, ids, read, request, soon,
    text::{continued, server, server_that_hangs, server_with},
    until,
};

/// One connection to a session.
struct Talk {
    say: mpsc::UnboundedSender<SessionRequest>,
    hear: Streaming<SessionResponse>,
    seq: u64,
    /// The id of what the last event answered.
    answers: Option<u64>,
}

impl Talk {
    async fn open(server: &Server, open: SessionOpen) -> (Self, Opened) {
        let mut talk = Self::connect(server, open).await;
        match talk.next().await {
            Told::Opened(opened) => (talk, opened),
            other => panic!("{other:?}"),
        }
    }

    async fn connect(server: &Server, open: SessionOpen) -> Self {
        Self::on(server.channel().await, open).await
    }

    async fn on(channel: Channel, open: SessionOpen) -> Self {
        let (say, said) = mpsc::unbounded();
        let seq = open.after_seq.unwrap_or(0);
        say.unbounded_send(SessionRequest { event: Some(Say::Open(open)), id: None }).unwrap();
        let mut client = ChatClient::new(channel);
        let hear = soon("headers", client.session(said)).await.unwrap().into_inner();
        Self { say, hear, seq, answers: None }
    }

    fn say(&self, event: Say) {
        self.say.unbounded_send(SessionRequest { event: Some(event), id: None }).unwrap();
    }

    /// With an id of its own.
    fn say_as(&self, id: u64, event: Say) {
        self.say.unbounded_send(SessionRequest { event: Some(event), id: Some(id) }).unwrap();
    }

    fn user(&self, content: &str, max_tokens: u32) {
        let sampling = Some(SamplingParams { max_tokens: Some(max_tokens), ..SamplingParams::default() });
        self.say(Say::User(UserTurn { content: content.into(), sampling, ..UserTurn::default() }));
    }

    async fn heard(&mut self) -> Result<Option<Told>, Status> {
        let response = soon("an event", self.hear.message()).await?;
        Ok(response.map(|response| {
            self.seq += 1;
            assert_eq!(response.seq, self.seq, "events are numbered without a hole");
            self.answers = response.answers;
            response.event.unwrap()
        }))
    }

    async fn next(&mut self) -> Told {
        self.heard().await.unwrap().expect("the session goes on")
    }

    /// What was said until the turn's end, and its end.
    async fn turn_done(&mut self) -> (String, TurnDone) {
        let mut text = String::new();
        loop {
            match self.next().await {
                Told::Delta(delta) => text.push_str(&delta.text),
                Told::TurnDone(done) => return (text, done),
                Told::TurnStarted(_) | Told::Progress(_) | Told::Evicting(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    async fn turn(&mut self, content: &str, max_tokens: u32) -> (String, TurnDone) {
        self.user(content, max_tokens);
        self.turn_done().await
    }

    async fn error(&mut self) -> SessionError {
        match self.next().await {
            Told::Error(error) => error,
            other => panic!("{other:?}"),
        }
    }
}

/// What a user says, for a turn of three tokens.
fn asked(content: &str) -> Say {
    let sampling = Some(SamplingParams { max_tokens: Some(3), ..SamplingParams::default() });
    Say::User(UserTurn { content: content.into(), sampling, ..UserTurn::default() })
}

fn come_back(opened: &Opened, after_seq: u64) -> SessionOpen {
    SessionOpen { session_id: Some(opened.session_id.clone()), after_seq: Some(after_seq), ..SessionOpen::default() }
}

fn prompt_tokens(done: &TurnDone) -> u32 {
    done.usage.unwrap().prompt_tokens
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_turns_with_other_traffic_compute_only_what_is_new() {
    let server = server().await;
    let (mut talk, opened) =
        Talk::open(&server, SessionOpen { system: Some("Sys".into()), ..SessionOpen::default() }).await;
    assert_eq!((opened.model.as_str(), opened.max_model_len), ("fake", 1024));
    let block_size = config().block_size as u32;
    let (mut conversation, mut before) = ("<system>Sys".to_owned(), 0);
    for k in 0..20_u32 {
        let question = format!("question {k}");
        conversation += &format!("<user>{question}<assistant>");
        let (said, done) = talk.turn(&question, 12).await;
        // What the model sees is all that was said so far, to the letter: the fake's answer depends on every id.
        assert_eq!(said, continued(&conversation, 12), "turn {k}");
        assert_eq!((done.turn_index, prompt_tokens(&done)), (k, conversation.len() as u32));
        let new = conversation.len() as u32 - before;
        assert!(done.computed_tokens <= new + block_size, "turn {k}: {done:?}");
        assert_eq!(done.recomputed_tokens, u32::from(k > 0), "the last token generated was never computed");
        conversation += &said;
        before = conversation.len() as u32;
        // More than the whole cache, so that nothing stays that nobody holds.
        for other in 0..8 {
            let other = ids(1000 * k + other, 600).into_iter().map(|id| id % 128).collect::<Vec<_>>();
            let answer = server.generation().await.generate_stream(request(&other, 4)).await.unwrap();
            assert_eq!(read(answer.into_inner()).await.token_ids().len(), 4);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancelled_turn_keeps_what_was_said() {
    let server = server().await;
    // With credits for seven tokens the turn stands still there.
    let (mut talk, _) = Talk::open(&server, SessionOpen { credits: Some(7), ..SessionOpen::default() }).await;
    talk.user("Hi", 100);
    let mut said = String::new();
    while said.len() < 7 {
        if let Told::Delta(delta) = talk.next().await {
            said += &delta.text;
        }
    }
    talk.say(Say::Cancel(CancelTurn {}));
    let (_, done) = talk.turn_done().await;
    assert_eq!((done.cancelled, done.undone, done.finish), (Some(true), None, None));
    assert_eq!((done.message.unwrap().content, done.usage.unwrap().completion_tokens), (said.clone(), 7));
    assert_eq!(said, continued("<user>Hi<assistant>", 7));
    talk.say(Say::Grant(Grant { tokens: 5 }));
    let (next, done) = talk.turn("More", 5).await;
    assert_eq!(next, continued(&format!("<user>Hi<assistant>{said}<user>More<assistant>"), 5));
    assert_eq!(done.turn_index, 1);
    talk.say(Say::Cancel(CancelTurn {}));
    assert_eq!(talk.error().await.code, Code::FailedPrecondition as i32);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_turn_that_said_nothing_is_undone() {
    let server = server().await;
    let (mut talk, _) = Talk::open(&server, SessionOpen { credits: Some(0), ..SessionOpen::default() }).await;
    talk.user("Never mind", 10);
    assert!(matches!(talk.next().await, Told::TurnStarted(_)));
    talk.say(Say::Cancel(CancelTurn {}));
    let (said, done) = talk.turn_done().await;
    assert_eq!((said.as_str(), done.undone), ("", Some(true)));
    talk.say(Say::Grant(Grant { tokens: 10 }));
    let (said, done) = talk.turn("Hi", 10).await;
    assert_eq!((said, done.turn_index), (continued("<user>Hi<assistant>", 10), 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_credit_a_turn_has_no_row() {
    let server = server().await;
    let (mut talk, _) = Talk::open(&server, SessionOpen { credits: Some(5), ..SessionOpen::default() }).await;
    talk.user("Hi", 20);
    let mut said = String::new();
    while said.len() < 5 {
        if let Told::Delta(delta) = talk.next().await {
            said += &delta.text;
        }
    }
    // Others run meanwhile; the session does not.
    let other = request(&[1, 2, 3], 50);
    let answer = server.generation().await.generate_stream(other).await.unwrap().into_inner();
    assert_eq!(read(answer).await.token_ids().len(), 50);
    assert_eq!(server.engine.telemetry().generated_tokens(), 55);
    talk.say(Say::Grant(Grant { tokens: 100 }));
    let (rest, done) = talk.turn_done().await;
    assert_eq!(said + &rest, continued("<user>Hi<assistant>", 20));
    assert_eq!(done.finish.unwrap().reason(), FinishReason::Length);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_is_refused_for_the_row_of_a_turn_without_credit() {
    let limits = EngineConfig { max_num_seqs: 1, ..config() };
    let server = server_with(None, limits, StreamArgs::default()).await;
    let (mut talk, _) = Talk::open(&server, SessionOpen { credits: Some(1), ..SessionOpen::default() }).await;
    talk.user("Hi", 20);
    while !matches!(talk.next().await, Told::Delta(_)) {}
    // As measured while others waited for turns like this one.
    server.engine.rates().record_ends(Duration::from_secs(3600), 1);
    let mut other = tonic::Request::new(request(&[1, 2, 3], 5));
    other.set_timeout(Duration::from_secs(60));
    let answer = server.generation().await.generate_stream(other).await.unwrap().into_inner();
    assert_eq!(read(answer).await.token_ids().len(), 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rewind_goes_back_and_the_conversation_goes_on_from_there() {
    let server = server().await;
    let (mut talk, _) = Talk::open(&server, SessionOpen::default()).await;
    let (first, _) = talk.turn("One", 8).await;
    talk.turn("Two", 8).await;
    talk.turn("Three", 8).await;
    talk.say(Say::Rewind(Rewind { turn_index: 1 }));
    assert!(matches!(talk.next().await, Told::Rewound(rewound) if rewound.turn_index == 1));
    let (said, done) = talk.turn("Other", 8).await;
    assert_eq!(said, continued(&format!("<user>One<assistant>{first}<user>Other<assistant>"), 8));
    assert_eq!(done.turn_index, 1);
    assert!(done.usage.unwrap().cached_tokens > 0, "{done:?}");
    talk.say(Say::Rewind(Rewind { turn_index: 7 }));
    let error = talk.error().await;
    assert_eq!(error.code, Code::InvalidArgument as i32);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fork_shares_what_was_said_and_goes_its_own_way() {
    let server = server().await;
    let (mut talk, _) = Talk::open(&server, SessionOpen::default()).await;
    let (first, _) = talk.turn("A question of some length, to fill blocks", 20).await;
    talk.say(Say::Fork(Fork { turn_index: None, tag: Some("mine".into()) }));
    let Told::Forked(forked) = talk.next().await else { panic!("a fork was asked for") };
    assert_eq!((forked.tag.as_deref(), forked.turns), (Some("mine"), 1));
    let id = SessionOpen { session_id: Some(forked.session_id), ..SessionOpen::default() };
    let (mut fork, _) = Talk::open(&server, id).await;
    let so_far = format!("<user>A question of some length, to fill blocks<assistant>{first}");
    fork.user("Left", 10);
    talk.user("Right", 10);
    let ((left, of_fork), (right, of_first)) = futures::join!(fork.turn_done(), talk.turn_done());
    assert_eq!(left, continued(&format!("{so_far}<user>Left<assistant>"), 10));
    assert_eq!(right, continued(&format!("{so_far}<user>Right<assistant>"), 10));
    assert_eq!((of_fork.recomputed_tokens, of_first.recomputed_tokens), (1, 1), "both had the blocks");
    // The tag comes back in an event, which is kept for whoever reads the session.
    talk.say(Say::Fork(Fork { turn_index: None, tag: Some("x".repeat(257)) }));
    let error = talk.error().await;
    assert_eq!((error.code, error.fields[0].field.as_str()), (Code::InvalidArgument as i32, "fork.tag"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_comes_back_reads_on_and_takes_over() {
    let server = server().await;
    let (mut talk, opened) = Talk::open(&server, SessionOpen::default()).await;
    talk.user("Hi", 200);
    while talk.seq < 5 {
        talk.next().await;
    }
    drop(talk);
    let mut again = Talk::connect(&server, come_back(&opened, 5)).await;
    let (rest, done) = again.turn_done().await;
    assert_eq!(done.usage.unwrap().completion_tokens, 200, "the turn went on");
    assert!(continued("<user>Hi<assistant>", 200).ends_with(&rest));
    let mut third = Talk::connect(&server, come_back(&opened, again.seq)).await;
    assert_eq!(again.heard().await.unwrap_err().code(), Code::Aborted);
    let (_, done) = third.turn("More", 3).await;
    assert_eq!(done.turn_index, 1);
    // What was acknowledged is not kept.
    third.say(Say::Ack(Ack { seq: third.seq }));
    let lost = async {
        loop {
            match Talk::connect(&server, come_back(&opened, 1)).await.heard().await {
                Ok(_) => tokio::task::yield_now().await,
                Err(status) => break status,
            }
        }
    };
    assert_eq!(soon("what was acknowledged goes", lost).await.code(), Code::DataLoss);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_ends_with_its_lease_or_when_it_is_closed() {
    let server = server().await;
    let lease = Some(Lease { ttl_ms: Some(0), ..Lease::default() });
    let (talk, opened) = Talk::open(&server, SessionOpen { lease, ..SessionOpen::default() }).await;
    assert_eq!(opened.ttl_ms, 0);
    drop(talk);
    let (mut other, closed) = Talk::open(&server, SessionOpen::default()).await;
    other.turn("Hi", 3).await;
    other.say(Say::Close(CloseSession {}));
    assert!(other.heard().await.unwrap().is_none(), "a closed session ends well");
    for opened in [opened, closed] {
        let gone = async {
            loop {
                match Talk::connect(&server, come_back(&opened, 0)).await.heard().await {
                    Err(status) if status.code() == Code::NotFound => break,
                    _ => tokio::task::yield_now().await,
                }
            }
        };
        soon("the session is forgotten", gone).await;
    }
    server.idle().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_running_turn_can_be_edited() {
    let server = server().await;
    let (mut talk, _) = Talk::open(&server, SessionOpen { credits: Some(3), ..SessionOpen::default() }).await;
    talk.user("Hi", 100);
    let whole = continued("<user>Hi<assistant>", 100);
    let mut said = String::new();
    while said.len() < 3 {
        if let Told::Delta(delta) = talk.next().await {
            said += &delta.text;
        }
    }
    talk.say(Say::Edit(EditTurn { max_tokens: Some(9), priority: Some(-5), ..EditTurn::default() }));
    talk.say(Say::Grant(Grant { tokens: 1000 }));
    let (rest, done) = talk.turn_done().await;
    assert_eq!(said + &rest, whole[..9]);
    assert_eq!(done.finish.unwrap().reason(), FinishReason::Length);
    talk.say(Say::Edit(EditTurn { temperature: Some(0.5), ..EditTurn::default() }));
    assert_eq!(talk.error().await.code, Code::FailedPrecondition as i32);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_stop_string_in_what_was_held_back_for_an_old_one_ends_the_turn() {
    let server = server().await;
    let whole = continued("<user>Hi<assistant>", 100);
    let (mut talk, _) = Talk::open(&server, SessionOpen { credits: Some(6), ..SessionOpen::default() }).await;
    // From the third character on all could be its beginning.
    let stop = vec![format!("{}never", &whole[2..6])];
    let sampling = Some(SamplingParams { max_tokens: Some(100), stop, ..SamplingParams::default() });
    talk.say(Say::User(UserTurn { content: "Hi".into(), sampling, ..UserTurn::default() }));
    let (mut said, mut tokens) = (String::new(), 0);
    while tokens < 6 {
        if let Told::Delta(delta) = talk.next().await {
            said += &delta.text;
            tokens += delta.token_ids.len();
        }
    }
    assert_eq!(said, whole[..2], "the rest is held back");
    let stop = whole[3..5].to_owned();
    talk.say(Say::Edit(EditTurn { stop: Some(StopStrings { stop: vec![stop.clone()] }), ..EditTurn::default() }));
    talk.say(Say::Grant(Grant { tokens: 1000 }));
    let (rest, done) = talk.turn_done().await;
    assert_eq!(said + &rest, whole[..3]);
    let finish = done.finish.unwrap();
    assert_eq!((finish.reason(), finish.matched), (FinishReason::Stop, Some(Matched::Stop(stop))));
    assert_eq!(done.usage.unwrap().completion_tokens, 6, "what came after it does not count");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_stop_strings_hold_nothing_back_that_is_not_theirs() {
    let server = server().await;
    let whole = continued("<user>Hi<assistant>", 20);
    let (mut talk, _) = Talk::open(&server, SessionOpen { credits: Some(6), ..SessionOpen::default() }).await;
    let sampling = Some(SamplingParams {
        max_tokens: Some(20),
        stop: vec![format!("{}never", &whole[2..6])],
        ..SamplingParams::default()
    });
    talk.say(Say::User(UserTurn { content: "Hi".into(), sampling, ..UserTurn::default() }));
    let (mut said, mut tokens) = (String::new(), 0);
    while tokens < 6 {
        if let Told::Delta(delta) = talk.next().await {
            said += &delta.text;
            tokens += delta.token_ids.len();
        }
    }
    let stop = StopStrings { stop: vec!["\u{1}never".into()] };
    talk.say(Say::Edit(EditTurn { stop: Some(stop), ..EditTurn::default() }));
    talk.say(Say::Grant(Grant { tokens: 1000 }));
    let (rest, done) = talk.turn_done().await;
    assert_eq!((said + &rest, done.finish.unwrap().reason()), (whole, FinishReason::Length));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_is_let_go_though_its_old_connection_is_found_dead_later() {
    let (server, gate) = server_that_hangs(0).await;
    // Frames of one connection are read in order: what was sent before a call that was answered has arrived.
    let arrived = async |channel: &Channel| {
        let request = TokenizeRequest { text: "x".into(), ..TokenizeRequest::default() };
        TokensClient::new(channel.clone()).tokenize(request).await.unwrap();
    };
    let (before, after) = (server.channel().await, server.channel().await);
    let mut old = Talk::on(before.clone(), SessionOpen::default()).await;
    let Told::Opened(opened) = old.next().await else { panic!("a session was opened") };
    let mut new = Talk::on(after.clone(), come_back(&opened, old.seq)).await;
    new.user("Hi", 5);
    assert!(matches!(new.next().await, Told::TurnStarted(_)));
    new.say.close_channel();
    arrived(&after).await;
    drop(old);
    arrived(&before).await;
    gate.open();
    let (said, _) = new.turn_done().await;
    assert_eq!(said, continued("<user>Hi<assistant>", 5));
    assert!(new.heard().await.unwrap().is_none(), "nothing is under way, and nothing more is said");
}

/// A session whose turn cannot be admitted while the engine hangs: its deadline cannot be met unless its prompt is cached,
/// and only the engine knows that. It waits, and has said so.
async fn waiting(server: &Server, open: SessionOpen) -> (Talk, Opened) {
    let options = RequestOptions { heartbeat_interval_ms: Some(100), ..RequestOptions::default() };
    let (mut talk, opened) = Talk::open(server, SessionOpen { options: Some(options), ..open }).await;
    let sampling = Some(SamplingParams { max_tokens: Some(100), ..SamplingParams::default() });
    let timeout_ms = Some(600_000);
    talk.say_as(1, Say::User(UserTurn { content: "Hi".into(), sampling, timeout_ms, ..UserTurn::default() }));
    let Told::Progress(Progress { stage: Some(Stage::Queued(queued)) }) = talk.next().await else {
        panic!("it is not admitted, and says where it stands")
    };
    assert_eq!(queued.position, 0);
    (talk, opened)
}

/// A server whose engine hangs in its fourth step, with a stream under way, and at whose rates no prompt is computed in ten
/// minutes.
async fn hung() -> (Server, Arc<Gate>, Streaming<GenerateStreamResponse>) {
    let (server, gate) = server_that_hangs(3).await;
    let mut other = server.generation().await.generate_stream(request(&[1, 2, 3], 50)).await.unwrap().into_inner();
    while !matches!(soon("a token", other.message()).await, Ok(Some(response)) if is_delta(&response)) {}
    until("the engine hangs", || gate.reached()).await;
    server.engine.rates().record_step(Duration::from_secs(1_000_000), 1000, 0);
    (server, gate, other)
}

fn is_delta(response: &GenerateStreamResponse) -> bool {
    matches!(response.event, Some(generate_stream_response::Event::Delta(_)))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_turn_that_waits_to_be_admitted_is_cancelled_at_once() {
    let (server, gate, mut other) = hung().await;
    let (mut talk, _) = waiting(&server, SessionOpen::default()).await;
    assert_eq!(server.engine.num_live(), 2);
    talk.say(Say::Rewind(Rewind { turn_index: 0 }));
    talk.say(Say::User(UserTurn::default()));
    talk.say(Say::Cancel(CancelTurn {}));
    for event in ["rewind", "user"] {
        let error = loop {
            match talk.next().await {
                Told::Progress(_) => {}
                Told::Error(error) => break error,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!((error.code, error.event.as_str()), (Code::FailedPrecondition as i32, event));
    }
    let (said, done) = talk.turn_done().await;
    assert_eq!((said.as_str(), done.turn_index, talk.answers), ("", 0, Some(1)));
    assert_eq!((done.cancelled, done.undone, done.finish), (Some(true), Some(true), None));
    assert_eq!(server.engine.num_live(), 1, "its place in the queue is free");
    gate.open();
    let (said, done) = talk.turn("Hi", 3).await;
    assert_eq!((said, done.turn_index), (continued("<user>Hi<assistant>", 3), 0), "the conversation is as it was");
    while soon("the rest", other.message()).await.unwrap().is_some() {}
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_whose_turn_waits_to_be_admitted_is_closed_and_missed_like_any_other() {
    let (server, gate, _other) = hung().await;
    let (mut closed, of_closed) = waiting(&server, SessionOpen::default()).await;
    closed.say(Say::Close(CloseSession {}));
    while let Some(told) = closed.heard().await.unwrap() {
        assert!(matches!(told, Told::Progress(_)), "{told:?}");
    }
    let lease = Some(Lease { ttl_ms: Some(0), ..Lease::default() });
    let (cut, of_cut) = waiting(&server, SessionOpen { lease, ..SessionOpen::default() }).await;
    drop(cut);
    for opened in [of_closed, of_cut] {
        let gone = async {
            loop {
                match Talk::connect(&server, come_back(&opened, 0)).await.heard().await {
                    Err(status) if status.code() == Code::NotFound => break,
                    _ => tokio::task::yield_now().await,
                }
            }
        };
        soon("the session is forgotten", gone).await;
    }
    until("their places are free", || server.engine.num_live() == 1).await;
    gate.open();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_said_to_a_turn_that_waits_to_be_admitted_is_done_once_it_is() {
    let (server, gate, _other) = hung().await;
    let (mut talk, _) = waiting(&server, SessionOpen { credits: Some(3), ..SessionOpen::default() }).await;
    talk.say(Say::Edit(EditTurn { max_tokens: Some(7), ..EditTurn::default() }));
    talk.say(Say::Edit(EditTurn { max_tokens: Some(9), ..EditTurn::default() }));
    talk.say(Say::Edit(EditTurn { priority: Some(-5), ..EditTurn::default() }));
    talk.say(Say::Grant(Grant { tokens: 1000 }));
    // All four have arrived.
    talk.say(Say::Rewind(Rewind { turn_index: 0 }));
    while matches!(talk.next().await, Told::Progress(_)) {}
    // Fast from now on.
    server.engine.rates().record_step(Duration::from_nanos(1), 1 << 40, 0);
    gate.open();
    let (said, done) = talk.turn_done().await;
    assert_eq!(said, continued("<user>Hi<assistant>", 9));
    assert_eq!((done.finish.unwrap().reason(), talk.answers), (FinishReason::Length, Some(1)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_turn_that_waited_and_was_refused_leaves_the_conversation_as_it_was() {
    let (server, gate, _other) = hung().await;
    let (mut talk, _) = waiting(&server, SessionOpen::default()).await;
    gate.open();
    let error = loop {
        match talk.next().await {
            Told::Progress(_) => {}
            Told::Error(error) => break error,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!((error.code, error.event.as_str()), (Code::DeadlineExceeded as i32, "user"));
    assert_eq!((talk.answers, error.turn_index), (Some(1), None));
    let (said, done) = talk.turn("Hi", 3).await;
    assert_eq!((said, done.turn_index), (continued("<user>Hi<assistant>", 3), 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_goes_down_with_the_server_as_soon_as_no_turn_is_under_way() {
    let (server, gate) = server_that_hangs(3).await;
    let (mut idle, _) = Talk::open(&server, SessionOpen::default()).await;
    let (mut busy, _) = Talk::open(&server, SessionOpen::default()).await;
    let (_says_nothing, said) = mpsc::unbounded::<SessionRequest>();
    let mut silent = ChatClient::new(server.channel().await).session(said).await.unwrap().into_inner();
    busy.user("Hi", 20);
    assert!(matches!(busy.next().await, Told::TurnStarted(_)));
    let mut health = server.engine.health();
    let served = server.shut_down();
    soon("health turns", health.wait_for(|health| *health == Health::Draining)).await.unwrap();
    gate.open();
    let (said, _) = busy.turn_done().await;
    assert_eq!(said, continued("<user>Hi<assistant>", 20), "the turn came to its end");
    for talk in [&mut idle, &mut busy] {
        assert_eq!(talk.heard().await.unwrap_err().code(), Code::Unavailable);
    }
    assert_eq!(soon("its end", silent.message()).await.unwrap_err().code(), Code::Unavailable);
    soon("the server ends, well before its drain timeout", served).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_that_can_never_fit_are_the_requests_fault_and_not_the_contexts() {
    let limits = EngineConfig { max_model_len: 160, ..config() };
    let server = server_with(None, limits, StreamArgs::default()).await;
    for policy in [ContextPolicy::Refuse, ContextPolicy::DropOldest] {
        let open = SessionOpen { context_policy: Some(policy.into()), ..SessionOpen::default() };
        let (mut talk, _) = Talk::open(&server, open).await;
        talk.turn("Hi", 5).await;
        for max_tokens in [0, 160, u32::MAX] {
            talk.user("More", max_tokens);
            let error = talk.error().await;
            assert_eq!(error.code, Code::InvalidArgument as i32, "{error:?}");
            assert_eq!(error.fields[0].field, "user.sampling.max_tokens");
        }
        let (_, done) = talk.turn("More", 5).await;
        assert_eq!((done.turn_index, done.forgotten_turns), (1, 0), "nothing was forgotten");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_context_is_refused_or_the_oldest_turns_are_forgotten() {
    let limits = EngineConfig { max_model_len: 160, ..config() };
    let server = server_with(None, limits, StreamArgs::default()).await;
    for policy in [ContextPolicy::Refuse, ContextPolicy::DropOldest] {
        let open = SessionOpen { context_policy: Some(policy.into()), ..SessionOpen::default() };
        let (mut talk, _) = Talk::open(&server, open).await;
        let first = "1".repeat(30);
        let (_, done) = talk.turn(&first, 10).await;
        assert_eq!(done.forgotten_turns, 0);
        let second = "2".repeat(30);
        let (said, _) = talk.turn(&second, 10).await;
        let third = "3".repeat(30);
        match policy {
            ContextPolicy::DropOldest => {
                let (told, done) = talk.turn(&third, 10).await;
                assert_eq!(done.forgotten_turns, 1);
                let kept = format!("<user>{second}<assistant>{said}<user>{third}<assistant>");
                assert_eq!(told, continued(&kept, 10));
            }
            _ => {
                talk.user(&third, 10);
                let error = talk.error().await;
                assert_eq!(error.code, Code::FailedPrecondition as i32);
                assert!(error.message.contains("context is full"), "{}", error.message);
                let (_, done) = talk.turn("4", 5).await;
                assert_eq!(done.turn_index, 2, "the conversation is as it was");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_whose_blocks_were_needed_is_told_and_goes_on_recomputed() {
    let limits = EngineConfig { num_blocks: 64, ..config() };
    let server = server_with(None, limits, StreamArgs::default()).await;
    let (mut talk, _) = Talk::open(&server, SessionOpen::default()).await;
    let question = "q".repeat(180);
    let (said, _) = talk.turn(&question, 20).await;
    let large = ids(1, 950).into_iter().map(|id| id % 128).collect::<Vec<_>>();
    let answer = server.generation().await.generate_stream(request(&large, 4)).await.unwrap();
    read(answer.into_inner()).await;
    loop {
        match talk.next().await {
            Told::Evicting(evicting) if evicting.lost == Some(true) => break,
            Told::Evicting(_) => {}
            other => panic!("{other:?}"),
        }
    }
    let (told, done) = talk.turn("More", 10).await;
    assert_eq!(told, continued(&format!("<user>{question}<assistant>{said}<user>More<assistant>"), 10));
    assert!(done.recomputed_tokens > 16, "{done:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_are_bounded_in_number_and_bytes() {
    let streams = StreamArgs { max_sessions: 1, max_session_bytes: 500, ..StreamArgs::default() };
    let server = server_with(None, config(), streams).await;
    let (mut talk, _) = Talk::open(&server, SessionOpen::default()).await;
    let refused = Talk::connect(&server, SessionOpen::default()).await.heard().await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    talk.user(&"x".repeat(600), 5);
    assert_eq!(talk.error().await.code, Code::ResourceExhausted as i32);
    for (length, code) in [(250, Code::ResourceExhausted), (257, Code::InvalidArgument)] {
        let (content, name) = ("x".repeat(200), Some("n".repeat(length)));
        talk.say(Say::User(UserTurn { content, name, ..UserTurn::default() }));
        assert_eq!(talk.error().await.code, code as i32, "a name of {length} bytes");
    }
    talk.say(Say::Fork(Fork::default()));
    assert_eq!(talk.error().await.code, Code::ResourceExhausted as i32);
    let (said, _) = talk.turn("Hi", 5).await;
    assert_eq!(said, continued("<user>Hi<assistant>", 5));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_that_a_session_is_opened_with_counts() {
    let streams = StreamArgs { max_session_bytes: 2000, ..StreamArgs::default() };
    let server = server_with(None, config(), streams).await;
    let long = || "x".repeat(2000);
    let tool = || Tool { name: "f".into(), description: Some(long()), ..Tool::default() };
    let chat = |chat: ChatOptions| SessionOpen { chat: Some(chat), ..SessionOpen::default() };
    let sampling = SamplingParams { stop: vec!["x".repeat(1000); 3], ..SamplingParams::default() };
    let options = RequestOptions { sampling: Some(sampling), ..RequestOptions::default() };
    let document = format!("{{\"text\": \"{}\"}}", long());
    let kwargs = format!("{{\"a\": [{}]}}", vec!["0"; 100].join(", "));
    for (what, open) in [
        ("tools", chat(ChatOptions { tools: vec![tool()], ..ChatOptions::default() })),
        ("a document", chat(ChatOptions { documents_json: vec![document], ..ChatOptions::default() })),
        ("many small values", chat(ChatOptions { chat_template_kwargs_json: Some(kwargs), ..ChatOptions::default() })),
        ("options", SessionOpen { options: Some(options), ..SessionOpen::default() }),
    ] {
        let refused = Talk::connect(&server, open).await.heard().await.unwrap_err();
        assert_eq!(refused.code(), Code::ResourceExhausted, "{what}: {refused}");
    }
    let small = Tool { name: "f".into(), ..Tool::default() };
    Talk::open(&server, chat(ChatOptions { tools: vec![small], ..ChatOptions::default() })).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_client_gets_wrong_is_named_and_the_session_goes_on() {
    let server = server().await;
    let named = async |open: SessionOpen| Talk::connect(&server, open).await.heard().await.unwrap_err();
    let sampling = Some(SamplingParams { top_p: Some(7.0), ..SamplingParams::default() });
    let options = Some(RequestOptions { sampling: sampling.clone(), ..RequestOptions::default() });
    let status = named(SessionOpen { options, ..SessionOpen::default() }).await;
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().starts_with("open.options.sampling.top_p"), "{}", status.message());
    let options = Some(RequestOptions { resumable: Some(true), ..RequestOptions::default() });
    let status = named(SessionOpen { options, ..SessionOpen::default() }).await;
    assert!(status.message().starts_with("open.options.resumable"), "{}", status.message());
    let unknown = SessionOpen { session_id: Some("nobody".into()), ..SessionOpen::default() };
    assert_eq!(named(unknown).await.code(), Code::NotFound);

    let (mut talk, _) = Talk::open(&server, SessionOpen::default()).await;
    talk.say(Say::User(UserTurn { content: "Hi".into(), sampling, ..UserTurn::default() }));
    let error = talk.error().await;
    assert_eq!((error.code, error.fields[0].field.as_str()), (Code::InvalidArgument as i32, "user.sampling.top_p"));
    talk.say(Say::Open(SessionOpen::default()));
    assert_eq!(talk.error().await.code, Code::InvalidArgument as i32);
    talk.user("Hi", 400);
    talk.user("Hi again", 5);
    let mut refused = None;
    let mut said = String::new();
    loop {
        match talk.next().await {
            Told::Error(error) => refused = Some(error.code),
            Told::Delta(delta) => said += &delta.text,
            Told::TurnDone(_) => break,
            _ => {}
        }
    }
    assert_eq!(refused, Some(Code::FailedPrecondition as i32), "one turn at a time");
    assert_eq!(said, continued("<user>Hi<assistant>", 400));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_says_which_event_it_answers() {
    let server = server().await;
    let (mut talk, _) = Talk::open(&server, SessionOpen::default()).await;
    assert_eq!(talk.answers, None);
    let cold = Some(SamplingParams { temperature: Some(-1.0), ..SamplingParams::default() });
    talk.say_as(9, Say::Rewind(Rewind { turn_index: 3 }));
    talk.say_as(8, Say::Cancel(CancelTurn {}));
    talk.say_as(7, Say::User(UserTurn { content: "Hi".into(), sampling: cold, ..UserTurn::default() }));
    talk.say_as(6, Say::Fork(Fork { turn_index: Some(2), tag: None }));
    talk.say_as(5, Say::Edit(EditTurn::default()));
    talk.say_as(4, Say::ToolResult(ToolResult { tool_call_id: "x".into(), ..ToolResult::default() }));
    talk.say(Say::Open(SessionOpen::default()));
    for (id, event, field) in [
        (Some(9), "rewind", Some("rewind.turn_index")),
        (Some(8), "cancel", None),
        (Some(7), "user", Some("user.sampling.temperature")),
        (Some(6), "fork", Some("fork.turn_index")),
        (Some(5), "edit", None),
        (Some(4), "tool_result", Some("tool_result.tool_call_id")),
        (None, "open", Some("open")),
    ] {
        let error = talk.error().await;
        let named = error.fields.first().map(|field| field.field.as_str());
        assert_eq!((talk.answers, error.event.as_str(), named), (id, event, field));
    }
    talk.say_as(20, asked("Hi"));
    assert!(matches!(talk.next().await, Told::TurnStarted(_)));
    assert_eq!(talk.answers, Some(20));
    assert!(matches!(talk.next().await, Told::Delta(_)));
    assert_eq!(talk.answers, None);
    talk.turn_done().await;
    assert_eq!(talk.answers, Some(20));
    talk.say_as(21, Say::Fork(Fork::default()));
    talk.say_as(22, Say::Rewind(Rewind { turn_index: 0 }));
    assert!(matches!(talk.next().await, Told::Forked(_)));
    assert_eq!(talk.answers, Some(21));
    assert!(matches!(talk.next().await, Told::Rewound(_)));
    assert_eq!(talk.answers, Some(22));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_edit_and_a_turn_that_fails_later_are_named_by_their_events() {
    let server = server().await;
    let (mut talk, _) = Talk::open(&server, SessionOpen { credits: Some(0), ..SessionOpen::default() }).await;
    // Without credit it stands still until its time is up.
    let timeout_ms = Some(2000);
    talk.say_as(1, Say::User(UserTurn { content: "Hi".into(), timeout_ms, ..UserTurn::default() }));
    let error = loop {
        match talk.next().await {
            Told::TurnStarted(_) | Told::Progress(_) => {}
            Told::Error(error) => break error,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!((error.code, error.turn_index), (Code::DeadlineExceeded as i32, Some(0)));
    assert_eq!((talk.answers, error.event.as_str()), (Some(1), "user"));
    talk.say_as(2, asked("Hi"));
    assert!(matches!(talk.next().await, Told::TurnStarted(_)));
    talk.say_as(3, Say::Edit(EditTurn { temperature: Some(-1.0), ..EditTurn::default() }));
    let error = talk.error().await;
    assert_eq!((talk.answers, error.event.as_str()), (Some(3), "edit"));
    assert_eq!((error.fields[0].field.as_str(), error.turn_index), ("edit.temperature", None));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_said_again_with_its_id_happens_once_on_any_connection() {
    let server = server().await;
    let (mut talk, opened) = Talk::open(&server, SessionOpen::default()).await;
    for _ in 0..3 {
        talk.say_as(1, asked("Hi"));
    }
    let (said, _) = talk.turn_done().await;
    let seq = talk.seq;
    drop(talk);
    let mut again = Talk::connect(&server, come_back(&opened, seq)).await;
    again.say_as(1, asked("Hi"));
    again.say_as(2, asked("More"));
    let (more, done) = again.turn_done().await;
    assert_eq!((again.answers, done.turn_index), (Some(2), 1), "one turn each");
    assert_eq!(more, continued(&format!("<user>Hi<assistant>{said}<user>More<assistant>"), 3));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_only_has_one_question_is_let_go_after_the_answer() {
    let server = server().await;
    let (mut talk, opened) = Talk::open(&server, SessionOpen::default()).await;
    talk.user("Hi", 5);
    talk.say.close_channel();
    let (said, _) = talk.turn_done().await;
    assert_eq!(said, continued("<user>Hi<assistant>", 5));
    assert!(talk.heard().await.unwrap().is_none(), "nothing is under way, and nothing more is said");
    let mut again = Talk::connect(&server, come_back(&opened, talk.seq)).await;
    let (_, done) = again.turn("More", 3).await;
    assert_eq!(done.turn_index, 1, "the session is still there");
    drop(again);
    until("nothing runs", || server.engine.telemetry().state().num_running == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_of_a_model_that_is_unloaded_ends_after_its_turn() {
    let (server, gate) = server_that_hangs(3).await;
    let (mut idle, _) = Talk::open(&server, SessionOpen::default()).await;
    let (mut busy, _) = Talk::open(&server, SessionOpen::default()).await;
    busy.user("hello", 12);
    until("the turn is under way", || server.engine.num_live() == 1).await;
    let mut models = ModelsClient::new(server.channel().await);
    let unload = UnloadRequest { name: "fake".into(), ..UnloadRequest::default() };
    assert!(!models.unload(unload).await.unwrap().into_inner().unloaded);
    let unloaded = |error: Status| {
        assert_eq!(error.code(), Code::Unavailable);
        assert!(error.message().contains("the model was unloaded"), "{error:?}");
    };
    unloaded(idle.heard().await.unwrap_err());
    gate.open();
    let (said, _) = busy.turn_done().await;
    assert_eq!(said, continued("<user>hello<assistant>", 12));
    unloaded(busy.heard().await.unwrap_err());
}
