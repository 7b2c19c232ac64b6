//! Edits of a running turn.

use super::*;

/// What six tokens say.
async fn six_tokens(talk: &mut Talk) -> String {
    let (mut said, mut tokens) = (String::new(), 0);
    while tokens < 6 {
        if let Told::Delta(delta) = talk.next().await {
            said += &delta.text;
            tokens += delta.token_ids.len();
        }
    }
    said
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
    let receipt = done.receipt.unwrap();
    assert!(
        receipt.parameters.is_none() && !receipt.output_hash.is_empty(),
        "no one set gives this answer: {receipt:?}"
    );
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
    let said = six_tokens(&mut talk).await;
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
    let said = six_tokens(&mut talk).await;
    let stop = StopStrings { stop: vec!["\u{1}never".into()] };
    talk.say(Say::Edit(EditTurn { stop: Some(stop), ..EditTurn::default() }));
    talk.say(Say::Grant(Grant { tokens: 1000 }));
    let (rest, done) = talk.turn_done().await;
    assert_eq!((said + &rest, done.finish.unwrap().reason()), (whole, FinishReason::Length));
}
