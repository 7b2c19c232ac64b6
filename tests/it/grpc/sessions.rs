//! Conversations that the server remembers: what a turn computes, and what clients may do to one.

mod connections;
mod edits;
mod limits;
mod mistakes;
mod turns;
mod waiting;

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
            Told::Opened(opened) => (talk, *opened),
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
                Told::TurnDone(done) => return (text, *done),
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

/// Waits until nobody can come back to a session.
async fn forgotten(server: &Server, opened: &Opened) {
    let gone = async {
        loop {
            match Talk::connect(server, come_back(opened, 0)).await.heard().await {
                Err(status) if status.code() == Code::NotFound => break,
                _ => tokio::task::yield_now().await,
            }
        }
    };
    soon("the session is forgotten", gone).await;
}
