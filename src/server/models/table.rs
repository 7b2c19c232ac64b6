//! What the server knows of its models: names, states, and which of them a name means. No task and no wire.

use std::{
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use tokio::{sync::watch, time::Instant};

use super::{LOADING_RETRY, coming::LoadStatus};
use crate::{
    config::{EngineConfig, LoraModule},
    engine::{
        Adapters, Engine, Health, ModelInfo,
        load::{LoadProgress, ModelMemory, ModelSource},
    },
    error::{Code, Error, Result},
    server::{
        backend::{Backend, NAME_BYTES, cut},
        closing::Closer,
    },
    telemetry::Telemetry,
    text::OutputFormat,
};

/// Models that are remembered though they are not in memory, beyond those that may be.
const REMEMBERED: usize = 32;

/// All models, in the order in which they came.
pub(super) struct Table {
    pub(super) entries: Vec<Entry>,
    /// One at a time, so that the sum of the memory is right.
    pub(super) loading: Option<Loading>,
    /// Without a name, and still in memory.
    pub(super) leaving: Vec<Leaving>,
    /// Nothing new is taken.
    pub(super) is_draining: bool,
    max_models: usize,
    /// After how long without use a model may make room for another.
    evict_after: Option<Duration>,
}

/// A model by its name.
pub(super) struct Entry {
    pub(super) name: String,
    pub(super) source: Option<ModelSource>,
    pub(super) state: State,
    /// As it was when it last was in memory.
    about: Option<Arc<About>>,
    /// They go on where it is loaded again.
    telemetry: Option<Arc<Telemetry>>,
}

/// How a model stands that has a name and is not being loaded.
pub(super) enum State {
    Ready(Arc<Served>),
    /// The next request loads it.
    Idle,
    Unloaded,
    Failed(Error),
}

/// A model in memory.
pub(super) struct Served {
    /// What is lent.
    pub(super) backend: Backend,
    pub(super) closer: Closer,
    pub(super) memory: Option<ModelMemory>,
    last_used: Mutex<Instant>,
}

/// A model on its way in.
pub(super) struct Loading {
    pub(super) name: String,
    pub(super) status: watch::Receiver<LoadStatus>,
}

/// A model on its way out.
pub(super) struct Leaving {
    pub(super) name: String,
    pub(super) served: Weak<Served>,
    pub(super) gone: watch::Receiver<bool>,
    about: Arc<About>,
    memory_bytes: u64,
}

/// Where a request goes.
pub(super) enum Place {
    Ready(Box<Backend>),
    /// To be looked up again after that.
    Coming(watch::Receiver<LoadStatus>),
    /// The same after another model's load, however that ends.
    Behind(watch::Receiver<LoadStatus>),
}

/// What clients are told of a model, in memory or not.
pub(crate) struct About {
    /// Without its adapters.
    pub(crate) info: ModelInfo,
    pub(crate) config: EngineConfig,
    pub(crate) has_tokenizer: bool,
    pub(crate) has_chat_template: bool,
    /// The formats that its chat template teaches; none without one.
    pub(crate) output_format: OutputFormat,
}

/// How a model stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ModelState {
    Loading,
    Ready,
    Draining,
    Idle,
    Unloaded,
    Failed,
}

impl ModelState {
    /// Whether requests may name it.
    pub(crate) fn answers(self) -> bool {
        matches!(self, Self::Ready | Self::Idle)
    }
}

/// Who is told of the models.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reader {
    /// Whoever runs the server: why one could not be loaded too.
    Operator,
    Anybody,
}

/// A line of the list: a model, or an adapter.
pub(crate) struct Listed {
    pub(crate) name: String,
    pub(crate) state: ModelState,
    /// None before it was in memory for the first time.
    pub(crate) about: Option<Arc<About>>,
    /// While it is being loaded, once that has begun.
    pub(crate) progress: Option<LoadProgress>,
    /// For whoever runs the server.
    pub(crate) failure: Option<String>,
    pub(crate) is_default: bool,
    /// Of an adapter: its model's name, and its directory.
    pub(crate) parent: Option<(String, String)>,
    pub(crate) memory_bytes: u64,
}

impl About {
    fn of(engine: &Engine) -> Self {
        let text = engine.text();
        Self {
            // They hold the model's memory.
            info: ModelInfo { adapters: Adapters::default(), ..engine.info().clone() },
            config: engine.config().clone(),
            has_tokenizer: text.tokenizer.is_some(),
            has_chat_template: text.chat_template.is_some(),
            output_format: text.chat_template.as_ref().map(|template| template.output_format()).unwrap_or_default(),
        }
    }
}

impl Served {
    pub(super) fn new(backend: Backend, closer: Closer, memory: Option<ModelMemory>) -> Self {
        Self { backend, closer, memory, last_used: Mutex::new(Instant::now()) }
    }

    /// For a call.
    pub(super) fn lend(&self) -> Backend {
        self.touch();
        self.backend.clone()
    }

    /// Since when nobody has used it; none where somebody does.
    pub(super) fn unused_since(&self) -> Option<Instant> {
        // The one that lends holds one itself. What holds none any more and still streams is live.
        if self.backend.holders() > 1 || self.backend.engine.num_live() > 0 {
            self.touch();
            return None;
        }
        Some(*self.last_used.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn touch(&self) {
        *self.last_used.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }
}

/// Sequences that an engine has. Not told by its permits: whoever waits for its end holds those that are back already.
pub(super) fn num_live(engine: &Engine) -> usize {
    engine.loads().tenants.iter().map(|load| load.running + load.waiting).sum()
}

impl Leaving {
    pub(super) fn new(name: &str, served: &Arc<Served>, gone: watch::Receiver<bool>) -> Self {
        let engine = &served.backend.engine;
        let (about, memory_bytes) = (Arc::new(About::of(engine)), engine.config().promised_bytes);
        Self { name: name.to_owned(), served: Arc::downgrade(served), gone, about, memory_bytes }
    }
}

impl Entry {
    /// In memory.
    pub(super) fn served(&self) -> Option<&Arc<Served>> {
        match &self.state {
            State::Ready(served) => Some(served),
            State::Idle | State::Unloaded | State::Failed(_) => None,
        }
    }

    fn answers(&self) -> bool {
        matches!(self.state, State::Ready(_) | State::Idle)
    }

    /// Names and directories of its adapters.
    pub(super) fn adapters(&self) -> Vec<(String, String)> {
        match (&self.state, &self.source) {
            (State::Ready(served), _) => served.backend.engine.info().adapters.list(),
            (State::Idle, Some(source)) => {
                let module = |LoraModule { name, path }: &LoraModule| (name.clone(), path.clone());
                source.lora.lora_modules.iter().map(module).collect()
            }
            _ => Vec::new(),
        }
    }

    fn has_adapter(&self, name: &str) -> bool {
        match &self.state {
            State::Ready(served) => served.backend.engine.info().adapters.get(name).is_some(),
            _ => self.adapters().iter().any(|(own, _)| own == name),
        }
    }

    pub(super) fn telemetry(&self) -> Option<Arc<Telemetry>> {
        self.telemetry.clone()
    }

    /// As it was when it last was in memory.
    pub(super) fn about(&self) -> Option<Arc<About>> {
        self.about.clone()
    }

    /// One that waits for its first request.
    #[cfg(test)]
    pub(super) fn idle(name: &str) -> Self {
        Self { name: name.to_owned(), source: None, state: State::Idle, about: None, telemetry: None }
    }
}

impl Table {
    pub(super) fn new(max_models: usize, evict_after: Option<Duration>) -> Self {
        let (entries, leaving) = (Vec::new(), Vec::new());
        Self { entries, loading: None, leaving, is_draining: false, max_models, evict_after }
    }

    /// The models that take requests.
    pub(super) fn ready(&self) -> impl Iterator<Item = &Arc<Served>> {
        self.entries.iter().filter_map(Entry::served)
    }

    /// The engines in memory, those that leave included.
    pub(super) fn engines(&self) -> Vec<Engine> {
        let leaving = self.leaving.iter().filter_map(|leaving| leaving.served.upgrade());
        self.ready().cloned().chain(leaving).map(|served| served.backend.engine.clone()).collect()
    }

    /// Bytes that the models in memory were promised.
    pub(super) fn promised_bytes(&self) -> u64 {
        let ready = self.ready().map(|served| served.backend.engine.config().promised_bytes);
        ready.chain(self.leaving.iter().map(|leaving| leaving.memory_bytes)).fold(0, u64::saturating_add)
    }

    /// Bytes that the model at this place was promised.
    pub(super) fn memory_bytes(&self, at: usize) -> u64 {
        let served = self.entries.get(at).and_then(Entry::served);
        served.map_or(0, |served| served.backend.engine.config().promised_bytes)
    }

    pub(super) fn telemetries(&self) -> Vec<Arc<Telemetry>> {
        let default = self.default();
        let first = default.and_then(|at| self.entries.get(at));
        let others = self.entries.iter().enumerate().filter(|(at, _)| Some(*at) != default).map(|(_, entry)| entry);
        first.into_iter().chain(others).filter_map(Entry::telemetry).collect()
    }

    /// The model of requests that name none: the first that answers.
    fn default(&self) -> Option<usize> {
        self.entries.iter().position(Entry::answers)
    }

    /// The entry, ready or idle, that a request means.
    ///
    /// # Errors
    /// As [`Models::backend`](super::Models::backend).
    pub(super) fn position(&self, model: Option<&str>) -> Result<usize> {
        let Some(name) = model else {
            let none = || match &self.loading {
                Some(loading) => loading.unavailable(),
                None => Error::new(Code::FailedPrecondition, "no model is loaded here"),
            };
            return self.default().ok_or_else(none);
        };
        let own = self.entries.iter().position(|entry| entry.name == name);
        let found = own.or_else(|| self.entries.iter().position(|entry| entry.has_adapter(name)));
        if let Some(at) = found
            && self.entries.get(at).is_some_and(Entry::answers)
        {
            return Ok(at);
        }
        if let Some(loading) = self.loading.as_ref().filter(|loading| loading.name == name) {
            return Err(loading.unavailable());
        }
        Err(match found.and_then(|at| self.entries.get(at)).map(|entry| &entry.state) {
            Some(State::Failed(_)) => not_loaded(name),
            Some(_) => {
                Error::new(Code::FailedPrecondition, format!("model {name:?} was unloaded: it is not served now"))
            }
            None => self.unknown(name),
        })
    }

    /// Whether a model, served or not, an adapter or what is being loaded is called so.
    pub(super) fn is_taken(&self, name: &str) -> bool {
        let comes = self.loading.as_ref().is_some_and(|loading| loading.name == name);
        comes || self.entries.iter().any(|entry| entry.name == name || entry.has_adapter(name))
    }

    pub(super) fn unknown(&self, name: &str) -> Error {
        let known: Vec<_> = self.entries.iter().filter(|entry| entry.answers()).map(|entry| &entry.name).collect();
        let served = match known.as_slice() {
            [] => "nothing is".to_owned(),
            [only] => format!("{only:?} is"),
            several => format!("{several:?} are"),
        };
        let why = format!("{:?} is not served here; {served}", cut(name, NAME_BYTES));
        Error { code: Code::NotFound, ..Error::invalid("model", why) }
    }

    /// The models that nobody has used for so long and that could be loaded again, those unused longest first.
    pub(super) fn unused_for(&self, time: Duration) -> Vec<usize> {
        let now = Instant::now();
        let unused = |(at, entry): (usize, &Entry)| {
            let since = entry.source.as_ref().and(entry.served())?.unused_since()?;
            (now.saturating_duration_since(since) >= time).then_some((since, at))
        };
        let mut unused: Vec<_> = self.entries.iter().enumerate().filter_map(unused).collect();
        unused.sort_unstable();
        unused.into_iter().map(|(_, at)| at).collect()
    }

    /// Those of them that may make room for a model called `name`.
    pub(super) fn evictable(&self, name: &str) -> Vec<usize> {
        let mut unused = self.evict_after.map(|time| self.unused_for(time)).unwrap_or_default();
        unused.retain(|&at| self.entries.get(at).is_some_and(|entry| entry.name != name));
        unused
    }

    /// Whether as many are in memory as may be; what leaves under the name `but` does not count.
    pub(super) fn is_full(&self, but: Option<&str>) -> bool {
        self.ready().count() + self.num_leaving(but) >= self.max_models
    }

    fn num_leaving(&self, but: Option<&str>) -> usize {
        self.leaving.iter().filter(|leaving| Some(leaving.name.as_str()) != but).count()
    }

    /// `ResourceExhausted`, which says how many are in memory.
    pub(super) fn full(&self, but: Option<&str>) -> Error {
        let (ready, leaving, most) = (self.ready().count(), self.num_leaving(but), self.max_models);
        let why = match self.evict_after {
            Some(time) => format!("; those that are used, or were in the last {} s, make no room", time.as_secs_f64()),
            None => String::new(),
        };
        let why = format!(
            "{ready} models are loaded and {leaving} more still have streams, --max-models {most} are allowed{why}: unload \
             one, or start the server with more"
        );
        Error::new(Code::ResourceExhausted, why)
    }

    /// Whether one more, called `name`, may be in memory, or another could make room; what leaves under the name `but` does
    /// not count.
    ///
    /// # Errors
    /// `ResourceExhausted`.
    pub(super) fn check_room(&self, name: &str, but: Option<&str>) -> Result<()> {
        if let Some(Loading { name, .. }) = &self.loading {
            let why = format!("{name:?} is being loaded: one model is at a time");
            return Err(Error::new(Code::ResourceExhausted, why).retry_after(LOADING_RETRY));
        }
        match self.is_full(but) && self.evictable(name).is_empty() {
            true => Err(self.full(but)),
            false => Ok(()),
        }
    }

    /// A model is ready. Gives what had its name in memory before.
    pub(super) fn enter(
        &mut self,
        name: &str,
        source: Option<ModelSource>,
        served: Arc<Served>,
    ) -> Option<Arc<Served>> {
        let engine = &served.backend.engine;
        let about = Some(Arc::new(About::of(engine)));
        let telemetry = Some(engine.telemetry().clone());
        let new = Entry { name: name.to_owned(), source, state: State::Ready(served), about, telemetry };
        match self.entries.iter_mut().find(|entry| entry.name == name) {
            Some(entry) => match std::mem::replace(entry, new).state {
                State::Ready(old) => Some(old),
                _ => None,
            },
            None => {
                self.remember(new);
                None
            }
        }
    }

    /// A model could not be loaded. What is in memory by its name stays.
    pub(super) fn fail(&mut self, name: &str, source: ModelSource, error: Error) {
        match self.entries.iter_mut().find(|entry| entry.name == name) {
            // The next request tries again.
            Some(Entry { state: State::Ready(_) | State::Idle, .. }) => {}
            Some(entry) => (entry.source, entry.state) = (Some(source), State::Failed(error)),
            None => {
                let (state, about, telemetry) = (State::Failed(error), None, None);
                self.remember(Entry { name: name.to_owned(), source: Some(source), state, about, telemetry });
            }
        }
    }

    /// Adds a line; the oldest that is not in memory makes room, rather one that nobody can ask for.
    fn remember(&mut self, entry: Entry) {
        if self.entries.len() >= self.max_models + REMEMBERED {
            let unasked = self.entries.iter().position(|entry| !entry.answers());
            let oldest = unasked.or_else(|| self.entries.iter().position(|entry| entry.served().is_none()));
            oldest.map(|at| self.entries.remove(at));
        }
        self.entries.push(entry);
    }

    pub(super) fn health(&self) -> Health {
        if self.is_draining {
            return Health::Draining;
        }
        let mut worst = None;
        for entry in &self.entries {
            match &entry.state {
                State::Ready(served) => match *served.backend.engine.health().borrow() {
                    Health::Serving => return Health::Serving,
                    other => worst = worst.or(Some(other)),
                },
                State::Idle => return Health::Serving,
                State::Unloaded | State::Failed(_) => {}
            }
        }
        // No model is there: as little as between two lives of an engine.
        worst.unwrap_or(Health::Restarting)
    }

    /// Of a model, or of that which an adapter stands beside.
    pub(super) fn health_of(&self, name: &str) -> Option<Health> {
        let own = self.entries.iter().find(|entry| entry.name == name);
        let entry = own.or_else(|| self.entries.iter().find(|entry| entry.has_adapter(name)))?;
        Some(match &entry.state {
            State::Ready(served) => *served.backend.engine.health().borrow(),
            State::Idle if !self.is_draining => Health::Serving,
            _ => Health::Draining,
        })
    }

    /// All lines.
    pub(super) fn list(&self) -> Vec<Listed> {
        let default = self.default();
        let mut list = Vec::new();
        for (at, entry) in self.entries.iter().enumerate() {
            let Entry { name, state, about, .. } = entry;
            let comes = self.loading.as_ref().filter(|loading| loading.name == *name);
            let (state, failure, memory_bytes) = match state {
                State::Ready(served) => (ModelState::Ready, None, served.backend.engine.config().promised_bytes),
                State::Idle => (ModelState::Idle, None, 0),
                State::Unloaded => (ModelState::Unloaded, None, 0),
                State::Failed(error) => (ModelState::Failed, Some(error.to_string()), 0),
            };
            let line = Listed {
                name: name.clone(),
                state,
                about: about.clone(),
                progress: None,
                failure,
                is_default: Some(at) == default,
                parent: None,
                memory_bytes,
            };
            let line = match comes.filter(|_| state != ModelState::Ready) {
                Some(loading) => loading.line(line),
                None => line,
            };
            list.push(line);
            for (adapter, root) in entry.adapters() {
                list.push(Listed {
                    name: adapter,
                    state,
                    about: about.clone(),
                    progress: None,
                    failure: None,
                    is_default: false,
                    parent: Some((name.clone(), root)),
                    memory_bytes: 0,
                });
            }
            // What takes a ready one's place, below it.
            if let Some(loading) = comes.filter(|_| state == ModelState::Ready) {
                list.push(loading.line(blank(name)));
            }
        }
        let is_listed = |name: &str| self.entries.iter().any(|entry| entry.name == name);
        if let Some(loading) = self.loading.as_ref().filter(|loading| !is_listed(&loading.name)) {
            list.push(loading.line(blank(&loading.name)));
        }
        // What has become idle is gone in a moment, and has its line.
        let is_idle =
            |name: &str| self.entries.iter().any(|entry| entry.name == name && matches!(entry.state, State::Idle));
        for Leaving { name, about, memory_bytes, .. } in self.leaving.iter().filter(|leaving| !is_idle(&leaving.name)) {
            let (about, memory_bytes) = (Some(about.clone()), *memory_bytes);
            list.push(Listed { state: ModelState::Draining, about, memory_bytes, ..blank(name) });
        }
        list
    }
}

fn blank(name: &str) -> Listed {
    Listed {
        name: name.to_owned(),
        state: ModelState::Loading,
        about: None,
        progress: None,
        failure: None,
        is_default: false,
        parent: None,
        memory_bytes: 0,
    }
}

impl Loading {
    fn line(&self, line: Listed) -> Listed {
        let progress = match &*self.status.borrow() {
            LoadStatus::Under(progress) => *progress,
            LoadStatus::Over(_) => None,
        };
        Listed { state: ModelState::Loading, progress, failure: None, ..line }
    }

    fn unavailable(&self) -> Error {
        let far = match &*self.status.borrow() {
            LoadStatus::Under(Some(LoadProgress::Loading { tensors, total })) => {
                format!(": {tensors} of {total} tensors")
            }
            LoadStatus::Under(Some(LoadProgress::Downloading { bytes, total_bytes })) => {
                format!(": {bytes} of {total_bytes} bytes are here")
            }
            _ => String::new(),
        };
        let why = format!("model {:?} is being loaded{far}", self.name);
        Error::new(Code::Unavailable, why).retry_after(LOADING_RETRY)
    }
}

/// Of a model that failed to load, for those who asked for its answers: what went wrong names files, and is for whoever runs
/// the server.
pub(super) fn not_loaded(name: &str) -> Error {
    let why = format!(
        "model {name:?} could not be loaded: the log says why, and so does Models.Get to whoever runs the server"
    );
    Error::new(Code::FailedPrecondition, why)
}
