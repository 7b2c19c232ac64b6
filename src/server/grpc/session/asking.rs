//! A turn that the engine has yet to admit: its prompt is rendered and tokenized, its grammar compiled, what is cached of it
//! looked up. The session hears what its client says meanwhile.

use std::time::Duration;

use futures::future::BoxFuture;
use tokio::time::{Interval, timeout_at};

use super::super::{
    Backend, FieldPaths,
    stream::{Teller, progress_to_wire},
};
use super::actor::Answered;
use crate::{
    engine::{Beginning, Generation, Session, StreamEdit, Turn, scheduler::Edit},
    error::{Code, Error, Result},
    params::SamplingParams,
    proto::candlewick::v1 as wire,
    server::access::{Admission, Owner},
};

/// See the [module](self). Dropping it ends the work.
pub(super) struct Asking {
    /// The client's event that began it, and where what the engine complains of stands in it.
    pub(super) asked: Answered,
    pub(super) paths: &'static FieldPaths,
    pub(super) quota: Admission,
    pub(super) teller: Teller,
    /// Changes that are made as soon as there is something to change, and the event that asked for the last of them.
    edit: Option<(Answered, wire::EditTurn)>,
    /// The turn's, with those changes.
    params: SamplingParams,
    /// Tokens that were allowed meanwhile.
    granted: u64,
    tenant: Owner,
    heart: Option<Interval>,
    admission: BoxFuture<'static, Result<Beginning>>,
}

impl Asking {
    /// Has the engine admit a turn.
    ///
    /// # Errors
    /// As [`Session::ask`].
    pub(super) fn new(
        (asked, paths): (Answered, &'static FieldPaths),
        (backend, session): (&Backend, &mut Session),
        turn: Turn,
        quota: Admission,
        heartbeat: Duration,
    ) -> Result<Self> {
        let teller = Teller { is_chat: true, ..Teller::new(&turn.request, heartbeat) };
        let (tenant, deadline, backend) = (turn.request.tenant.clone(), turn.request.deadline, backend.clone());
        let params = turn.request.params.clone();
        let asking = session.ask(turn)?;
        let admission = Box::pin(async move {
            let Some(deadline) = deadline else { return Ok(asking.await) };
            timeout_at(deadline, asking).await.map_err(|_| {
                let late = Error::new(Code::DeadlineExceeded, "the deadline passed before the turn was admitted");
                backend.refused(late)
            })
        });
        let heart = teller.heart();
        Ok(Self { asked, paths, quota, teller, edit: None, params, granted: 0, tenant, heart, admission })
    }

    /// Waits for what comes of it; none where it is time to say that it waits. May be dropped and called again.
    pub(super) async fn wait(&mut self, room: impl Future<Output = ()>) -> Option<Result<Beginning>> {
        let Self { admission, heart, .. } = self;
        let beat = async {
            match heart {
                Some(heart) => {
                    // Who does not read need not be told.
                    room.await;
                    heart.tick().await;
                }
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            beginning = admission => Some(beginning),
            () = beat => None,
        }
    }

    /// Where it would stand if it were queued now.
    pub(super) fn progress(&self, backend: &Backend) -> Option<wire::Progress> {
        progress_to_wire(backend.engine.would_queue(self.tenant.as_deref(), self.teller.priority))
    }

    /// Changes the turn once it is there; what a later change does not name stays.
    ///
    /// # Errors
    /// `InvalidArgument` that names the field; what was changed before stays.
    pub(super) fn edit(&mut self, asked: Answered, edit: wire::EditTurn) -> Result<()> {
        self.params = stream_edit(edit.clone()).of(&self.params)?;
        // Where it would stand, and what its beginning tells, is as it will be.
        self.teller.priority = edit.priority.unwrap_or(self.teller.priority);
        let before = self.edit.take().map(|(_, before)| before).unwrap_or_default();
        let edit = wire::EditTurn {
            max_tokens: edit.max_tokens.or(before.max_tokens),
            temperature: edit.temperature.or(before.temperature),
            stop: edit.stop.or(before.stop),
            priority: edit.priority.or(before.priority),
        };
        self.edit = Some((asked, edit));
        Ok(())
    }

    /// Allows so many tokens more.
    pub(super) fn grant(&mut self, tokens: u64) {
        self.granted = self.granted.saturating_add(tokens);
    }

    /// Tells the stream what the client has said meanwhile.
    ///
    /// # Errors
    /// What is wrong with an edit, and which event asked for it.
    pub(super) fn catch_up(&mut self, generation: &mut Generation) -> Result<(), (Answered, Error)> {
        if self.granted > 0 {
            generation.grant(self.granted);
        }
        let Some((asked, change)) = self.edit.take() else { return Ok(()) };
        generation.edit(stream_edit(change)).map_err(|error| (asked, error))
    }
}

/// An edit as the engine knows it.
pub(super) fn stream_edit(edit: wire::EditTurn) -> StreamEdit {
    let wire::EditTurn { max_tokens, temperature, stop, priority } = edit;
    StreamEdit { engine: Edit { max_tokens, temperature, priority }, stop: stop.map(|stop| stop.stop) }
}
