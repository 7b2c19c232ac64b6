//! How a model goes: unloaded by whoever runs the server, replaced, or idle for too long.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use tokio::{sync::watch, time::timeout};

use super::{
    Shared,
    table::{Leaving, Served, State, Table, num_live},
    upgraded_after,
};
use crate::{
    config::LoraModule,
    error::{Code, Error, Result},
    server::backend::{NAME_BYTES, cut},
};

/// What streams that were cut off get to say so.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// How often is looked who uses a model, as a part of the time after which it is idle, and at the least and the most.
const IDLE_PARTS: u32 = 4;
const IDLE_LOOK: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(10));

/// A model on its way out.
#[derive(Clone)]
pub(crate) struct Unloading {
    served: Weak<Served>,
    gone: watch::Receiver<bool>,
}

impl Unloading {
    /// Waits until its memory has been given back.
    pub(crate) async fn gone(&mut self) {
        // An error means that whoever would tell is gone too.
        let _gone = self.gone.wait_for(|gone| *gone).await;
    }

    /// Cuts off what still streams after that time.
    async fn cut(mut self, after: Duration) {
        if timeout(after, self.gone()).await.is_err()
            && let Some(served) = self.served.upgrade()
        {
            served.closer.cut();
        }
    }

    /// Requests that it still has; none once its memory has been given back.
    pub(crate) fn num_live(&self) -> Option<usize> {
        let live = self.served.upgrade().map_or(0, |served| num_live(&served.backend.engine));
        (!*self.gone.borrow()).then_some(live)
    }
}

impl Shared {
    /// As [`Models::unload`](super::Models::unload).
    pub(super) fn unload(self: &Arc<Self>, name: &str, cut_after: Option<Duration>) -> Result<Option<Unloading>> {
        let mut table = self.table();
        if table.loading.as_ref().is_some_and(|loading| loading.name == name) {
            let why = format!("{name:?} is being loaded: wait for its end");
            return Err(Error::new(Code::FailedPrecondition, why));
        }
        let is_adapter = table.position(Some(name)).is_ok();
        let Some(entry) = table.entries.iter_mut().find(|entry| entry.name == name) else {
            return Err(match is_adapter {
                true => Error::invalid("name", "is an adapter: /v1/unload_lora_adapter unloads it"),
                false => Error::new(Code::NotFound, format!("no model {:?} is known here", cut(name, NAME_BYTES))),
            });
        };
        match std::mem::replace(&mut entry.state, State::Unloaded) {
            State::Ready(served) => {
                tracing::info!(model = name, "unloading a model: its streams go on, new requests are refused");
                self.leave(&mut table, name, served);
            }
            // As it was: why it failed may still be asked for.
            State::Failed(error) => entry.state = State::Failed(error),
            State::Idle | State::Unloaded => {}
        }
        let own = table.leaving.iter().filter(|leaving| leaving.name == name);
        let own = own.map(|Leaving { served, gone, .. }| Unloading { served: served.clone(), gone: gone.clone() });
        let leaving: Vec<_> = own.collect();
        drop(table);
        if let Some(after) = cut_after {
            // Those included that were unloaded or replaced before.
            leaving.iter().for_each(|unloading| drop(tokio::spawn(unloading.clone().cut(after))));
        }
        self.changed();
        Ok(leaving.into_iter().next_back())
    }

    /// Lets a model go that has lost its name. Turns true when its memory has been given back.
    pub(super) fn leave(self: &Arc<Self>, table: &mut Table, name: &str, served: Arc<Served>) -> watch::Receiver<bool> {
        let (went, gone) = watch::channel(false);
        table.leaving.push(Leaving::new(name, &served, gone.clone()));
        tokio::spawn(let_go(Arc::downgrade(self), served, went));
        gone
    }

    /// Has those become idle that nobody has used for so long.
    fn let_idle_go(self: &Arc<Self>, timeout: Duration) {
        let mut table = self.table();
        if table.is_draining {
            return;
        }
        let unused = table.unused_for(timeout);
        self.rest(&mut table, &unused);
        drop(table);
        if !unused.is_empty() {
            self.changed();
        }
    }

    /// Has models become idle: they leave, and the next request brings them back with their adapters. Each turns true when
    /// its memory has been given back.
    pub(super) fn rest(self: &Arc<Self>, table: &mut Table, models: &[usize]) -> Vec<watch::Receiver<bool>> {
        let mut going = Vec::with_capacity(models.len());
        for &at in models {
            let Some(entry) = table.entries.get_mut(at) else { continue };
            let adapters = entry.adapters();
            let Some(source) = &mut entry.source else { continue };
            source.lora.lora_modules = adapters.into_iter().map(|(name, path)| LoraModule { name, path }).collect();
            let name = entry.name.clone();
            if let State::Ready(served) = std::mem::replace(&mut entry.state, State::Idle) {
                tracing::info!(model = name, "nobody uses the model: it is unloaded until somebody does");
                going.push(self.leave(table, &name, served));
            }
        }
        going
    }
}

/// Looks again and again who uses which model, so that it is known since when nobody does, `soonest` being the shortest time
/// that matters. Those become idle that nobody has used for `idle_timeout`.
pub(super) async fn watch_use(shared: Weak<Shared>, soonest: Duration, idle_timeout: Option<Duration>) {
    let pause = (soonest / IDLE_PARTS).clamp(IDLE_LOOK.0, IDLE_LOOK.1);
    while let Some(shared) = upgraded_after(&shared, pause).await {
        // To look is to note who is used.
        for served in shared.table().ready() {
            let _since = served.unused_since();
        }
        if let Some(timeout) = idle_timeout {
            shared.let_idle_go(timeout);
        }
    }
}

/// Waits for the end of what a model has under way, and gives its memory back.
async fn let_go(shared: Weak<Shared>, served: Arc<Served>, went: watch::Sender<bool>) {
    let engine = &served.backend.engine;
    engine.begin_drain();
    // Sessions end, those with a turn under way after it.
    served.closer.leave();
    tokio::select! {
        () = engine.drained() => {}
        () = served.closer.watch().cut() => {
            // Clients that do not read do not hear of it; what is theirs ends when they do, or with their connection.
            let _unheard = timeout(LAST_WORDS, engine.drained()).await;
        }
    }
    let memory = served.memory.clone();
    let gone = Arc::downgrade(&served);
    drop(served);
    if let Some(memory) = memory
        && let Err(error) = memory.given_back().await
    {
        tracing::error!(%error, "a model that was unloaded");
    }
    if let Some(shared) = shared.upgrade() {
        shared.table().leaving.retain(|leaving| !Weak::ptr_eq(&leaving.served, &gone));
        shared.changed();
    }
    went.send_replace(true);
}
