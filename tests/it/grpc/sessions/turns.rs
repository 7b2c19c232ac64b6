//! Turns: what one computes, and what is left of one that ends early.

use super::*;

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
