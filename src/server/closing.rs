//! How the server goes down, or a model does, as everything that waits in it sees it.

use std::task::{Context, Poll, Waker};

use futures::future::BoxFuture;
use tokio::sync::watch;

use crate::error::{Code, Error};

/// How far the server, or a model, is on its way down. Each state includes those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Open,
    /// Every request has had its answer computed: connections say goodbye, watchers are let go.
    Leaving,
    /// The drain timeout has passed: what still streams is cut off.
    Cut,
}

/// Moves the server, or a model, through its stages.
#[derive(Debug)]
pub(crate) struct Closer(watch::Sender<Stage>);

impl Closer {
    pub(crate) fn new() -> Self {
        Self(watch::Sender::new(Stage::Open))
    }

    pub(crate) fn leave(&self) {
        self.0.send_replace(Stage::Leaving);
    }

    pub(crate) fn cut(&self) {
        self.0.send_replace(Stage::Cut);
    }

    pub(super) fn watch(&self) -> Closing {
        Closing { server: self.0.subscribe(), model: None }
    }
}

/// Waits for the stages of the server and, where it was made for what belongs to a model, of that model.
#[derive(Clone, Debug)]
pub(crate) struct Closing {
    server: watch::Receiver<Stage>,
    model: Option<watch::Receiver<Stage>>,
}

impl Closing {
    /// Returns when connections should end, once what they carry has.
    pub(crate) async fn leaving(self) {
        self.reached(Stage::Leaving).await;
    }

    /// Returns when streams should end, wherever they are.
    pub(crate) async fn cut(self) {
        self.reached(Stage::Cut).await;
    }

    /// The same for who asks with each token.
    pub(crate) fn cut_watch(&self) -> CutWatch {
        CutWatch { closing: self.clone(), cut: Box::pin(self.clone().cut()), registered: None }
    }

    /// Whether a stage was reached since this was made, or will never be.
    fn has_changed(&self) -> bool {
        // An error means that nobody is left to change anything.
        let changed = |stages: &watch::Receiver<Stage>| stages.has_changed().unwrap_or(true);
        changed(&self.server) || self.model.as_ref().is_some_and(changed)
    }

    /// The same for what belongs to a model that `closer` takes down.
    pub(crate) fn of_model(&self, closer: &Closer) -> Self {
        Self { server: self.server.clone(), model: Some(closer.0.subscribe()) }
    }

    /// `Unavailable`, for what ended `before` its time because of the stage that was reached.
    pub(crate) fn error(&self, before: &str) -> Error {
        let why = match *self.server.borrow() {
            Stage::Open if self.model.is_some() => {
                format!("the model was unloaded before {before}: ask for another one")
            }
            _ => format!("the server shut down before {before}: ask another one"),
        };
        Error::new(Code::Unavailable, why)
    }

    async fn reached(self, stage: Stage) {
        let of = async |mut stages: watch::Receiver<Stage>| {
            // A closer vanishes only with what it takes down, which is as good as any stage.
            let _gone = stages.wait_for(|now| *now >= stage).await;
        };
        match self.model {
            Some(model) => tokio::select! {
                () = of(self.server) => {}
                () = of(model) => {}
            },
            None => of(self.server).await,
        }
    }
}

/// Tells when streams should end. To wait takes a lock that all streams share, so it waits once a task, and between looks
/// whether anything has changed.
pub(crate) struct CutWatch {
    closing: Closing,
    cut: BoxFuture<'static, ()>,
    /// Who will be woken.
    registered: Option<Waker>,
}

impl CutWatch {
    /// Ready once streams should end; else the task is woken then.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let is_registered = self.registered.as_ref().is_some_and(|waker| waker.will_wake(cx.waker()));
        if is_registered && !self.closing.has_changed() {
            return Poll::Pending;
        }
        self.registered = Some(cx.waker().clone());
        self.cut.as_mut().poll(cx)
    }

    /// As [`Closing::error`].
    pub(crate) fn error(&self, before: &str) -> Error {
        self.closing.error(before)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use futures::FutureExt;

    use super::*;

    #[test]
    fn what_belongs_to_a_model_ends_with_it_or_with_the_server_whichever_comes_first() {
        let (server, model) = (Closer::new(), Closer::new());
        let (all, own) = (server.watch(), server.watch().of_model(&model));
        model.leave();
        assert!(own.clone().leaving().now_or_never().is_some() && own.clone().cut().now_or_never().is_none());
        assert!(all.clone().leaving().now_or_never().is_none(), "others go on");
        assert!(own.error("it ended").message.contains("the model was unloaded before it ended"));
        server.cut();
        assert!(own.clone().cut().now_or_never().is_some() && all.clone().cut().now_or_never().is_some());
        assert!(own.error("it ended").message.contains("the server shut down before it ended"));
    }

    #[tokio::test]
    async fn who_watches_is_told_of_the_cut_and_of_nothing_before() {
        let closer = Closer::new();
        let mut cut = closer.watch().cut_watch();
        let mut polled = async || poll_fn(|cx| Poll::Ready(cut.poll(cx))).await;
        assert!(polled().await.is_pending());
        assert!(polled().await.is_pending());
        closer.leave();
        assert!(polled().await.is_pending());
        closer.cut();
        assert!(polled().await.is_ready());
    }

    #[tokio::test]
    async fn whoever_polled_last_is_woken() {
        let closer = Closer::new();
        let mut cut = closer.watch().cut_watch();
        assert!(poll_fn(|cx| Poll::Ready(cut.poll(cx))).await.is_pending());
        let waits = tokio::spawn(async move { poll_fn(|cx| cut.poll(cx)).await });
        tokio::task::yield_now().await;
        closer.cut();
        waits.await.unwrap();
    }
}
