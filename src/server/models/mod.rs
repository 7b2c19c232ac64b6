//! The models of one server: which there are, which one a request means, and how they come and go while it runs.
//!
//! Each is an engine of its own, with its thread, its queue and its KV cache. A face asks for the one that a request
//! names ([`Models::backend`]) and works with that one alone. A model that leaves loses its name first and its memory last:
//! what it was lent to ends as it was promised.

mod coming;
mod going;
mod room;
mod table;

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::{
    StreamExt,
    future::join_all,
    stream::{BoxStream, select_all},
};
use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until},
};
use tokio_stream::wrappers::WatchStream;

use self::table::{Entry, Place, Table, not_loaded};
pub(crate) use self::{
    coming::{LoadAsked, LoadStatus},
    going::Unloading,
    table::{About, Listed, ModelState, Reader},
};
use super::{
    access::{Access, Admission, Caller},
    backend::Backend,
    bodies::Bodies,
    closing::{Closer, Closing},
    lines::{InLine, Lines},
    turns::Turns,
};
use crate::{
    config::{MachineFacts, StreamArgs},
    engine::{
        Health, Which,
        load::{ModelSource, Started},
    },
    error::{Code, Error, Result},
    telemetry::{Telemetry, spans::Spans},
};

/// When to come back for a model that is being loaded.
const LOADING_RETRY: Duration = Duration::from_secs(2);

/// Which models there are beside the first, and which may come.
pub struct ModelOptions {
    /// Those that are there from the start, after the first.
    pub others: Vec<Started>,
    /// Models in memory at once, those included that are on their way in or out.
    pub max_models: usize,
    /// How long nobody uses a model before it is unloaded until somebody does; for ever where there is none.
    pub idle_timeout: Option<Duration>,
    /// How long nobody uses a model before it may make room for another, likewise; none does where there is none.
    pub evict_after: Option<Duration>,
    /// What models are loaded with unless a call says otherwise; none where no call may load any.
    pub settings: Option<ModelSource>,
    /// Bytes a second that the machine reads at most, where somebody has said it: the metrics of each model tell it.
    pub memory_bandwidth: Option<f64>,
    /// What memory there is.
    pub machine: fn() -> MachineFacts,
}

impl Default for ModelOptions {
    fn default() -> Self {
        Self {
            others: Vec::new(),
            max_models: 1,
            idle_timeout: None,
            evict_after: None,
            settings: None,
            memory_bandwidth: None,
            machine: MachineFacts::here,
        }
    }
}

impl std::fmt::Debug for ModelOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { others, max_models, idle_timeout, evict_after, .. } = self;
        let names: Vec<_> = others.iter().map(|started| &started.engine.info().name).collect();
        f.debug_struct("ModelOptions")
            .field("others", &names)
            .field("max_models", max_models)
            .field("idle_timeout", idle_timeout)
            .field("evict_after", evict_after)
            .finish_non_exhaustive()
    }
}

/// All models of a server. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Models {
    shared: Arc<Shared>,
}

/// What is known of them, and what they share.
struct Shared {
    table: Mutex<Table>,
    /// Goes up with every change that [`Models::list`] shows.
    changes: watch::Sender<u64>,
    closing: Closing,
    streams: StreamArgs,
    /// Room for what clients send.
    bodies: Bodies,
    turns: Turns,
    /// Requests that wait for a model to come back.
    waking: Lines,
    access: Access,
    spans: Option<Spans>,
    settings: Option<ModelSource>,
    memory_bandwidth: Option<f64>,
    machine: fn() -> MachineFacts,
}

impl Models {
    /// Over these engines. Needs a tokio runtime.
    pub(super) fn new(
        first: Started,
        options: ModelOptions,
        (closing, access): (Closing, Access),
        streams: StreamArgs,
    ) -> Self {
        let ModelOptions { others, max_models, idle_timeout, evict_after, settings, memory_bandwidth, machine } =
            options;
        let shared = Arc::new(Shared {
            table: Mutex::new(Table::new(max_models, evict_after)),
            changes: watch::Sender::new(0),
            closing,
            streams,
            bodies: Bodies::default(),
            turns: Turns::default(),
            waking: Lines::default(),
            access,
            spans: first.engine.telemetry().spans().cloned(),
            settings,
            memory_bandwidth,
            machine,
        });
        for started in std::iter::once(first).chain(others) {
            let name = started.engine.info().name.clone();
            shared.enter(&name, started);
        }
        tokio::spawn(keep_shares(Arc::downgrade(&shared), shared.access.changes()));
        if let Some(soonest) = idle_timeout.into_iter().chain(evict_after).min() {
            tokio::spawn(going::watch_use(Arc::downgrade(&shared), soonest, idle_timeout));
        }
        Self { shared }
    }

    /// The model that a request names, or an adapter's; without a name, the first there is. One that is idle is loaded
    /// first, as long as the caller waits for it: each tenant's requests stand in a line of their own. What goes wrong is
    /// counted as a refusal.
    ///
    /// # Errors
    /// `NotFound` where the server knows none of that name, `FailedPrecondition` where it is not loaded or could not be,
    /// `Unavailable` with a hint when to come back while it is being loaded and too many of the caller's requests wait for that;
    /// `DeadlineExceeded`.
    pub(crate) async fn backend(
        &self,
        caller: &Caller,
        model: Option<&str>,
        deadline: Option<Instant>,
    ) -> Result<Backend> {
        self.find(caller, model, deadline).await.map_err(|error| self.refused(error))
    }

    async fn find(&self, caller: &Caller, model: Option<&str>, deadline: Option<Instant>) -> Result<Backend> {
        loop {
            let (mut coming, is_own) = match self.shared.look_up(model)? {
                Place::Ready(backend) => return Ok(*backend),
                Place::Coming(coming) => (coming, true),
                Place::Behind(other) => (other, false),
            };
            let _place = self.shared.waking.enter(caller).map_err(|full| {
                let most = full.most;
                let why = format!("{most} requests wait for a model to be loaded already: try again later");
                Error::new(Code::Unavailable, why).retry_after(LOADING_RETRY)
            })?;
            let closing = &self.shared.closing;
            let outcome = tokio::select! {
                outcome = coming::outcome(&mut coming) => outcome?,
                // The end of the server does not wait for a load.
                () = closing.clone().leaving() => return Err(closing.error("the model was loaded")),
                () = sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => {
                    return Err(Error::new(Code::DeadlineExceeded, "the deadline passed before the model was loaded"));
                }
            };
            if is_own && outcome.is_err() {
                return Err(not_loaded(model.unwrap_or("of requests that name none")));
            }
        }
    }

    /// What is known of the model that a request means, and the model where it is in memory. Nothing is asked of it: one that
    /// is idle stays so, and one that is only looked at becomes so.
    ///
    /// # Errors
    /// As [`backend`](Self::backend), but nothing is waited for.
    pub(crate) fn look_at(&self, model: Option<&str>) -> Result<(Arc<About>, Option<Backend>)> {
        let table = self.shared.table();
        let at = table.position(model)?;
        let entry = table.entries.get(at).and_then(|entry| Some((entry, entry.about()?)));
        let (entry, about) = entry.ok_or_else(|| Error::internal("a model of which nothing is known"))?;
        Ok((about, entry.served().map(|served| served.backend.clone())))
    }

    /// Whether a model, served or not, an adapter or what is being loaded is called so.
    pub(crate) fn is_taken(&self, name: &str) -> bool {
        self.shared.table().is_taken(name)
    }

    /// Whether requests may name it: a model that is ready or idle, or an adapter of one.
    pub(crate) fn knows(&self, name: &str) -> bool {
        self.shared.table().position(Some(name)).is_ok()
    }

    /// `NotFound`, which names those that are served.
    pub(crate) fn unknown(&self, name: &str) -> Error {
        self.shared.table().unknown(name)
    }

    /// The same error, counted as a refusal by the model that requests get which name none.
    pub(crate) fn refused(&self, error: Error) -> Error {
        if let Some(telemetry) = self.telemetries().first() {
            telemetry.record_refused(error.code);
        }
        error
    }

    /// Counts a call that generates nothing against its tenant's quotas.
    ///
    /// # Errors
    /// `ResourceExhausted` that names the quota.
    pub(crate) fn admit_call(&self, caller: &Caller) -> Result<Admission> {
        caller.admit_call().map_err(|error| self.refused(error))
    }

    /// Has a call that works on text stand in line, whichever model it is of.
    ///
    /// # Errors
    /// `ResourceExhausted` where too many of the caller's do.
    pub(crate) fn line_up(&self, caller: &Caller) -> Result<InLine> {
        self.shared.turns.line_up(caller).map_err(|error| self.refused(error))
    }

    /// Room for what clients send.
    pub(crate) fn bodies(&self) -> &Bodies {
        &self.shared.bodies
    }

    /// All models that are known, each followed by its adapters; not why one could not be loaded.
    pub(crate) fn list(&self) -> Vec<Listed> {
        let mut list = self.shared.table().list();
        list.iter_mut().for_each(|listed| listed.failure = None);
        list
    }

    /// The same for a caller, with the reasons for whoever runs the server.
    pub(crate) fn list_for(&self, caller: Reader) -> Vec<Listed> {
        match caller {
            Reader::Operator => self.shared.table().list(),
            Reader::Anybody => self.list(),
        }
    }

    /// Those that take requests.
    pub(crate) fn ready(&self) -> Vec<Backend> {
        self.shared.table().ready().map(|served| served.backend.clone()).collect()
    }

    /// Goes up with every change of the list.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.shared.changes.subscribe()
    }

    /// Whether any of them has a full queue, and somebody has found it so in that time.
    pub(crate) fn is_crowded(&self, within: Duration) -> bool {
        self.shared.table().ready().any(|served| served.backend.engine.is_crowded(within))
    }

    /// How the server goes down.
    pub(crate) fn closing(&self) -> Closing {
        self.shared.closing.clone()
    }

    /// Bounds of streams that outlive their connection, and of sessions.
    pub(crate) fn streams(&self) -> StreamArgs {
        self.shared.streams
    }

    /// The metrics of all models that are known, that of the default first where it has any.
    pub(crate) fn telemetries(&self) -> Vec<Arc<Telemetry>> {
        self.shared.table().telemetries()
    }

    /// Whether requests are traced.
    pub(crate) fn are_traced(&self) -> bool {
        self.shared.spans.is_some()
    }

    /// Whether any model takes requests, or would if asked; of the first that does not why.
    pub(crate) fn health(&self) -> Health {
        self.shared.table().health()
    }

    /// The same of one model, or of that which an adapter stands beside; none where the server does not know it.
    pub(crate) fn health_of(&self, name: &str) -> Option<Health> {
        self.shared.table().health_of(name)
    }

    /// Something now, and whenever the health of a model may have changed.
    pub(crate) fn health_changes(&self) -> BoxStream<'static, ()> {
        let engines =
            self.ready().into_iter().map(|backend| WatchStream::new(backend.engine.health()).map(drop).boxed());
        let changes = WatchStream::new(self.changes()).map(drop).boxed();
        select_all(engines.chain([changes])).boxed()
    }

    /// Turns health, so that who watches it sends nothing new; what comes is still taken.
    pub(crate) fn announce_drain(&self) {
        let mut table = self.shared.table();
        table.is_draining = true;
        table.ready().for_each(|served| served.backend.engine.announce_drain());
        drop(table);
        self.shared.changed();
    }

    /// From now on new requests are refused; those under way go on.
    pub(crate) fn begin_drain(&self) {
        self.announce_drain();
        self.shared.table().ready().for_each(|served| served.backend.engine.begin_drain());
    }

    /// Returns when no model has requests.
    pub(crate) async fn drained(&self) {
        let engines = self.shared.table().engines();
        join_all(engines.iter().map(|engine| engine.drained())).await;
    }

    /// Ends requests, whichever model has them; says how many those were.
    pub(crate) fn abort(&self, which: Which<'_>) -> usize {
        self.shared.table().engines().iter().map(|engine| engine.abort(which)).sum()
    }

    /// Requests that the models have.
    pub(crate) fn num_live(&self) -> usize {
        self.shared.table().engines().iter().map(table::num_live).sum()
    }

    /// Begins to load a model. It goes on whoever listens.
    ///
    /// # Errors
    /// `InvalidArgument` by the field that is wrong, `NotFound` for a name without a path that nobody knows,
    /// `ResourceExhausted` where `--max-models` are in memory and none of them makes room, or another is being loaded,
    /// `FailedPrecondition` where no call may load any, `Unavailable` while the server drains. What is wrong with the model
    /// itself comes as its status.
    pub(crate) fn load(&self, asked: LoadAsked) -> Result<(String, watch::Receiver<LoadStatus>)> {
        self.shared.load(asked)
    }

    /// Takes a model's name away, and its memory once its streams have ended; after `cut_after` they are cut off. None
    /// where it has no memory.
    ///
    /// # Errors
    /// `NotFound` where there is none of that name, `FailedPrecondition` while it is being loaded, `InvalidArgument` for an
    /// adapter.
    pub(crate) fn unload(&self, name: &str, cut_after: Option<Duration>) -> Result<Option<Unloading>> {
        self.shared.unload(name, cut_after)
    }
}

impl Shared {
    fn table(&self) -> MutexGuard<'_, Table> {
        // Every change of it is whole before anything could panic.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells who watches.
    fn changed(&self) {
        self.changes.send_modify(|count| *count += 1);
    }

    /// Where a request that names `model` goes. An idle one begins to be loaded.
    fn look_up(self: &Arc<Self>, model: Option<&str>) -> Result<Place> {
        let mut table = self.table();
        let at = table.position(model)?;
        if let Some(served) = table.entries.get(at).and_then(Entry::served) {
            return Ok(Place::Ready(Box::new(served.lend())));
        }
        let name = table.entries.get(at).map(|entry| &entry.name);
        match &table.loading {
            Some(loading) if Some(&loading.name) == name => Ok(Place::Coming(loading.status.clone())),
            Some(other) => Ok(Place::Behind(other.status.clone())),
            None => self.wake(&mut table, at).map(Place::Coming),
        }
    }

    /// Makes an engine a model of this server, by that name; whatever had the name before leaves.
    fn enter(self: &Arc<Self>, name: &str, started: Started) {
        let Started { engine, source, memory } = started;
        if let Some(bytes) = self.memory_bandwidth {
            engine.telemetry().set_memory_bandwidth(bytes);
        }
        if let Some(spans) = self.spans.as_ref().filter(|_| engine.telemetry().spans().is_none()) {
            engine.telemetry().trace_to(spans.clone());
        }
        // Whoever asks for the health of all hears of its changes.
        let (weak, mut health) = (Arc::downgrade(self), engine.health());
        tokio::spawn(async move {
            while health.changed().await.is_ok() {
                let Some(shared) = weak.upgrade() else { return };
                shared.changed();
            }
        });
        let closer = Closer::new();
        let closing = self.closing.of_model(&closer);
        let backend = Backend::new(engine, closing, self.streams, self.turns.clone());
        let served = Arc::new(table::Served::new(backend, closer, memory));
        let mut table = self.table();
        // Under the lock, as when they change: then none is left with shares of before.
        served.backend.engine.shares().set(self.access.weights());
        if table.is_draining {
            served.backend.engine.begin_drain();
        }
        if let Some(old) = table.enter(name, source, served) {
            self.leave(&mut table, name, old);
        }
        drop(table);
        self.changed();
    }
}

/// Tells all engines the tenants' shares whenever those change.
async fn keep_shares(shared: std::sync::Weak<Shared>, mut changes: watch::Receiver<u64>) {
    while changes.changed().await.is_ok() {
        let Some(shared) = shared.upgrade() else { return };
        let table = shared.table();
        table.engines().iter().for_each(|engine| engine.shares().set(shared.access.weights()));
    }
}

/// For the tasks that look at the models again and again: pauses, and goes on as long as the server does.
async fn upgraded_after(shared: &std::sync::Weak<Shared>, pause: Duration) -> Option<Arc<Shared>> {
    sleep(pause).await;
    shared.upgrade()
}

#[cfg(test)]
pub(crate) mod tests {
    use futures::FutureExt;

    use super::{table::Loading, *};

    /// A server with one model, which is idle, while one of some name is being loaded.
    fn models(closing: Closing, loading: Loading) -> Models {
        let mut table = Table::new(2, None);
        table.entries.push(Entry::idle("mine"));
        table.loading = Some(loading);
        let shared = Shared {
            table: Mutex::new(table),
            changes: watch::Sender::new(0),
            closing,
            streams: StreamArgs::default(),
            bodies: Bodies::default(),
            turns: Turns::default(),
            waking: Lines::default(),
            access: Access::default(),
            spans: None,
            settings: None,
            memory_bandwidth: None,
            machine: MachineFacts::here,
        };
        Models { shared: Arc::new(shared) }
    }

    /// A load of that name, and who tells how it goes.
    fn loading(name: &str) -> (watch::Sender<LoadStatus>, Loading) {
        let (tells, status) = watch::channel(LoadStatus::Under(None));
        (tells, Loading { name: name.to_owned(), status })
    }

    /// A server whose only model, `mine`, is being loaded for as long as what comes with it is kept.
    pub(crate) fn that_loads() -> (Models, impl Sized) {
        let (closer, (tells, load)) = (Closer::new(), loading("mine"));
        (models(closer.watch(), load), (closer, tells))
    }

    fn failed(why: &str) -> LoadStatus {
        LoadStatus::Over(Err(Error::new(Code::FailedPrecondition, why)))
    }

    #[tokio::test]
    async fn who_waits_behind_anothers_load_hears_nothing_of_how_that_ended() {
        let closer = Closer::new();
        let ((other, others_load), (own, own_load)) = (loading("other"), loading("mine"));
        let (models, caller) = (models(closer.watch(), others_load), Caller::anybody());
        let mut asked = Box::pin(models.find(&caller, Some("mine"), None));
        assert!((&mut asked).now_or_never().is_none());
        models.shared.table().loading = Some(own_load);
        other.send_replace(failed("no such file"));
        assert!((&mut asked).now_or_never().is_none(), "its own load is still to end");
        own.send_replace(failed("its own file is broken"));
        let error = asked.await.err().unwrap();
        assert!(error.message.starts_with("model \"mine\" could not be loaded"), "{error}");
    }

    #[tokio::test]
    async fn who_waits_for_a_model_is_let_go_when_connections_should_end() {
        let closer = Closer::new();
        let (_tells, load) = loading("mine");
        let (models, caller) = (models(closer.watch(), load), Caller::anybody());
        let mut asked = Box::pin(models.find(&caller, Some("mine"), None));
        assert!((&mut asked).now_or_never().is_none());
        closer.leave();
        assert_eq!(asked.await.err().unwrap().code, Code::Unavailable);
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_for_a_model_waits_no_longer_than_its_deadline() {
        let (_tells, load) = loading("mine");
        let closer = Closer::new();
        let (models, caller) = (models(closer.watch(), load), Caller::anybody());
        let (began, patience) = (Instant::now(), Duration::from_secs(3));
        let asked = models.find(&caller, Some("mine"), Some(began + patience));
        assert_eq!(asked.await.err().unwrap().code, Code::DeadlineExceeded);
        assert_eq!(began.elapsed(), patience);
    }

    #[tokio::test]
    async fn who_waits_for_a_model_with_many_requests_leaves_the_places_of_others() {
        let (_tells, load) = loading("mine");
        let closer = Closer::new();
        let models = models(closer.watch(), load);
        let [many, few] = ["many", "few"].map(Caller::of_tenant);
        let mut waiting = Vec::new();
        let refused = loop {
            let mut asked = Box::pin(models.find(&many, Some("mine"), None));
            match (&mut asked).now_or_never() {
                None => waiting.push(asked),
                Some(refused) => break refused.err().unwrap(),
            }
        };
        assert_eq!((refused.code, refused.retry_after), (Code::Unavailable, Some(LOADING_RETRY)));
        assert!(models.find(&few, Some("mine"), None).now_or_never().is_none(), "it waits too");
        waiting.pop();
        assert!(models.find(&many, Some("mine"), None).now_or_never().is_none(), "a place is free again");
    }

    #[test]
    fn a_name_is_taken_by_what_is_not_served_too() {
        let (_tells, load) = loading("other");
        let models = models(Closer::new().watch(), load);
        models.shared.table().entries[0].state = table::State::Unloaded;
        assert_eq!(["mine", "other", "free"].map(|name| models.is_taken(name)), [true, true, false]);
        assert!(!models.knows("mine"));
    }
}
