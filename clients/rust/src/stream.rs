//! The events of one request: deltas as they come, and a log of what else was said.

use tokio::time::sleep;
use tonic::{Status, Streaming};

use crate::{
    Client, Code, Error, Result,
    client::request,
    retry::Patience,
    v1::{
        CompleteStreamRequest, CompleteStreamResponse, Delta, Finished, GenerateStreamRequest, GenerateStreamResponse,
        PositionLogprobs, Progress, PromptLogprobs, ResumeRequest, ResumeResponse, Started,
    },
};

/// How a stream begins.
#[derive(Clone, Debug)]
pub(crate) enum First {
    Generate(GenerateStreamRequest),
    Complete(CompleteStreamRequest),
    Resume { stream_id: String, after_seq: u64 },
}

/// What a stream says, whichever call opened it.
enum Event {
    Started(Started),
    Delta(Delta),
    Finished(Finished),
    PromptLogprobs(PromptLogprobs),
    Progress(Progress),
}

/// The calls whose answers are such streams, each with a message of its own.
enum Events {
    Generate(Streaming<GenerateStreamResponse>),
    Complete(Streaming<CompleteStreamResponse>),
    Resume(Streaming<ResumeResponse>),
}

/// An event and its number, out of the message of each call.
macro_rules! numbered {
    ($message:expr, $module:ident) => {{
        use crate::v1::$module::Event as Told;
        $message.map(|response| {
            let event = response.event.map(|event| match event {
                Told::Started(event) => Event::Started(event),
                Told::Delta(event) => Event::Delta(event),
                Told::Finished(event) => Event::Finished(event),
                Told::PromptLogprobs(event) => Event::PromptLogprobs(event),
                Told::Progress(event) => Event::Progress(event),
            });
            (response.seq, event)
        })
    }};
}

impl Events {
    /// The next event, with its number; without one where the server is newer than this client.
    async fn message(&mut self) -> std::result::Result<Option<(u64, Option<Event>)>, Status> {
        Ok(match self {
            Self::Generate(events) => numbered!(events.message().await?, generate_stream_response),
            Self::Complete(events) => numbered!(events.message().await?, complete_stream_response),
            Self::Resume(events) => numbered!(events.message().await?, resume_response),
        })
    }
}

/// What a stream has said so far beside its deltas.
#[derive(Clone, Debug, Default)]
pub struct StreamLog {
    /// The request's id and the parameters in force; none before the first event.
    pub started: Option<Started>,
    /// The end of each sequence, in the order in which they ended.
    pub finished: Vec<Finished>,
    /// Log-probabilities of the prompt, where they were asked for.
    pub prompt_logprobs: Vec<PositionLogprobs>,
    /// The last heartbeat: how far a request is that says nothing yet.
    pub progress: Option<Progress>,
    /// The number of the last event.
    pub last_seq: u64,
    /// For [`Client::resume`]; empty where the stream is not resumable.
    pub stream_id: String,
}

impl StreamLog {
    /// Keeps what an event says; gives its delta, where it is one.
    fn take(&mut self, seq: u64, event: Option<Event>) -> Option<Delta> {
        self.last_seq = seq;
        match event? {
            Event::Started(started) => {
                self.stream_id = started.stream_id.clone().unwrap_or_default();
                self.started = Some(started);
            }
            Event::Progress(progress) => self.progress = Some(progress),
            Event::PromptLogprobs(prompt) => self.prompt_logprobs.extend(prompt.logprobs),
            Event::Finished(finished) => self.finished.push(finished),
            Event::Delta(delta) => return Some(delta),
        }
        None
    }
}

/// Deltas as they come. Dropping it cancels the request, unless it is resumable. A connection that breaks before the first
/// event is made anew, and a resumable stream is resumed where it stopped.
pub struct TokenStream {
    client: Client,
    first: First,
    patience: Patience,
    /// None after a connection broke.
    events: Option<Events>,
    log: StreamLog,
}

impl TokenStream {
    pub(crate) async fn open(client: Client, first: First, patience: Patience) -> Result<Self> {
        let mut log = StreamLog::default();
        if let First::Resume { stream_id, after_seq } = &first {
            log.stream_id.clone_from(stream_id);
            log.last_seq = *after_seq;
        }
        let mut stream = Self { client, first, patience, events: None, log };
        stream.connect().await?;
        Ok(stream)
    }

    /// What was said so far beside the deltas.
    #[must_use]
    pub fn log(&self) -> &StreamLog {
        &self.log
    }

    /// The next delta; none after the last one. What was not read yet is still there where this is dropped in between.
    ///
    /// # Errors
    /// The error that ended the stream.
    pub async fn next(&mut self) -> Result<Option<Delta>> {
        loop {
            let heard = self.connect().await?.message().await;
            match heard {
                Ok(Some((seq, event))) => {
                    self.patience.heard();
                    if let Some(delta) = self.log.take(seq, event) {
                        return Ok(Some(delta));
                    }
                }
                Ok(None) => return Ok(None),
                Err(status) => {
                    self.events = None;
                    self.wait(status.into()).await?;
                }
            }
        }
    }

    /// All the text of the first sequence that is yet to come.
    ///
    /// # Errors
    /// As [`Self::next`].
    pub async fn text(&mut self) -> Result<String> {
        let mut text = String::new();
        while let Some(delta) = self.next().await? {
            if delta.index == 0 {
                text.push_str(&delta.text);
            }
        }
        Ok(text)
    }

    /// The call under way, made anew where it broke.
    async fn connect(&mut self) -> Result<&mut Events> {
        while self.events.is_none() {
            match call(&self.client, &self.first, &self.log, &self.patience).await {
                Ok(events) => self.events = Some(events),
                Err(status) => self.wait(status.into()).await?,
            }
        }
        self.events.as_mut().ok_or_else(|| Error::new(Code::Internal, "a call that was made is not there"))
    }

    /// Waits before another attempt.
    ///
    /// # Errors
    /// The error, where there is no way back or it is time to give up.
    async fn wait(&mut self, error: Error) -> Result<()> {
        let has_begun = self.log.last_seq > 0;
        if has_begun && self.log.stream_id.is_empty() {
            return Err(error);
        }
        sleep(self.patience.pause(error)?).await;
        Ok(())
    }
}

/// The call that a stream begins with, or goes on with where it can be resumed.
async fn call(
    client: &Client,
    first: &First,
    log: &StreamLog,
    patience: &Patience,
) -> std::result::Result<Events, Status> {
    let mut generation = client.generation_service();
    if !log.stream_id.is_empty() {
        let (stream_id, after_seq) = (log.stream_id.clone(), Some(log.last_seq));
        let back = request(ResumeRequest { stream_id, after_seq }, patience);
        return Ok(Events::Resume(generation.resume(back).await?.into_inner()));
    }
    Ok(match first {
        First::Generate(asked) => {
            let asked = request(asked.clone(), patience);
            Events::Generate(generation.generate_stream(asked).await?.into_inner())
        }
        First::Complete(asked) => {
            let asked = request(asked.clone(), patience);
            Events::Complete(client.chat_service().complete_stream(asked).await?.into_inner())
        }
        First::Resume { .. } => return Err(Status::invalid_argument("stream_id: is empty: give that of Started")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_and_sessions_may_be_read_in_tasks_of_their_own() {
        fn sends<T: Send>(_: impl Fn(T)) {}
        sends(|mut stream: TokenStream| drop(assert_send(stream.next())));
        sends(|mut session: crate::Session| drop(assert_send(session.say("Hi"))));
    }

    fn assert_send<T: Send>(value: T) -> T {
        value
    }
}
