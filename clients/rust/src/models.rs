//! How models come and go: the progress of a load, and the list of all models whenever it changes.

use tokio::time::sleep;
use tonic::{Request, Streaming};

use crate::{
    Client, Code, Error, Result,
    retry::Patience,
    v1::{LoadProgress, LoadResponse, Model, WatchRequest, WatchResponse, load_response::Event},
};

/// A model on its way in. Dropping it is to listen no more: the model is loaded all the same.
pub struct Load {
    events: Streaming<LoadResponse>,
    model: Option<Model>,
}

impl Load {
    pub(crate) fn new(events: Streaming<LoadResponse>) -> Self {
        Self { events, model: None }
    }

    /// How far it has come; none once it is there.
    ///
    /// # Errors
    /// Why it could not be loaded.
    pub async fn next(&mut self) -> Result<Option<LoadProgress>> {
        while let Some(response) = self.events.message().await? {
            match response.event {
                Some(Event::Progress(progress)) => return Ok(Some(progress)),
                Some(Event::Model(model)) => self.model = Some(model),
                None => {}
            }
        }
        Ok(None)
    }

    /// The model, once requests may name it.
    ///
    /// # Errors
    /// Why it could not be loaded.
    pub async fn model(mut self) -> Result<Model> {
        while self.next().await?.is_some() {}
        self.model
            .ok_or_else(|| Error::new(Code::Unavailable, "the load ended without a word of the model: ask for it"))
    }
}

/// All models now and at every change, until the server goes down. A connection that breaks is made anew. Who reads slowly
/// misses some lists.
pub struct Watch {
    client: Client,
    patience: Patience,
    /// None after a connection broke.
    lists: Option<Streaming<WatchResponse>>,
}

impl Watch {
    pub(crate) async fn open(client: Client, patience: Patience) -> Result<Self> {
        let mut watch = Self { client, patience, lists: None };
        watch.connect().await?;
        Ok(watch)
    }

    /// The next list; none once the server has gone down.
    ///
    /// # Errors
    /// The error that ended the watch.
    pub async fn next(&mut self) -> Result<Option<Vec<Model>>> {
        loop {
            match self.connect().await?.message().await {
                Ok(response) => {
                    self.patience.heard();
                    return Ok(response.map(|response| response.models));
                }
                Err(status) => {
                    self.lists = None;
                    sleep(self.patience.pause(status.into())?).await;
                }
            }
        }
    }

    async fn connect(&mut self) -> Result<&mut Streaming<WatchResponse>> {
        while self.lists.is_none() {
            match self.client.models_service().watch(Request::new(WatchRequest {})).await {
                Ok(lists) => self.lists = Some(lists.into_inner()),
                Err(status) => sleep(self.patience.pause(status.into())?).await,
            }
        }
        self.lists.as_mut().ok_or_else(|| Error::new(Code::Internal, "a call that was made is not there"))
    }
}
