//! What clients get wrong, and which event an answer answers.

use tonic_types::StatusExt;

use super::*;

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
async fn a_message_that_cannot_be_read_ends_the_connection_with_its_status_and_not_the_session() {
    let server = server().await;
    let huge = "x".repeat(5 << 20);
    let unread = SessionOpen { session_id: Some(huge.clone()), ..SessionOpen::default() };
    let refused = Talk::connect(&server, unread).await.heard().await.unwrap_err();
    assert_eq!(refused.code(), Code::OutOfRange, "{refused}");
    let (mut talk, opened) = Talk::open(&server, SessionOpen::default()).await;
    talk.user(&huge, 3);
    let refused = talk.heard().await.unwrap_err();
    assert!(refused.code() == Code::OutOfRange && refused.message().contains("too large"), "{refused}");
    assert_eq!(refused.get_details_error_info().unwrap().reason, "MESSAGE_TOO_LARGE");
    let mut back = Talk::connect(&server, come_back(&opened, talk.seq)).await;
    assert_eq!(back.turn("Hi", 3).await.0, continued("<user>Hi<assistant>", 3));
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
