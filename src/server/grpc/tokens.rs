//! `candlewick.v1.Tokens`: text to token ids and back, and what a chat is to the model.

use tokio::time::Instant;
use tonic::{Request, Response, Status};

use super::{Models, chat, chat_convert, deadline::deadline, status::status};
use crate::{
    engine::prompt_text,
    error::Error,
    ids::TokenId,
    proto::candlewick::v1::{
        ApplyTemplateRequest, ApplyTemplateResponse, DetokenizeRequest, DetokenizeResponse, TokenizeRequest,
        TokenizeResponse, tokens_server::Tokens,
    },
    server::access::{Admission, Caller},
};

pub(super) struct TokensService {
    models: Models,
}

impl TokensService {
    pub(super) fn new(models: Models) -> Self {
        Self { models }
    }

    /// Who makes a call, what it takes of its quotas, and when it is no longer wanted.
    fn admit<T>(&self, request: &Request<T>) -> Result<(Caller, Admission, Option<Instant>), Status> {
        let caller = Caller::of(request.extensions()).map_err(status)?;
        let deadline = deadline(request.metadata()).map_err(status)?;
        let admission = self.models.admit_call(&caller).map_err(status)?;
        Ok((caller, admission, deadline))
    }
}

#[tonic::async_trait]
impl Tokens for TokensService {
    async fn tokenize(&self, request: Request<TokenizeRequest>) -> Result<Response<TokenizeResponse>, Status> {
        let (caller, mut admission, deadline) = self.admit(&request)?;
        let TokenizeRequest { model, text, add_special_tokens } = request.into_inner();
        let backend = self.models.backend(&caller, model.as_deref(), deadline).await.map_err(status)?;
        let tokenizer = backend.tokenizer().map_err(status)?;
        let encode = move || tokenizer.encode(&text, add_special_tokens.unwrap_or(true));
        let ids = backend.work(&caller, encode).await.map_err(status)?;
        admission.admitted();
        Ok(Response::new(TokenizeResponse { token_ids: ids.into_iter().map(|id| id.0).collect() }))
    }

    async fn detokenize(&self, request: Request<DetokenizeRequest>) -> Result<Response<DetokenizeResponse>, Status> {
        let (caller, mut admission, deadline) = self.admit(&request)?;
        let DetokenizeRequest { model, token_ids, skip_special_tokens, return_token_strs } = request.into_inner();
        let backend = self.models.backend(&caller, model.as_deref(), deadline).await.map_err(status)?;
        let tokenizer = backend.tokenizer().map_err(status)?;
        let vocab_size = backend.engine.info().vocab_size;
        if let Some((k, id)) = token_ids.iter().enumerate().find(|&(_, &id)| TokenId(id).index() >= vocab_size) {
            let why = format!("is {id}, but the vocabulary has {vocab_size} entries");
            return Err(status(Error::invalid(format!("token_ids[{k}]"), why)));
        }
        let ids: Vec<_> = token_ids.into_iter().map(TokenId).collect();
        let decode = move || {
            let own = |&id: &TokenId| String::from_utf8_lossy(tokenizer.token_bytes(id)).into_owned();
            let asked = return_token_strs.unwrap_or(false);
            Ok(DetokenizeResponse {
                text: tokenizer.decode(&ids, skip_special_tokens.unwrap_or(false)),
                token_strs: if asked { ids.iter().map(own).collect() } else { Vec::new() },
            })
        };
        let decoded = backend.work(&caller, decode).await.map_err(status)?;
        admission.admitted();
        Ok(Response::new(decoded))
    }

    async fn apply_template(
        &self,
        request: Request<ApplyTemplateRequest>,
    ) -> Result<Response<ApplyTemplateResponse>, Status> {
        let (caller, mut admission, deadline) = self.admit(&request)?;
        let ApplyTemplateRequest { model, messages, chat } = request.into_inner();
        let prompt = chat_convert::prompt(messages, chat).map_err(status)?;
        let backend = self.models.backend(&caller, model.as_deref(), deadline).await.map_err(status)?;
        let tokenizer = backend.tokenizer().map_err(status)?;
        let text = backend.engine.text().clone();
        let render = move || {
            let text = prompt_text(&text, &prompt)?;
            let token_ids = tokenizer.encode(&text, false)?.into_iter().map(|id| id.0).collect();
            Ok(ApplyTemplateResponse { text, token_ids })
        };
        let rendered = backend.work(&caller, render).await;
        let rendered = rendered.map_err(|error| status(chat::PATHS.locate(error)))?;
        admission.admitted();
        Ok(Response::new(rendered))
    }
}
