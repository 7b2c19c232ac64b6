//! Where `generate` and `chat` get their tokens from: an engine in this process, or a running server.

use std::pin::Pin;

use clap::Args;
use futures::Stream;

use super::{connect::Remote, sampling_args::SamplingArgs, start::start_engine};
use crate::{
    config::{EngineArgs, ModelArgs, Secret},
    engine::{Engine, Event, Prompt, Request},
    error::Result,
};

/// The events of one request; dropping it cancels the request.
pub(super) type Events = Pin<Box<dyn Stream<Item = Result<Event>> + Send>>;

/// Which of the two, and what the first one needs.
#[derive(Args, Clone, Debug)]
pub(super) struct BackendArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// Use a running server instead of loading a model.
    #[arg(long, value_name = "URL", conflicts_with = "model", help_heading = "Server")]
    connect: Option<String>,
    /// Key that the server asks for.
    #[arg(long, value_name = "KEY", help_heading = "Server")]
    api_key: Option<Secret>,
    #[command(flatten)]
    engine: EngineArgs,
}

impl BackendArgs {
    /// The model to load, where it may be a path.
    pub(super) fn model(&self) -> Option<&str> {
        self.model.model.as_deref()
    }
}

/// A place that tokens come from.
pub(super) enum Backend {
    Local(Engine),
    Remote(Box<Remote>),
}

impl Backend {
    /// Loads the model, or connects.
    ///
    /// # Errors
    /// Why that cannot be done.
    pub(super) async fn open(args: &BackendArgs) -> Result<Self> {
        match &args.connect {
            Some(url) => Ok(Self::Remote(Box::new(Remote::connect(url, args.api_key.as_ref()).await?))),
            None => Ok(Self::Local(start_engine(&args.model, &args.engine).await?)),
        }
    }

    /// Whether tokens come with text.
    pub(super) fn has_tokenizer(&self) -> bool {
        match self {
            Self::Local(engine) => engine.text().tokenizer.is_some(),
            Self::Remote(remote) => remote.model.has_tokenizer,
        }
    }

    /// The model's name.
    pub(super) fn model_name(&self) -> &str {
        match self {
            Self::Local(engine) => &engine.info().name,
            Self::Remote(remote) => &remote.model.name,
        }
    }

    /// Continues a prompt.
    ///
    /// # Errors
    /// Why the request was refused.
    pub(super) async fn generate(&self, prompt: Prompt, sampling: &SamplingArgs) -> Result<Events> {
        match self {
            Self::Local(engine) => {
                let params = sampling.over(&engine.info().default_params);
                Ok(Box::pin(engine.generate(Request { params, ..Request::new(prompt) }).await?))
            }
            Self::Remote(remote) => remote.generate(prompt, sampling).await,
        }
    }
}
