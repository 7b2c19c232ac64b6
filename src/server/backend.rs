//! What a face works with once it knows which model is meant: that model's engine, how it goes down, and the names that
//! clients give.

use std::{
    hash::{BuildHasher, RandomState},
    sync::{
        Arc, LazyLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use super::{access::Caller, closing::Closing, throughput::Throughput, turns::Turns};
use crate::{
    config::StreamArgs,
    engine::{EmbedRequest, Embeddings, Engine, ModelInfo},
    error::{Code, Error, Result},
    text::Tokenizer,
};

/// One model of the server, lent by [`Models`](super::models::Models) for a call or as long as a stream or session lasts.
/// Cheap to clone.
#[derive(Clone)]
pub(crate) struct Backend {
    pub(crate) engine: Engine,
    pub(crate) closing: Closing,
    pub(crate) streams: StreamArgs,
    /// Shared, so that all who ask see the same rates.
    pub(crate) throughput: Arc<Throughput>,
    pub(crate) turns: Turns,
    /// Counts those who hold it.
    holders: Arc<()>,
}

impl Backend {
    /// Of an engine; `turns` are those of all models.
    pub(crate) fn new(engine: Engine, closing: Closing, streams: StreamArgs, turns: Turns) -> Self {
        let throughput = Arc::new(Throughput::since(Instant::now(), engine.telemetry().generated_tokens()));
        Self { engine, closing, streams, throughput, turns, holders: Arc::default() }
    }

    /// How many there are of this one.
    pub(crate) fn holders(&self) -> usize {
        Arc::strong_count(&self.holders)
    }

    /// The same error, counted as a refusal. The engine counts its own.
    pub(crate) fn refused(&self, error: Error) -> Error {
        self.engine.telemetry().record_refused(error.code);
        error
    }

    /// The model's tokenizer.
    ///
    /// # Errors
    /// `FailedPrecondition` where it came without.
    pub(crate) fn tokenizer(&self) -> Result<Arc<Tokenizer>> {
        let tokenizer = self.engine.text().tokenizer.clone();
        tokenizer.ok_or_else(|| Error::new(Code::FailedPrecondition, "the model came without a tokenizer"))
    }

    /// The vectors of some inputs.
    ///
    /// # Errors
    /// The engine's; `Unavailable` where the server is cut off meanwhile.
    pub(crate) async fn embed(&self, caller: &Caller, request: EmbedRequest) -> Result<Embeddings> {
        let mut admission = caller.admit_inputs(request.inputs.len()).map_err(|error| self.refused(error))?;
        let request = EmbedRequest {
            tenant: caller.owner(),
            network: caller.network(),
            most_at_once: admission.sequences(),
            ..request
        };
        let embeddings = async {
            let batch = self.engine.admit_embed(request).await?;
            admission.admitted();
            // What was admitted is computed, whatever comes of it.
            admission.charge_prompt(batch.prompt_tokens());
            batch.run().await
        };
        tokio::select! {
            embeddings = embeddings => embeddings,
            () = self.closing.clone().cut() => Err(self.closing.error("all was embedded")),
        }
    }

    /// Runs a caller's work on text beside the tasks that stream, in its turn.
    ///
    /// # Errors
    /// `ResourceExhausted` where too many of the caller's wait; the work's.
    pub(crate) async fn work<T: Send + 'static>(
        &self,
        caller: &Caller,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let place = self.turns.line_up(caller).map_err(|error| self.refused(error))?;
        self.turns.work(place, work).await
    }
}

/// Bytes a name that a client gives: request id, model, cache salt.
pub(crate) const NAME_BYTES: usize = 256;

/// A request id of the server's own drawing: unique in this process, and hardly ever drawn by another.
pub(crate) fn draw_request_id() -> String {
    static PROCESS: LazyLock<u64> = LazyLock::new(|| RandomState::new().hash_one("request ids"));
    static DRAWN: AtomicU64 = AtomicU64::new(1);
    format!("{:016x}-{}", *PROCESS, DRAWN.fetch_add(1, Ordering::Relaxed))
}

/// The client's request id, or one drawn for it.
///
/// # Errors
/// `InvalidArgument` where it is too long.
pub(crate) fn request_id(field: &str, given: Option<String>) -> Result<String> {
    match given.filter(|id| !id.is_empty()) {
        Some(id) => name(field, id),
        None => Ok(draw_request_id()),
    }
}

/// A name that a client gives.
///
/// # Errors
/// `InvalidArgument` where it is too long.
pub(crate) fn name(field: &str, value: String) -> Result<String> {
    if value.len() > NAME_BYTES {
        return Err(Error::invalid(field, format!("has {} bytes, at most {NAME_BYTES} are allowed", value.len())));
    }
    Ok(value)
}

/// Whether vectors of what was named can be had: those of adapters cannot.
///
/// # Errors
/// `InvalidArgument`.
pub(crate) fn check_embeds(model: Option<&str>, info: &ModelInfo) -> Result<()> {
    match model.filter(|model| info.adapters.get(model).is_some()) {
        Some(_) => Err(Error::invalid("model", "is an adapter: embeddings are those of the model without one")),
        None => Ok(()),
    }
}

/// The longest start of `text` that has at most `bytes` bytes and ends between two characters.
pub(crate) fn cut(text: &str, bytes: usize) -> &str {
    (0..=bytes.min(text.len())).rev().find_map(|end| text.get(..end)).unwrap_or_default()
}
