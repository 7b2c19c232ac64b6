//! A typed client of candlewick, a streaming LLM token server over gRPC.
//!
//! ```no_run
//! # async fn example() -> Result<(), candlewick_client::Error> {
//! use candlewick_client::{Ask, Client, SamplingParams};
//!
//! let client = Client::connect("http://127.0.0.1:50051").await?;
//! let sampling = SamplingParams { max_tokens: Some(60), ..SamplingParams::default() };
//! let mut stream = client.chat_stream(Ask::chat("What is candlewick?").sampling(sampling)).await?;
//! while let Some(delta) = stream.next().await? {
//!     print!("{}", delta.text);
//! }
//! # Ok(())
//! # }
//! ```
//!
//! Requests and answers are the messages of `candlewick.v1` ([`v1`]); the names in them are explained in the contract,
//! `proto/candlewick/v1`. [`TokenStream`] reads what a request brings, [`Session`] holds a conversation that the server
//! keeps, [`Load`] and [`Watch`] follow the models that come and go, [`Error`] is what went wrong with all that the server said
//! about it.

mod ask;
mod client;
mod conversation;
mod error;
mod models;
mod retry;
mod session;
mod stream;

/// The contract: every message, and a client of every service as it is.
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic)]
pub mod v1 {
    tonic::include_proto!("candlewick.v1");
}

#[cfg(feature = "tls")]
pub use tonic::transport::{Certificate, ClientTlsConfig, Identity};

pub use self::{
    ask::{Ask, Messages},
    client::{Builder, Client, Keyed},
    error::{Code, Details, Error, FieldViolation, Result},
    models::{Load, Watch},
    retry::Retry,
    session::{Session, Turn},
    stream::{StreamLog, TokenStream},
    v1::{Delta, Lease, Message, RequestOptions, Role, SamplingParams, SessionOpen, UserTurn},
};
