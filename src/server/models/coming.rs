//! How a model comes: asked for by whoever runs the server, or by the first request after it was idle.

use std::sync::Arc;

use tokio::sync::watch;

use super::{
    Shared,
    table::{Loading, State, Table},
};
use crate::{
    config::{KvCacheMemory, MachineFacts, Quantization},
    engine::load::{LoadProgress, ModelSource, Started, model_name},
    error::{Code, Error, Result},
    server::backend::{NAME_BYTES, cut},
    telemetry::Telemetry,
};

/// What a call asks to be loaded.
#[derive(Clone, Debug, Default)]
pub(crate) struct LoadAsked {
    /// What requests will call it; told by the path where there is none.
    pub(crate) name: Option<String>,
    /// Without, the model of that name as it was loaded before.
    pub(crate) path: Option<String>,
    /// Whether it takes the place of the one of that name.
    pub(crate) replace: bool,
    pub(crate) quantization: Option<Quantization>,
    pub(crate) max_model_len: Option<u32>,
    pub(crate) kv_cache_memory_bytes: Option<u64>,
}

/// How far it has come.
#[derive(Clone, Debug)]
pub(crate) enum LoadStatus {
    /// None before the first word.
    Under(Option<LoadProgress>),
    Over(Result<()>),
}

/// Waits for the end of a load; gives how it ended.
///
/// # Errors
/// `Unavailable` where nobody is left to say.
pub(super) async fn outcome(coming: &mut watch::Receiver<LoadStatus>) -> Result<Result<()>> {
    match coming.wait_for(|status| matches!(status, LoadStatus::Over(_))).await.as_deref() {
        Ok(LoadStatus::Over(outcome)) => Ok(outcome.clone()),
        // The task that loads it has gone without a word: it panicked, or the server is going down.
        _ => Err(Error::new(Code::Unavailable, "the model was not loaded: the server is going down")),
    }
}

impl Shared {
    /// As [`Models::load`](super::Models::load).
    pub(super) fn load(self: &Arc<Self>, asked: LoadAsked) -> Result<(String, watch::Receiver<LoadStatus>)> {
        let mut table = self.table();
        if table.is_draining {
            return Err(Error::new(Code::Unavailable, "the server is draining: it loads nothing new"));
        }
        let (name, source) = self.source(&table, &asked)?;
        if table.loading.as_ref().is_none_or(|loading| loading.name != name) {
            check_name(&table, &name, asked.replace)?;
        }
        table.check_room(&name, None)?;
        let status = self.begin(&mut table, &name, source);
        drop(table);
        self.changed();
        Ok((name, status))
    }

    /// Loads a model again that was idle.
    pub(super) fn wake(self: &Arc<Self>, table: &mut Table, at: usize) -> Result<watch::Receiver<LoadStatus>> {
        let entry = table.entries.get(at).and_then(|entry| Some((entry.name.clone(), entry.source.clone()?)));
        let (name, source) = entry.ok_or_else(|| Error::internal("an idle model without a source"))?;
        if table.is_draining {
            return Err(Error::new(Code::Unavailable, "the server is draining: it loads nothing new"));
        }
        table.check_room(&name, Some(&name))?;
        let status = self.begin(table, &name, source);
        self.changed();
        Ok(status)
    }

    /// What a call means, and what it is to be called.
    fn source(&self, table: &Table, asked: &LoadAsked) -> Result<(String, ModelSource)> {
        let Some(path) = asked.path.as_deref().filter(|path| !path.is_empty()) else {
            let name = asked.name.as_deref().filter(|name| !name.is_empty());
            let name =
                name.ok_or_else(|| Error::invalid("path", "must be set, or the name of a model served before"))?;
            let known = table.entries.iter().find(|entry| entry.name == name);
            let source = known.and_then(|entry| entry.source.clone());
            let why = || format!("no model {:?} was loaded here before: set path", cut(name, NAME_BYTES));
            return source.map(|source| (name.to_owned(), source)).ok_or_else(|| Error::new(Code::NotFound, why()));
        };
        let settings = self.settings.as_ref();
        let why = "this server loads no models but those that it began with";
        let settings = settings.ok_or_else(|| Error::new(Code::FailedPrecondition, why))?;
        let name = asked.name.clone().filter(|name| !name.is_empty()).unwrap_or_else(|| model_name(path));
        if name.is_empty() || name.len() > NAME_BYTES || name.chars().any(char::is_control) {
            return Err(Error::invalid("name", format!("must have 1 to {NAME_BYTES} bytes and no control characters")));
        }
        let mut source = settings.sibling(path, &name);
        source.model.quantization = asked.quantization.or(source.model.quantization);
        if let Some(tokens) = asked.max_model_len {
            source.engine.max_model_len = Some(tokens as usize);
        }
        if let Some(bytes) = asked.kv_cache_memory_bytes {
            let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
            (source.engine.kv_cache_memory_bytes, source.engine.num_gpu_blocks_override) =
                (KvCacheMemory::Bytes(bytes), None);
        }
        Ok((name, source))
    }

    /// Starts the task that loads it.
    fn begin(self: &Arc<Self>, table: &mut Table, name: &str, source: ModelSource) -> watch::Receiver<LoadStatus> {
        let (status, receiver) = watch::channel(LoadStatus::Under(None));
        table.loading = Some(Loading { name: name.to_owned(), status: receiver.clone() });
        let telemetry = table.entries.iter().find(|entry| entry.name == name).and_then(|entry| entry.telemetry());
        tracing::info!(model = name, path = source.model.model, "loading a model");
        tokio::spawn(self.clone().run(name.to_owned(), source, telemetry, status));
        receiver
    }

    async fn run(
        self: Arc<Self>,
        name: String,
        source: ModelSource,
        telemetry: Option<Arc<Telemetry>>,
        status: watch::Sender<LoadStatus>,
    ) {
        let status = Arc::new(status);
        let outcome = self.clone().start(&name, source.clone(), telemetry, status.clone()).await;
        if let Err(error) = &outcome {
            tracing::warn!(model = name, %error, "a model could not be loaded");
        }
        let outcome = match outcome {
            Ok(started) => {
                self.table().loading = None;
                self.enter(&name, started);
                Ok(())
            }
            Err(error) => {
                let mut table = self.table();
                table.loading = None;
                table.fail(&name, source, error.clone());
                Err(error)
            }
        };
        self.changed();
        status.send_replace(LoadStatus::Over(outcome));
    }

    async fn start(
        self: Arc<Self>,
        name: &str,
        source: ModelSource,
        telemetry: Option<Arc<Telemetry>>,
        status: Arc<watch::Sender<LoadStatus>>,
    ) -> Result<Started> {
        // What became idle under this name a moment ago gives its memory back first.
        let is_idle =
            |table: &Table| table.entries.iter().any(|entry| entry.name == name && matches!(entry.state, State::Idle));
        let leaving: Vec<_> = {
            let table = self.table();
            let own = table.leaving.iter().filter(|leaving| leaving.name == name && is_idle(&table));
            own.map(|leaving| leaving.gone.clone()).collect()
        };
        for mut gone in leaving {
            // An error means that it has gone.
            let _gone = gone.wait_for(|gone| *gone).await;
        }
        let (shared, own) = (self.clone(), name.to_owned());
        let room = move |fits: &dyn Fn(&MachineFacts) -> bool| shared.make_room(&own, fits);
        let progress = move |progress| {
            status.send_replace(LoadStatus::Under(Some(progress)));
            self.changed();
        };
        source.start(room, telemetry, progress).await
    }
}

/// Whether a new model may be called so.
fn check_name(table: &Table, name: &str, replace: bool) -> Result<()> {
    let own = table.entries.iter().find(|entry| entry.name == name);
    if own.is_some_and(|entry| entry.served().is_some()) && !replace {
        let why = format!("{name:?} is loaded already: unload it first, set replace, or choose another name");
        return Err(Error::invalid("name", why));
    }
    if own.is_none() && table.position(Some(name)).is_ok() {
        return Err(Error::invalid("name", format!("{name:?} is an adapter: choose another name")));
    }
    Ok(())
}
