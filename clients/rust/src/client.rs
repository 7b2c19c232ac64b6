//! A connection to a server, and the calls that bring one answer.

use std::{future::Future, time::Duration};

use tonic::{
    Request, Response, Status,
    metadata::AsciiMetadataValue,
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Channel, Endpoint},
};

#[cfg(feature = "tls")]
use tonic::transport::ClientTlsConfig;

use crate::{
    Ask, Code, Error, Load, Messages, Result, Retry, Session, TokenStream, Watch,
    retry::Patience,
    stream::First,
    v1::{
        self, CompleteRequest, CompleteResponse, CompleteStreamRequest, EmbedInput, EmbedOptions, EmbedRequest,
        EmbedResponse, GenerateResponse, Model, Prompt, QuoteRequest, QuoteResponse, SessionOpen,
        chat_client::ChatClient, embeddings_client::EmbeddingsClient, generation_client::GenerationClient,
        models_client::ModelsClient, tokens_client::TokensClient,
    },
};

/// Finds a server that vanished without a word.
const KEEPALIVE: Duration = Duration::from_secs(60);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// A batch of embeddings is the largest answer.
const MAX_MESSAGE: usize = 64 << 20;

/// Shows a key with every call, where there is one.
#[derive(Clone, Debug)]
pub struct Key(Option<AsciiMetadataValue>);

impl Interceptor for Key {
    fn call(&mut self, mut request: Request<()>) -> std::result::Result<Request<()>, Status> {
        if let Some(key) = &self.0 {
            request.metadata_mut().insert("authorization", key.clone());
        }
        Ok(request)
    }
}

/// What the services are called over.
pub type Keyed = InterceptedService<Channel, Key>;

/// How to connect.
#[derive(Clone, Debug)]
#[must_use]
pub struct Builder {
    address: String,
    api_key: Option<String>,
    #[cfg(feature = "tls")]
    tls: Option<ClientTlsConfig>,
    timeout: Option<Duration>,
    retry: Retry,
}

impl Builder {
    /// Goes as a bearer token with every call.
    pub fn api_key(mut self, key: impl Into<String>) -> Self {
        self.api_key = Some(key.into());
        self
    }

    /// Whom an `https://` address is trusted by, and what is shown to it; the system's certificates unless set.
    #[cfg(feature = "tls")]
    pub fn tls(mut self, tls: ClientTlsConfig) -> Self {
        self.tls = Some(tls);
        self
    }

    /// The deadline of every call that does not say otherwise, retries included. Sessions have none.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// How often to try again.
    pub fn retry(mut self, retry: Retry) -> Self {
        self.retry = retry;
        self
    }

    /// Connects with the first call, and again whenever the connection has gone.
    ///
    /// # Errors
    /// `InvalidArgument` for an address or a key that cannot be one, and certificates that cannot be read.
    pub fn connect_lazy(self) -> Result<Client> {
        let invalid = |error: tonic::transport::Error| Error { code: Code::InvalidArgument, ..error.into() };
        let endpoint = Endpoint::from_shared(self.address.clone()).map_err(invalid)?;
        let endpoint =
            endpoint.http2_keep_alive_interval(KEEPALIVE).keep_alive_timeout(KEEPALIVE_TIMEOUT).tcp_nodelay(true);
        #[cfg(feature = "tls")]
        let endpoint = match self.tls {
            Some(tls) => endpoint.tls_config(tls).map_err(invalid)?,
            None if self.address.starts_with("https:") => {
                endpoint.tls_config(ClientTlsConfig::new().with_enabled_roots()).map_err(invalid)?
            }
            None => endpoint,
        };
        let bearer = |key: String| -> Result<AsciiMetadataValue> {
            let mut value = format!("Bearer {key}").parse::<AsciiMetadataValue>().map_err(|_| {
                Error::new(Code::InvalidArgument, "api_key: holds what no header can hold: use the key as it was drawn")
            })?;
            value.set_sensitive(true);
            Ok(value)
        };
        let key = Key(self.api_key.map(bearer).transpose()?);
        let channel = InterceptedService::new(endpoint.connect_lazy(), key);
        Ok(Client { channel, timeout: self.timeout, retry: self.retry })
    }

    /// Connects, and finds out whether anybody is there.
    ///
    /// # Errors
    /// As [`Self::connect_lazy`]; those of [`Client::models`].
    pub async fn connect(self) -> Result<Client> {
        let client = self.connect_lazy()?;
        client.models().await?;
        Ok(client)
    }
}

/// A connection to a server. Cheap to clone: clones share it, with all their streams.
#[derive(Clone, Debug)]
pub struct Client {
    pub(crate) channel: Keyed,
    timeout: Option<Duration>,
    pub(crate) retry: Retry,
}

impl Client {
    /// How to connect to a server: `http://127.0.0.1:50051`, `https://models.example`.
    pub fn builder(address: impl Into<String>) -> Builder {
        Builder {
            address: address.into(),
            api_key: None,
            #[cfg(feature = "tls")]
            tls: None,
            timeout: None,
            retry: Retry::default(),
        }
    }

    /// Connects without a key.
    ///
    /// # Errors
    /// As [`Builder::connect`].
    pub async fn connect(address: impl Into<String>) -> Result<Self> {
        Self::builder(address).connect().await
    }

    /// `candlewick.v1.Chat` as it is.
    #[must_use]
    pub fn chat_service(&self) -> ChatClient<Keyed> {
        ChatClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE)
    }

    /// `candlewick.v1.Generation` as it is.
    #[must_use]
    pub fn generation_service(&self) -> GenerationClient<Keyed> {
        GenerationClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE)
    }

    /// `candlewick.v1.Embeddings` as it is.
    #[must_use]
    pub fn embeddings_service(&self) -> EmbeddingsClient<Keyed> {
        EmbeddingsClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE)
    }

    /// `candlewick.v1.Models` as it is.
    #[must_use]
    pub fn models_service(&self) -> ModelsClient<Keyed> {
        ModelsClient::new(self.channel.clone())
    }

    /// `candlewick.v1.Tokens` as it is.
    #[must_use]
    pub fn tokens_service(&self) -> TokensClient<Keyed> {
        TokensClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE)
    }

    /// Continues a prompt, all at once.
    ///
    /// # Errors
    /// The server's.
    pub async fn generate(&self, ask: impl Into<Ask<Prompt>>) -> Result<GenerateResponse> {
        let ask = ask.into();
        let service = self.generation_service();
        let call = |request| {
            let mut service = service.clone();
            async move { service.generate(request).await }
        };
        self.unary(ask.generate(), ask.timeout, call).await
    }

    /// Continues a prompt, delta by delta. Dropping the stream cancels the request, unless it is resumable.
    ///
    /// # Errors
    /// The server's, where it refuses the request.
    pub async fn generate_stream(&self, ask: impl Into<Ask<Prompt>>) -> Result<TokenStream> {
        let ask = ask.into();
        TokenStream::open(self.clone(), First::Generate(ask.generate_stream()), self.patience(ask.timeout)).await
    }

    /// Answers messages, all at once.
    ///
    /// # Errors
    /// The server's.
    pub async fn chat(&self, ask: impl Into<Ask<Messages>>) -> Result<CompleteResponse> {
        let Ask { what: Messages { messages, chat }, options, timeout } = ask.into();
        let service = self.chat_service();
        let call = |request| {
            let mut service = service.clone();
            async move { service.complete(request).await }
        };
        self.unary(CompleteRequest { messages, options: Some(options), chat }, timeout, call).await
    }

    /// Answers messages, delta by delta. Dropping the stream cancels the request, unless it is resumable.
    ///
    /// # Errors
    /// The server's, where it refuses the request.
    pub async fn chat_stream(&self, ask: impl Into<Ask<Messages>>) -> Result<TokenStream> {
        let Ask { what: Messages { messages, chat }, options, timeout } = ask.into();
        let request = CompleteStreamRequest { messages, options: Some(options), chat };
        TokenStream::open(self.clone(), First::Complete(request), self.patience(timeout)).await
    }

    /// Reads a resumable stream on, after the last event that was read.
    ///
    /// # Errors
    /// `NotFound` where there is no such stream, `DataLoss` where what comes next is no longer kept.
    pub async fn resume(&self, stream_id: impl Into<String>, after_seq: u64) -> Result<TokenStream> {
        let first = First::Resume { stream_id: stream_id.into(), after_seq };
        TokenStream::open(self.clone(), first, self.patience(None)).await
    }

    /// Opens a conversation that the server keeps, or, with a `session_id`, comes back to one.
    ///
    /// # Errors
    /// The server's, where it refuses; `NotFound` where there is no such session.
    pub async fn session(&self, open: SessionOpen) -> Result<Session> {
        Session::open(self.clone(), open).await
    }

    /// What a request would meet with, without running it.
    ///
    /// # Errors
    /// The server's.
    pub async fn quote(&self, ask: QuoteRequest) -> Result<QuoteResponse> {
        let service = self.generation_service();
        let call = |request| {
            let mut service = service.clone();
            async move { service.quote(request).await }
        };
        self.unary(ask, None, call).await
    }

    /// A vector of each input, in their order.
    ///
    /// # Errors
    /// The server's.
    pub async fn embed<I: Into<EmbedInput>>(
        &self,
        inputs: impl IntoIterator<Item = I>,
        options: EmbedOptions,
    ) -> Result<EmbedResponse> {
        let inputs = inputs.into_iter().map(Into::into).collect();
        let service = self.embeddings_service();
        let call = |request| {
            let mut service = service.clone();
            async move { service.embed(request).await }
        };
        self.unary(EmbedRequest { inputs, options: Some(options) }, None, call).await
    }

    /// The token ids of a text, with the special tokens that the model's tokenizer adds.
    ///
    /// # Errors
    /// The server's.
    pub async fn tokenize(&self, text: impl Into<String>) -> Result<Vec<u32>> {
        let asked = v1::TokenizeRequest { text: text.into(), ..v1::TokenizeRequest::default() };
        let service = self.tokens_service();
        let call = |request| {
            let mut service = service.clone();
            async move { service.tokenize(request).await }
        };
        Ok(self.unary(asked, None, call).await?.token_ids)
    }

    /// The text of token ids.
    ///
    /// # Errors
    /// The server's.
    pub async fn detokenize(&self, token_ids: Vec<u32>) -> Result<String> {
        let asked = v1::DetokenizeRequest { token_ids, ..v1::DetokenizeRequest::default() };
        let service = self.tokens_service();
        let call = |request| {
            let mut service = service.clone();
            async move { service.detokenize(request).await }
        };
        Ok(self.unary(asked, None, call).await?.text)
    }

    /// What is served.
    ///
    /// # Errors
    /// The server's.
    pub async fn models(&self) -> Result<Vec<Model>> {
        let service = self.models_service();
        let call = |request| {
            let mut service = service.clone();
            async move { service.list(request).await }
        };
        Ok(self.unary(v1::ListRequest {}, None, call).await?.models)
    }

    /// One of them, in memory or not.
    ///
    /// # Errors
    /// `NotFound` where the server does not know it.
    pub async fn model(&self, name: impl Into<String>) -> Result<Model> {
        let service = self.models_service();
        let call = |request| {
            let mut service = service.clone();
            async move { service.get(request).await }
        };
        let told = self.unary(v1::GetRequest { name: name.into() }, None, call).await?;
        told.model.ok_or_else(|| Error::new(Code::Internal, "the server told of no model"))
    }

    /// Loads a model while others answer. Never tried again, since it goes on where nobody listens, and has no deadline.
    ///
    /// # Errors
    /// The server's, where it refuses; why it fails comes from [`Load`].
    pub async fn load_model(&self, asked: v1::LoadRequest) -> Result<Load> {
        Ok(Load::new(self.models_service().load(asked).await?.into_inner()))
    }

    /// Takes a model's name away, and its memory once its streams have ended.
    ///
    /// # Errors
    /// The server's.
    pub async fn unload_model(&self, asked: v1::UnloadRequest) -> Result<v1::UnloadResponse> {
        let service = self.models_service();
        let call = |request| {
            let mut service = service.clone();
            async move { service.unload(request).await }
        };
        self.unary(asked, None, call).await
    }

    /// The list of models now and at every change.
    ///
    /// # Errors
    /// The server's.
    pub async fn watch_models(&self) -> Result<Watch> {
        Watch::open(self.clone(), Patience::new(self.retry, None)).await
    }

    fn patience(&self, timeout: Option<Duration>) -> Patience {
        Patience::new(self.retry, timeout.or(self.timeout))
    }

    /// A call that brings one answer, again where it did not get through.
    async fn unary<Asked: Clone, Told, Calling>(
        &self,
        asked: Asked,
        timeout: Option<Duration>,
        call: impl Fn(Request<Asked>) -> Calling,
    ) -> Result<Told>
    where
        Calling: Future<Output = std::result::Result<Response<Told>, Status>>,
    {
        let mut patience = self.patience(timeout);
        loop {
            match call(request(asked.clone(), &patience)).await {
                Ok(told) => return Ok(told.into_inner()),
                Err(status) => tokio::time::sleep(patience.pause(status.into())?).await,
            }
        }
    }
}

/// A request with what is left of its time.
pub(crate) fn request<Asked>(asked: Asked, patience: &Patience) -> Request<Asked> {
    let mut request = Request::new(asked);
    if let Some(left) = patience.left() {
        request.set_timeout(left);
    }
    request
}
