//! `Chat.Session`: conversations that the server remembers, each a task that outlives its connection.
//!
//! The task ([`actor`]) owns the engine's session and obeys what clients say; its events go through a [`Ring`], which
//! numbers them and keeps them for a client that comes back. A connection is two halves that know nothing of each other:
//! what comes in is handed to the task, what goes out is read from the ring.

mod actor;
mod asked;
mod asking;
mod kept;
mod open;
mod turn;

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures::{StreamExt, TryStreamExt, future::ready, stream};
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, timeout},
};
use tonic::{Status, Streaming, codegen::BoxStream};

use self::{
    actor::{Actor, Command},
    kept::Kept,
};
use super::{Backend, Models, convert, room::Places, status::status};
use crate::{
    config::StreamArgs,
    engine::SessionMemory,
    error::{Code, Error, Result},
    proto::candlewick::v1::{SessionOpen, SessionRequest, SessionResponse, session_request::Event as Asked},
    server::{
        access::{Caller, Owner, SessionPlace},
        ring::{Attachment, Ring, RingLimits},
        unread::Reading,
    },
};

/// How long a client may take to say which session it wants.
const FIRST_WORD: Duration = Duration::from_secs(30);
/// How long a client may take to end its half of a connection whose session is over.
const LAST_WORD: Duration = Duration::from_secs(1);
/// How long a client is away before its session may make room for another: who only lost a connection finds it.
const SPARED: Duration = Duration::from_secs(30);
/// What clients said that the session's task has not looked at; more waits in the connection.
const COMMANDS: usize = 16;

/// All sessions. Cheap to clone. Nobody finds a session of another tenant.
#[derive(Clone)]
pub(super) struct Sessions {
    all: Arc<Mutex<Places<Handle>>>,
    memory: SessionMemory,
    limits: StreamArgs,
}

/// A session, as connections see it.
#[derive(Clone)]
struct Handle {
    commands: mpsc::Sender<Command>,
    ring: Arc<Ring<Kept>>,
    /// It does not make room for others.
    is_pinned: bool,
    /// A turn of it is under way, or asked for.
    is_busy: Arc<AtomicBool>,
}

/// A place among the sessions; free again when its task ends.
struct Place {
    all: Sessions,
    id: String,
    is_busy: Arc<AtomicBool>,
    _quota: SessionPlace,
}

impl Drop for Place {
    fn drop(&mut self) {
        let gone = self.all.all().remove(&self.id);
        // The first end is the one that counts: this one is heard where the task panicked.
        if let Some(handle) = gone {
            handle.ring.end(Err(Error::internal("the task of this session panicked")));
        }
    }
}

impl Sessions {
    pub(super) fn new(limits: StreamArgs) -> Self {
        let all = Arc::new(Mutex::new(Places::new("sessions", limits.max_sessions)));
        Self { all, memory: SessionMemory::new(limits.session_memory_bytes), limits }
    }

    fn all(&self) -> MutexGuard<'_, Places<Handle>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Serves a connection. The response begins at once, whatever the first event asks for; until `deadline` its client waits
    /// for a session.
    pub(super) fn connect(
        &self,
        models: &Models,
        caller: Caller,
        deadline: Option<Instant>,
        inbound: Streaming<SessionRequest>,
    ) -> BoxStream<SessionResponse> {
        let (opened, opens) = oneshot::channel();
        let listening = tokio::spawn(listen(self.clone(), (models.clone(), caller, deadline), inbound, opened));
        // Where none is opened, what the listener ends with says why.
        let reading = Reading::here();
        let opens = async move {
            let gone = move || reading.as_ref().is_none_or(|reading| reading.has_begun());
            opens.await.ok().map(|attachment| attachment.map(|attachment| attachment.says(gone).events()))
        };
        let events = stream::once(opens).filter_map(ready).try_flatten();
        let response = |(seq, kept): (u64, Kept)| SessionResponse { seq, ..kept.into() };
        let events = events.map(move |event| event.map(response).map_err(status));
        // An answer that ends before its request does resets the stream, and a proxy that hears of the reset first throws
        // away what it still holds of the answer.
        let said_all = stream::once(timeout(LAST_WORD, listening)).filter_map(|ended| {
            ready(match ended {
                Ok(Ok(Err(unread))) => Some(Err(unread)),
                Ok(Err(panic)) => Some(Err(status(Error::internal(format!("nobody hears a session: {panic}"))))),
                Ok(Ok(Ok(()))) | Err(_) => None,
            })
        });
        Box::pin(events.chain(said_all))
    }

    /// Opens a session, or finds the one that is meant, and attaches.
    async fn open(
        &self,
        models: &Models,
        caller: &Caller,
        deadline: Option<Instant>,
        open: SessionOpen,
    ) -> Result<(Handle, Attachment<Kept>)> {
        let after_seq = open.after_seq.unwrap_or(0);
        if let Some(id) = open.session_id.as_deref().filter(|id| !id.is_empty()) {
            let handle = self.all().get(&caller.owner(), id).cloned();
            let handle =
                handle.ok_or_else(|| Error::new(Code::NotFound, "there is no such session, or not any more"))?;
            let attachment = handle.ring.attach(after_seq)?;
            return Ok((handle, attachment));
        }
        let backend = models.backend(caller, convert::model(open.options.as_ref()), deadline);
        // Calls of sessions have no deadline as a rule: a model that takes longer to load than a session lasts alone is not
        // waited for.
        let backend = timeout(self.limits.session_ttl, backend).await.unwrap_or_else(|_| {
            let why = "the model is still being loaded: try again later";
            Err(models.refused(Error::new(Code::Unavailable, why)))
        })?;
        let opened =
            open::open(&backend, self.memory.of(caller.owner()), open).map_err(|error| backend.refused(error))?;
        let (handle, actor) = self.place(&backend, caller, opened)?;
        let attachment = handle.ring.attach_stranger()?;
        actor.start();
        Ok((handle, attachment))
    }

    /// A place for a session, and its task, which has not begun.
    fn place(&self, backend: &Backend, caller: &Caller, opened: open::Opened) -> Result<(Handle, Actor)> {
        let mut quota = caller.admit_session().map_err(|error| backend.refused(error))?;
        let limits = RingLimits { events: self.limits.resume_ring_events, bytes: self.limits.resume_ring_bytes };
        let (commands, commanded) = mpsc::channel(COMMANDS);
        let (is_pinned, is_busy) = (opened.session.is_pinned(), Arc::default());
        let handle = Handle { commands, ring: Ring::new(limits), is_pinned, is_busy };
        let id = self.enter(&caller.owner(), &handle).map_err(|error| backend.refused(error))?;
        quota.admitted();
        let place = Place { all: self.clone(), id, is_busy: handle.is_busy.clone(), _quota: quota };
        let actor = Actor::new((backend.clone(), caller.clone()), place, opened, commanded, handle.ring.clone());
        Ok((handle, actor))
    }
}

impl Sessions {
    /// Enters a session under an id of its own. Where its owner finds no place, one that nobody needs makes room.
    fn enter(&self, owner: &Owner, handle: &Handle) -> Result<String> {
        let (id, gone) = self.all().enter(owner, handle.clone(), Handle::idle_since)?;
        if let Some(gone) = gone {
            gone.ring.forget();
        }
        Ok(id)
    }
}

impl Handle {
    /// Since when nobody needs it: its client has been away for a while, and nothing is under way.
    fn idle_since(&self) -> Option<Instant> {
        let away = self.ring.detached_since().filter(|since| since.elapsed() >= SPARED)?;
        (!self.is_pinned && !self.is_busy.load(Ordering::Relaxed)).then_some(away)
    }
}

/// Reads what is no longer listened to, until the client has said it all.
async fn said_all(mut inbound: Streaming<SessionRequest>) {
    let rest = async { while let Ok(Some(_)) = inbound.message().await {} };
    let _unfinished = timeout(LAST_WORD, rest).await;
}

/// Hands what a client says to its session, as long as it says something and the session lasts.
///
/// # Errors
/// The status of a message that cannot be read. The session stays, and its client can come back.
async fn listen(
    sessions: Sessions,
    asked: (Models, Caller, Option<Instant>),
    inbound: Streaming<SessionRequest>,
    opened: oneshot::Sender<Result<Attachment<Kept>>>,
) -> Result<(), Status> {
    // Boxed, so that what it takes to open a session is gone while the session is idle.
    let greeted = Box::pin(greet(sessions, asked, inbound, opened)).await?;
    let Some((handle, number, mut inbound)) = greeted else { return Ok(()) };
    let is_over = loop {
        let request = tokio::select! {
            request = inbound.message() => request,
            () = handle.commands.closed() => break true,
        };
        let request = match request {
            Ok(Some(request)) => request,
            Ok(None) => break false,
            Err(unread) => {
                handle.ring.let_go(number);
                return Err(unread);
            }
        };
        let SessionRequest { event: Some(event), id } = request else { continue };
        if handle.commands.send(Command::Asked(id, Box::new(event))).await.is_err() {
            break true;
        }
    };
    if is_over {
        // A client that goes on holding the line would hold up the server's end as well.
        said_all(inbound).await;
    } else {
        let _over = handle.commands.send(Command::NothingMore(number)).await;
    }
    Ok(())
}

/// Opens the session that the client's first event asks for, or comes back to it; none where that fails. With it come the
/// number of its reader and what else the client says.
///
/// # Errors
/// The status of an event that cannot be read.
async fn greet(
    sessions: Sessions,
    (models, caller, deadline): (Models, Caller, Option<Instant>),
    mut inbound: Streaming<SessionRequest>,
    mut opened: oneshot::Sender<Result<Attachment<Kept>>>,
) -> Result<Option<(Handle, u64, Streaming<SessionRequest>)>, Status> {
    let first = tokio::select! {
        first = timeout(FIRST_WORD, inbound.message()) => first,
        () = models.closing().leaving() => {
            let _gone = opened.send(Err(models.closing().error("a session was opened")));
            return Ok(None);
        }
    };
    let open = match first {
        Ok(Ok(Some(SessionRequest { event: Some(Asked::Open(open)), .. }))) => Ok(open),
        Ok(Ok(_)) => Err(Error::invalid("open", "must be the first event of a session")),
        Ok(Err(unread)) => return Err(unread),
        Err(_) => Err(Error::new(Code::DeadlineExceeded, "no event came: a session begins with open")),
    };
    let session = match open {
        Ok(open) => tokio::select! {
            session = sessions.open(&models, &caller, deadline, open) => session,
            // Nobody waits for it any more.
            () = opened.closed() => return Ok(None),
        },
        Err(error) => Err(error),
    };
    Ok(match session {
        Ok((handle, attachment)) => {
            let number = attachment.number();
            opened.send(Ok(attachment)).is_ok().then_some((handle, number, inbound))
        }
        Err(error) => {
            let _gone = opened.send(Err(error));
            None
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{proto::candlewick::v1::RequestOptions, server::models::tests::that_loads};

    #[tokio::test(start_paused = true)]
    async fn a_model_that_is_loaded_is_waited_for_until_the_deadline_and_no_longer_than_a_session_lasts() {
        let sessions = Sessions::new(StreamArgs::default());
        let ((models, _loads), most) = (that_loads(), sessions.limits.session_ttl);
        for (deadline, code, waited) in [
            (Some(most / 2), Code::DeadlineExceeded, most / 2),
            (Some(most * 2), Code::Unavailable, most),
            (None, Code::Unavailable, most),
        ] {
            let (began, caller) = (Instant::now(), Caller::anybody());
            let options = RequestOptions { model: Some("mine".into()), ..RequestOptions::default() };
            let open = SessionOpen { options: Some(options), ..SessionOpen::default() };
            let opened = sessions.open(&models, &caller, deadline.map(|after| began + after), open).await;
            assert_eq!((opened.err().unwrap().code, began.elapsed()), (code, waited), "{deadline:?}");
        }
    }

    fn handle() -> Handle {
        let ring = Ring::new(RingLimits { events: 4, bytes: 100 });
        Handle { commands: mpsc::channel(1).0, ring, is_pinned: false, is_busy: Arc::default() }
    }

    #[tokio::test]
    async fn a_session_whose_task_panics_ends_with_an_error_and_gives_its_place_back() {
        let (sessions, handle) = (Sessions::new(StreamArgs::default()), handle());
        let id = sessions.enter(&None, &handle).unwrap();
        let quota = Caller::anybody().admit_session().unwrap();
        let place = Place { all: sessions.clone(), id, is_busy: Arc::default(), _quota: quota };
        let mut reader = Box::pin(handle.ring.attach(0).unwrap().events());
        let task = async move {
            let _place = place;
            panic!("a drill");
        };
        assert!(tokio::spawn(task).await.is_err());
        assert_eq!(reader.next().await.unwrap().unwrap_err().code, Code::Internal);
        assert_eq!(sessions.all().len(), 0);
    }

    async fn is_forgotten(handle: &Handle) -> bool {
        timeout(Duration::from_secs(1), handle.ring.abandoned(Duration::from_secs(3600))).await.is_ok()
    }

    #[tokio::test(start_paused = true)]
    async fn a_session_whose_client_is_away_makes_room_for_another() {
        let sessions = Sessions::new(StreamArgs { max_sessions: 4, ..StreamArgs::default() });
        let [a, b]: [Owner; 2] = ["a", "b"].map(|name| Some(name.into()));
        let pinned = Handle { is_pinned: true, ..handle() };
        let [busy, here, away] = [(); 3].map(|()| handle());
        busy.is_busy.store(true, Ordering::Relaxed);
        let _reader = here.ring.attach(0).unwrap();
        for handle in [&pinned, &busy, &here, &away] {
            sessions.enter(&a, handle).unwrap();
        }
        assert_eq!(sessions.enter(&b, &handle()).unwrap_err().code, Code::ResourceExhausted, "it may come back");
        tokio::time::advance(SPARED).await;
        let other = handle();
        sessions.enter(&b, &other).unwrap();
        for (handle, makes_room) in [(&pinned, false), (&busy, false), (&here, false), (&away, true)] {
            assert_eq!(is_forgotten(handle).await, makes_room);
        }
        tokio::time::advance(SPARED).await;
        assert!(sessions.enter(&a, &handle()).is_err(), "who has one session is let be by who has three");
        assert!(!is_forgotten(&other).await);
        sessions.enter(&b, &handle()).unwrap();
        assert!(is_forgotten(&other).await, "its own makes room");
        assert_eq!(sessions.all().len(), 4);
    }
}
