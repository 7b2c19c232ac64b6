//! How the server goes down, as everything that waits in it sees it.

use std::task::{Context, Poll, Waker};

use futures::future::BoxFuture;
use tokio::sync::watch;

/// How far the server is on its way down. Each state includes those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Open,
    /// Every request has had its answer computed: connections say goodbye, watchers are let go.
    Leaving,
    /// The drain timeout has passed: what still streams is cut off.
    Cut,
}

/// Moves the server through its stages.
#[derive(Debug)]
pub(super) struct Closer(watch::Sender<Stage>);

impl Closer {
    pub(super) fn new() -> Self {
        Self(watch::Sender::new(Stage::Open))
    }

    pub(super) fn leave(&self) {
        self.0.send_replace(Stage::Leaving);
    }

    pub(super) fn cut(&self) {
        self.0.send_replace(Stage::Cut);
    }

    pub(super) fn watch(&self) -> Closing {
        Closing(self.0.subscribe())
    }
}

/// Waits for the server's stages.
#[derive(Clone, Debug)]
pub(crate) struct Closing(watch::Receiver<Stage>);

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

    async fn reached(mut self, stage: Stage) {
        // The closer vanishes only with the server itself, which is as good as any stage.
        let _gone = self.0.wait_for(|now| *now >= stage).await;
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
        // An error means that nobody is left to change anything.
        if is_registered && self.closing.0.has_changed().is_ok_and(|changed| !changed) {
            return Poll::Pending;
        }
        self.registered = Some(cx.waker().clone());
        self.cut.as_mut().poll(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

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
