//! The crate for clients (`clients/rust`) against this server, over real sockets: streams, sessions, and connections that
//! break.

use std::{net::SocketAddr, time::Duration};

use candlewick::config::{EngineConfig, StreamArgs};
use candlewick_client::{
    Ask, Client, ClientTlsConfig, Code, Error, Message, RequestOptions, Retry, Role, SamplingParams, Session,
    SessionOpen,
    v1::{EditTurn, EmbedOptions, LoadRequest, ModelState, Pooling, QuoteRequest, UnloadRequest, finish::Matched},
};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::watch,
};

use crate::{
    access,
    grpc::{
        Server, config, expected, ids, models, soon,
        text::{continued, server, server_with},
    },
};

/// Passes connections on to a server until they are cut.
struct Wire {
    address: SocketAddr,
    cuts: watch::Sender<u64>,
}

impl Wire {
    async fn to(server: &Server) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, upstream) = (listener.local_addr().unwrap(), server.address);
        let (cuts, cut) = watch::channel(0);
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let mut cut = cut.clone();
                cut.mark_unchanged();
                tokio::spawn(async move {
                    let mut server = TcpStream::connect(upstream).await.unwrap();
                    tokio::select! {
                        _ = copy_bidirectional(&mut client, &mut server) => {}
                        _ = cut.changed() => {}
                    }
                });
            }
        });
        Self { address, cuts }
    }

    /// Ends every connection there is. What is under way in it is lost.
    fn cut(&self) {
        self.cuts.send_modify(|cuts| *cuts += 1);
    }

    async fn client(&self) -> Client {
        let quick = Retry { first_delay: Duration::from_millis(1), ..Retry::default() };
        soon("a connection", Client::builder(format!("http://{}", self.address)).retry(quick).connect()).await.unwrap()
    }
}

async fn client(server: &Server) -> Client {
    soon("a connection", Client::connect(format!("http://{}", server.address))).await.unwrap()
}

fn tokens(max_tokens: u32) -> SamplingParams {
    SamplingParams { max_tokens: Some(max_tokens), ..SamplingParams::default() }
}

fn opening(sampling: SamplingParams, credits: Option<u64>) -> SessionOpen {
    let options = Some(RequestOptions { sampling: Some(sampling), ..RequestOptions::default() });
    SessionOpen { options, credits, ..SessionOpen::default() }
}

/// Reads a turn to its end: its text, and its index.
async fn turn(session: &mut Session, said: &str) -> (String, u32) {
    let done = soon("a turn", async { session.say(said).await?.done().await }).await.unwrap();
    (done.message.unwrap().content, done.turn_index)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_streams_and_asks_at_once_and_gets_the_same() {
    let server = server().await;
    let client = client(&server).await;
    let whole = client.chat(Ask::chat("Hi").sampling(tokens(12))).await.unwrap();
    let said = continued("<user>Hi<assistant>", 12);
    assert_eq!(whole.message.unwrap().content, said);
    let messages = vec![Message::new(Role::System, "Sys"), Message::new(Role::User, "Hi")];
    let mut stream = client.chat_stream(Ask::chat(messages).sampling(tokens(12))).await.unwrap();
    assert_eq!(soon("its text", stream.text()).await.unwrap(), continued("<system>Sys<user>Hi<assistant>", 12));
    let log = stream.log();
    assert_eq!(log.finished[0].usage.unwrap().completion_tokens, 12);
    assert_eq!(log.started.as_ref().unwrap().effective.as_ref().unwrap().max_tokens, Some(12));
    assert!(log.last_seq > 2 && log.stream_id.is_empty());

    let prompt: Vec<_> = ids(3, 20).into_iter().map(|id| id % 128).collect();
    let mut stream = client.generate_stream(Ask::prompt(prompt.clone()).sampling(tokens(30))).await.unwrap();
    let mut generated = Vec::new();
    while let Some(delta) = soon("a delta", stream.next()).await.unwrap() {
        generated.extend(delta.token_ids);
    }
    let whole = client.generate(Ask::prompt(prompt).sampling(tokens(30))).await.unwrap();
    assert_eq!((generated.len(), &whole.output.unwrap().token_ids), (30, &generated));
    let receipt = stream.log().finished[0].receipt.clone().unwrap();
    assert_eq!(whole.finished.unwrap().receipt.unwrap().output_hash, receipt.output_hash);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_quotes_tokenizes_embeds_and_lists() {
    let server = server().await;
    let client = client(&server).await;
    assert_eq!(client.models().await.unwrap()[0].name, "fake");
    let ids = client.tokenize("Hi").await.unwrap();
    assert_eq!(client.detokenize(ids.clone()).await.unwrap(), "Hi");
    let quoted = QuoteRequest { prompt: Some("Hi".into()), ..QuoteRequest::default() };
    assert_eq!(client.quote(quoted).await.unwrap().prompt_tokens, ids.len() as u32);
    let options = EmbedOptions { pooling: Some(Pooling::Mean.into()), ..EmbedOptions::default() };
    let answer = client.embed(["a", "b", "a"], options).await.unwrap();
    let vectors: Vec<_> = answer.embeddings.into_iter().map(|vector| vector.values).collect();
    assert!(vectors.len() == 3 && vectors[0] == vectors[2] && vectors[0] != vectors[1]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_loads_a_model_watches_it_and_unloads_it() {
    let server = models::server(2).await;
    let wire = Wire::to(&server).await;
    let client = wire.client().await;
    let mut watch = client.watch_models().await.unwrap();
    assert_eq!(soon("the first list", watch.next()).await.unwrap().unwrap().len(), 1);
    // It is made anew, and so is the connection, by what may be tried again.
    wire.cut();
    assert_eq!(client.models().await.unwrap().len(), 1);
    let asked =
        |path: &str| LoadRequest { name: Some("small".into()), path: Some(path.into()), ..LoadRequest::default() };
    let mut load = client.load_model(asked(&models::path("llama"))).await.unwrap();
    while let Some(progress) = soon("how far it is", load.next()).await.unwrap() {
        assert!(progress.done <= progress.total, "{progress:?}");
    }
    assert_eq!(load.model().await.unwrap().state(), ModelState::Ready);
    let ready = async {
        loop {
            let list = watch.next().await.unwrap().unwrap();
            if list.iter().any(|model| model.name == "small" && model.state() == ModelState::Ready) {
                return;
            }
        }
    };
    soon("a list with the model", ready).await;
    let unload = UnloadRequest { name: "small".into(), wait_ms: Some(60_000), ..UnloadRequest::default() };
    assert!(client.unload_model(unload).await.unwrap().unloaded);
    assert_eq!(client.model("small").await.unwrap().state(), ModelState::Unloaded);
    assert_eq!(client.model("other").await.unwrap_err().code, Code::NotFound);
    let failed = client.load_model(asked("/nowhere/at/all")).await.unwrap().model().await.unwrap_err();
    assert_eq!(failed.code, Code::FailedPrecondition);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_error_names_the_field_and_when_to_come_back() {
    let server = server_with(None, config(), StreamArgs { max_sessions: 1, ..StreamArgs::default() }).await;
    let client = client(&server).await;
    let wrong = SamplingParams { top_p: Some(7.0), ..SamplingParams::default() };
    let error = client.chat_stream(Ask::chat("Hi").sampling(wrong.clone())).await.err().unwrap();
    assert_eq!((error.code, error.details.reason.as_str()), (Code::InvalidArgument, "INVALID_REQUEST"));
    assert_eq!(error.fields()[0].field, "options.sampling.top_p");
    assert!(error.to_string().contains("options.sampling.top_p"), "{error}");

    let mut session = client.session(SessionOpen::default()).await.unwrap();
    let full = client.session(SessionOpen::default()).await.err().unwrap();
    assert_eq!(full.code, Code::ResourceExhausted);
    assert!(full.retry_after().is_some() && full.details.quotas.len() == 1, "{full:?}");

    let asked = candlewick_client::UserTurn { sampling: Some(wrong), ..candlewick_client::UserTurn::from("Hi") };
    let error = soon("a refusal", async { session.say(asked).await?.done().await }).await.unwrap_err();
    assert_eq!((error.code, error.event.as_deref()), (Code::InvalidArgument, Some("user")));
    assert_eq!(error.fields()[0].field, "user.sampling.top_p");
    let error = session.rewind(4).await.unwrap_err();
    assert_eq!((error.event.as_deref(), error.fields()[0].field.as_str()), (Some("rewind"), "rewind.turn_index"));
    assert_eq!(turn(&mut session, "Hi").await.1, 0, "the session goes on");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_not_there_is_unavailable_and_a_wrong_address_invalid() {
    let nowhere = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let quick = Retry { attempts: 2, first_delay: Duration::from_millis(1), ..Retry::default() };
    let error =
        soon("a refusal", Client::builder(format!("http://{nowhere}")).retry(quick).connect()).await.unwrap_err();
    assert_eq!(error.code, Code::Unavailable, "{error}");
    assert_eq!(Client::builder("no address").connect_lazy().unwrap_err().code, Code::InvalidArgument);
    let error = Client::builder("http://127.0.0.1:1").api_key("two\nlines").connect_lazy().unwrap_err();
    assert!(error.code == Code::InvalidArgument && error.message.starts_with("api_key"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_goes_with_every_call_and_a_wrong_one_is_refused() {
    let server = access::server(&["alice"]).await;
    let builder = || Client::builder(format!("http://{}", server.address));
    for wrong in [builder(), builder().api_key("guessed")] {
        assert_eq!(wrong.connect().await.unwrap_err().code, Code::Unauthenticated);
    }
    let alice = builder().api_key(access::key("alice")).connect().await.unwrap();
    let mut session = alice.session(opening(tokens(5), None)).await.unwrap();
    assert_eq!(turn(&mut session, "Hi").await.0, continued("<user>Hi<assistant>", 5));
    session.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_trusts_the_authority_that_it_is_given_and_no_other() {
    let (server, trusted, another) = access::tls::served().await;
    let connect = async |authority: &str| {
        let roots = candlewick_client::Certificate::from_pem(authority);
        let tls = ClientTlsConfig::new().ca_certificate(roots).domain_name("localhost");
        let once = Retry { attempts: 1, ..Retry::default() };
        soon("a handshake", Client::builder(format!("https://{}", server.address)).tls(tls).retry(once).connect()).await
    };
    let client = connect(&trusted).await.unwrap();
    let prompt = ids(1, 20);
    let answer = client.generate(Ask::prompt(prompt.clone()).sampling(tokens(10))).await.unwrap();
    assert_eq!(answer.output.unwrap().token_ids, expected(&prompt, 10));
    assert_eq!(connect(&another).await.unwrap_err().code, Code::Unavailable);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_resumable_stream_goes_on_over_connections_that_break_and_another_fails() {
    let server = server().await;
    let wire = Wire::to(&server).await;
    let client = wire.client().await;
    let mut stream = client.chat_stream(Ask::chat("Hi").sampling(tokens(300)).resumable()).await.unwrap();
    let mut said = String::new();
    let mut deltas = 0;
    while let Some(delta) = soon("a delta", stream.next()).await.unwrap() {
        said += &delta.text;
        deltas += 1;
        if deltas % 20 == 0 {
            wire.cut();
        }
    }
    assert_eq!(said, continued("<user>Hi<assistant>", 300));
    assert!(deltas > 40, "{deltas}: it was never cut");
    let id = stream.log().stream_id.clone();
    let mut again = client.resume(id, 0).await.unwrap();
    assert_eq!(soon("all of it", again.text()).await.unwrap(), said);

    let endless = Ask::chat("Hi").sampling(tokens(900));
    let mut stream = client.chat_stream(endless).await.unwrap();
    assert!(soon("a delta", stream.next()).await.unwrap().is_some());
    wire.cut();
    let end = soon("its end", async {
        while stream.next().await?.is_some() {}
        Ok::<_, Error>(())
    })
    .await;
    assert_eq!(end.unwrap_err().code, Code::Unavailable, "nobody can tell what was lost");
    drop(stream);
    server.idle().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_cancels_edits_grants_rewinds_and_forks() {
    let server = server().await;
    let client = client(&server).await;
    let mut session = client.session(opening(tokens(100), Some(7))).await.unwrap();
    assert_eq!(session.opened().unwrap().model, "fake");
    let mut running = session.say("Hi").await.unwrap();
    let mut said = String::new();
    let mut heard = 0;
    while heard < 7 {
        let delta = soon("a delta", running.next()).await.unwrap().unwrap();
        said += &delta.text;
        heard += delta.token_ids.len();
    }
    assert_eq!(running.started().unwrap().turn_index, 0);
    running.cancel().await.unwrap();
    let done = soon("the end", running.done()).await.unwrap();
    assert_eq!((done.cancelled, done.message.unwrap().content), (Some(true), said.clone()));
    assert_eq!(said, continued("<user>Hi<assistant>", 7));

    session.grant(3).await.unwrap();
    let so_far = format!("<user>Hi<assistant>{said}<user>More<assistant>");
    let mut running = session.say("More").await.unwrap();
    let mut heard = 0;
    while heard < 3 {
        heard += soon("a delta", running.next()).await.unwrap().unwrap().token_ids.len();
    }
    running.edit(EditTurn { max_tokens: Some(9), ..EditTurn::default() }).await.unwrap();
    running.grant(1000).await.unwrap();
    let done = soon("the end", running.done()).await.unwrap();
    assert_eq!(done.message.unwrap().content, continued(&so_far, 9));
    assert_eq!(done.finish.unwrap().matched, None::<Matched>);

    let mut fork = session.fork(Some(1)).await.unwrap();
    assert_ne!(fork.id(), session.id());
    session.rewind(1).await.unwrap();
    assert!(session.refusals().is_empty());
    let other = continued(&format!("<user>Hi<assistant>{said}<user>Other<assistant>"), 9);
    for session in [&mut session, &mut fork] {
        session.grant(1000).await.unwrap();
        let sampling = Some(tokens(9));
        let asked = candlewick_client::UserTurn { sampling, ..candlewick_client::UserTurn::from("Other") };
        let done = soon("a turn", async { session.say(asked).await?.done().await }).await.unwrap();
        assert_eq!((done.turn_index, done.message.unwrap().content), (1, other.clone()));
    }
    fork.close().await.unwrap();
    let id = session.id().to_owned();
    session.close().await.unwrap();
    let gone = client.session(SessionOpen { session_id: Some(id), ..SessionOpen::default() }).await;
    let gone = match gone {
        // Whether it is there is told with its first event.
        Ok(mut session) => session.current().await.map(|_| ()).unwrap_err(),
        Err(error) => error,
    };
    assert_eq!(gone.code, Code::NotFound);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_loses_and_repeats_nothing_over_connections_that_break() {
    let server = server_with(None, EngineConfig { num_blocks: 256, ..config() }, StreamArgs::default()).await;
    let wire = Wire::to(&server).await;
    let client = wire.client().await;
    let mut session = client.session(opening(tokens(40), None)).await.unwrap();
    let mut so_far = String::new();
    for k in 0..8_u32 {
        // Cut before the turn is said, as it is said, or in its midst.
        let question = format!("q{k}");
        if k % 3 == 0 {
            wire.cut();
        }
        let mut running = soon("a turn", session.say(question.as_str())).await.unwrap();
        if k % 3 == 1 {
            wire.cut();
        }
        let mut said = String::new();
        while let Some(delta) = soon("a delta", running.next()).await.unwrap() {
            said += &delta.text;
            if k % 3 == 2 && said.len() == 10 {
                wire.cut();
            }
        }
        so_far += &format!("<user>{question}<assistant>");
        assert_eq!(said, continued(&so_far, 40), "turn {k}");
        so_far += &said;
        let done = soon("its end", async { session.current().await?.unwrap().done().await }).await.unwrap();
        assert_eq!(done.turn_index, k, "no turn came twice");
    }
    assert!(session.reconnects() >= 4, "{} connections broke", session.reconnects());
    wire.cut();
    soon("a rewind", session.rewind(1)).await.unwrap();
    assert_eq!(turn(&mut session, "Other").await.1, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_that_comes_back_by_id_finds_the_turn_under_way() {
    let server = server().await;
    let first = client(&server).await;
    let mut session = first.session(opening(tokens(50), Some(5))).await.unwrap();
    let mut running = session.say("Hi").await.unwrap();
    assert!(soon("a delta", running.next()).await.unwrap().is_some());
    let (id, seq) = (session.id().to_owned(), session.last_seq());
    drop(session);
    let open = SessionOpen { session_id: Some(id), after_seq: Some(seq), ..SessionOpen::default() };
    let mut again = client(&server).await.session(open).await.unwrap();
    let mut found = soon("what is under way", again.current()).await.unwrap().unwrap();
    found.grant(1000).await.unwrap();
    let done = soon("its end", found.done()).await.unwrap();
    assert_eq!(done.message.unwrap().content, continued("<user>Hi<assistant>", 50));
    assert!(again.opened().is_none());
    assert_eq!(turn(&mut again, "More").await.1, 1);
}
