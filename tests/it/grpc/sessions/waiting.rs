//! Turns that wait to be admitted.

use super::*;

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
        forgotten(&server, &opened).await;
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
    talk.say(Say::Edit(EditTurn { temperature: Some(-1.0), max_tokens: Some(2), ..EditTurn::default() }));
    talk.say(Say::Edit(EditTurn { priority: Some(-5), ..EditTurn::default() }));
    talk.say(Say::Grant(Grant { tokens: 1000 }));
    // All five have arrived.
    talk.say(Say::Rewind(Rewind { turn_index: 0 }));
    for field in [Some("edit.temperature"), None] {
        let error = loop {
            match talk.next().await {
                Told::Progress(_) => {}
                Told::Error(error) => break error,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(error.fields.first().map(|error| error.field.as_str()), field, "a wrong one changes nothing");
    }
    // Fast from now on.
    server.engine.rates().record_step(Duration::from_nanos(1), 1 << 40, 0);
    gate.open();
    let started = loop {
        match talk.next().await {
            Told::Progress(_) => {}
            Told::TurnStarted(turn) => break turn.started.unwrap(),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(started.priority, Some(-5));
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
