//! Clients that come back, take over, repeat themselves or go.

use super::*;

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
        forgotten(&server, &opened).await;
    }
    server.idle().await;
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_turn_ends_in_time_though_its_reader_stands_still() {
    let server = server().await;
    let mut talk = Talk::on(server.channel_of(512).await, SessionOpen::default()).await;
    assert!(matches!(talk.next().await, Told::Opened(_)));
    let sampling = Some(SamplingParams { max_tokens: Some(900), ..SamplingParams::default() });
    let timeout_ms = Some(1000);
    talk.say(Say::User(UserTurn { content: "Hi".into(), sampling, timeout_ms, ..UserTurn::default() }));
    assert!(matches!(talk.next().await, Told::TurnStarted(_)));
    // The connection still stands, and would for two minutes.
    until("its place is free", || server.engine.num_live() == 0).await;
    let error = loop {
        match talk.next().await {
            Told::Delta(_) | Told::Progress(_) => {}
            Told::Error(error) => break error,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(error.code, Code::DeadlineExceeded as i32);
}
