//! What a stream tells, whatever call opened it, and as what each call sends it.

use prost::Message as _;

use crate::proto::candlewick::v1 as wire;

/// One event of a stream.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Told {
    Started(Box<wire::Started>),
    Progress(wire::Progress),
    PromptLogprobs(wire::PromptLogprobs),
    Delta(wire::Delta),
    Finished(Box<wire::Finished>),
}

impl Told {
    /// Bytes that it takes on the wire, and hardly more in memory.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::Started(event) => event.encoded_len(),
            Self::Progress(event) => event.encoded_len(),
            Self::PromptLogprobs(event) => event.encoded_len(),
            Self::Delta(event) => event.encoded_len(),
            Self::Finished(event) => event.encoded_len(),
        }
    }
}

/// The calls that send events, each with its own message.
macro_rules! sent_as {
    ($($message:ident in $module:ident),*) => {$(
        impl From<(u64, Told)> for wire::$message {
            fn from((seq, told): (u64, Told)) -> Self {
                use wire::$module::Event;
                let event = match told {
                    Told::Started(event) => Event::Started(event),
                    Told::Progress(event) => Event::Progress(event),
                    Told::PromptLogprobs(event) => Event::PromptLogprobs(event),
                    Told::Delta(event) => Event::Delta(event),
                    Told::Finished(event) => Event::Finished(event),
                };
                Self { seq, event: Some(event) }
            }
        }
    )*};
}

sent_as!(
    GenerateStreamResponse in generate_stream_response,
    CompleteStreamResponse in complete_stream_response,
    ResumeResponse in resume_response
);
