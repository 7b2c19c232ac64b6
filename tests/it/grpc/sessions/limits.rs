//! What sessions may hold, and what happens when it is full.

use super::*;

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
    let error = talk.error().await;
    assert_eq!((error.code, error.retry_after_ms), (Code::FailedPrecondition as i32, None), "{}", error.message);
    assert!(error.message.contains("--max-session-bytes"), "{}", error.message);
    for (length, code) in [(250, Code::FailedPrecondition), (257, Code::InvalidArgument)] {
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
async fn a_session_of_which_its_client_never_heard_takes_no_place() {
    let server = server_with(None, config(), StreamArgs { max_sessions: 1, ..StreamArgs::default() }).await;
    for _ in 0..20 {
        // It lets the server send nothing but headers, so it never learns the session's id, and goes: as a rule after the
        // session was opened, which is what another answer is waited for. One that is pinned makes room for nobody.
        let lease = Some(Lease { pin: Some(true), ..Lease::default() });
        let open = SessionOpen { lease, ..SessionOpen::default() };
        let deaf = Talk::on(server.channel_of(0).await, open).await;
        server.get("/health").await;
        drop(deaf);
    }
    let opened = async {
        loop {
            match Talk::connect(&server, SessionOpen::default()).await.heard().await {
                Ok(told) => break told,
                Err(refused) => assert_eq!(refused.code(), Code::ResourceExhausted),
            }
        }
    };
    assert!(matches!(soon("its place is free", opened).await, Some(Told::Opened(_))));
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
        assert_eq!(refused.code(), Code::FailedPrecondition, "{what}: {refused}");
    }
    let small = Tool { name: "f".into(), ..Tool::default() };
    Talk::open(&server, chat(ChatOptions { tools: vec![small], ..ChatOptions::default() })).await;
}
