//! `candlewick.v1.Tokens`: text to token ids and back.

use std::sync::Arc;

use tokio::{sync::Semaphore, task::spawn_blocking};
use tonic::{Request, Response, Status};

use super::{Backend, convert, status::status};
use crate::{
    error::{Code, Error, Result},
    ids::TokenId,
    proto::candlewick::v1::{
        DetokenizeRequest, DetokenizeResponse, TokenizeRequest, TokenizeResponse, tokens_server::Tokens,
    },
    text::Tokenizer,
};

/// Calls that work at once: tokenizing takes a core, and generation needs them.
const AT_ONCE: usize = 2;

pub(super) struct TokensService {
    backend: Backend,
    turns: Arc<Semaphore>,
}

impl TokensService {
    pub(super) fn new(backend: Backend) -> Self {
        Self { backend, turns: Arc::new(Semaphore::new(AT_ONCE)) }
    }

    fn tokenizer(&self, model: Option<&str>) -> Result<Arc<Tokenizer>> {
        convert::check_model(model, self.backend.engine.info())?;
        let tokenizer = self.backend.engine.text().tokenizer.clone();
        tokenizer.ok_or_else(|| Error::new(Code::FailedPrecondition, "the model came without a tokenizer"))
    }

    /// Runs `work` beside the tasks that stream, in its turn.
    async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
        let failed = |error: &dyn std::fmt::Display| Error::internal(format!("tokenization: {error}"));
        // The permit goes along with the work, which goes on where the caller goes away.
        let turn = self.turns.clone().acquire_owned().await.map_err(|error| failed(&error))?;
        let work = spawn_blocking(move || {
            let _turn = turn;
            work()
        });
        work.await.map_err(|error| failed(&error))?
    }
}

#[tonic::async_trait]
impl Tokens for TokensService {
    async fn tokenize(&self, request: Request<TokenizeRequest>) -> Result<Response<TokenizeResponse>, Status> {
        let TokenizeRequest { model, text, add_special_tokens } = request.into_inner();
        let tokenizer = self.tokenizer(model.as_deref()).map_err(status)?;
        let ids =
            self.run(move || tokenizer.encode(&text, add_special_tokens.unwrap_or(true))).await.map_err(status)?;
        Ok(Response::new(TokenizeResponse { token_ids: ids.into_iter().map(|id| id.0).collect() }))
    }

    async fn detokenize(&self, request: Request<DetokenizeRequest>) -> Result<Response<DetokenizeResponse>, Status> {
        let DetokenizeRequest { model, token_ids, skip_special_tokens } = request.into_inner();
        let tokenizer = self.tokenizer(model.as_deref()).map_err(status)?;
        let vocab_size = self.backend.engine.info().vocab_size;
        if let Some((k, id)) = token_ids.iter().enumerate().find(|&(_, &id)| TokenId(id).index() >= vocab_size) {
            let why = format!("is {id}, but the vocabulary has {vocab_size} entries");
            return Err(status(Error::invalid(format!("token_ids[{k}]"), why)));
        }
        let ids: Vec<_> = token_ids.into_iter().map(TokenId).collect();
        let decode = move || Ok(tokenizer.decode(&ids, skip_special_tokens.unwrap_or(false)));
        Ok(Response::new(DetokenizeResponse { text: self.run(decode).await.map_err(status)? }))
    }
}
