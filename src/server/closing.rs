//! How the server goes down, as everything that waits in it sees it.

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

    async fn reached(mut self, stage: Stage) {
        // The closer vanishes only with the server itself, which is as good as any stage.
        let _gone = self.0.wait_for(|now| *now >= stage).await;
    }
}
