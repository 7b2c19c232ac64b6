//! `candlewick.v1.Tokens`: text to token ids and back.

use std::sync::Arc;

use tonic::{Extensions, Request, Response, Status};

use super::{Backend, status::status};
use crate::{
    error::{Error, Result},
    ids::TokenId,
    proto::candlewick::v1::{
        DetokenizeRequest, DetokenizeResponse, TokenizeRequest, TokenizeResponse, tokens_server::Tokens,
    },
    server::{
        access::{Admission, Caller},
        backend::check_model,
    },
    text::Tokenizer,
};

pub(super) struct TokensService {
    backend: Backend,
}

impl TokensService {
    pub(super) fn new(backend: Backend) -> Self {
        Self { backend }
    }

    fn admit(&self, extensions: &Extensions) -> Result<(Caller, Admission)> {
        let caller = Caller::of(extensions)?;
        let admission = self.backend.admit_call(&caller)?;
        Ok((caller, admission))
    }

    fn tokenizer(&self, model: Option<&str>) -> Result<Arc<Tokenizer>> {
        check_model(model, self.backend.engine.info())?;
        self.backend.tokenizer()
    }
}

#[tonic::async_trait]
impl Tokens for TokensService {
    async fn tokenize(&self, request: Request<TokenizeRequest>) -> Result<Response<TokenizeResponse>, Status> {
        let (caller, _admission) = self.admit(request.extensions()).map_err(status)?;
        let TokenizeRequest { model, text, add_special_tokens } = request.into_inner();
        let tokenizer = self.tokenizer(model.as_deref()).map_err(status)?;
        let ids = self
            .backend
            .work(&caller, move || tokenizer.encode(&text, add_special_tokens.unwrap_or(true)))
            .await
            .map_err(status)?;
        Ok(Response::new(TokenizeResponse { token_ids: ids.into_iter().map(|id| id.0).collect() }))
    }

    async fn detokenize(&self, request: Request<DetokenizeRequest>) -> Result<Response<DetokenizeResponse>, Status> {
        let (caller, _admission) = self.admit(request.extensions()).map_err(status)?;
        let DetokenizeRequest { model, token_ids, skip_special_tokens, return_token_strs } = request.into_inner();
        let tokenizer = self.tokenizer(model.as_deref()).map_err(status)?;
        let vocab_size = self.backend.engine.info().vocab_size;
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
        Ok(Response::new(self.backend.work(&caller, decode).await.map_err(status)?))
    }
}
