//! Sends requests when they are due and gathers what became of them.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use indicatif::ProgressBar;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    task::{JoinError, JoinSet},
    time::sleep_until,
};

use super::{
    BenchServeArgs,
    client::{Answer, Client},
    workload::Workload,
};
use crate::error::{Error, Result};

/// Different complaints that are kept; others are counted together.
const MAX_COMPLAINTS: usize = 16;

/// What a run brought.
#[derive(Clone, Debug, Default)]
pub(super) struct Measured {
    /// Of requests that were answered whole, with the tokens of their prompts.
    pub answers: Vec<(Answer, u64)>,
    /// Why others failed, and how many.
    pub complaints: BTreeMap<String, u64>,
    /// Requests that had to wait because too many were under way.
    pub delayed: u64,
    /// Most requests under way at once.
    pub most_at_once: usize,
    /// From the first request to the last answer.
    pub duration: Duration,
    /// Ended before its time.
    pub interrupted: bool,
}

/// How a server is loaded.
pub(super) struct Load {
    client: Arc<Client>,
    /// As many as may be under way at once.
    places: Arc<Semaphore>,
    max_concurrency: usize,
    num_warmups: u32,
}

impl Load {
    pub(super) fn new(client: Arc<Client>, args: &BenchServeArgs) -> Self {
        let max_concurrency = args.max_concurrency as usize;
        let places = Arc::new(Semaphore::new(max_concurrency));
        Self { client, places, max_concurrency, num_warmups: args.num_warmups }
    }

    pub(super) fn model(&self) -> &str {
        &self.client.model
    }

    /// Runs to the end of the workload, or to Ctrl-C.
    ///
    /// # Errors
    /// Where a request of the warm-up fails.
    pub(super) async fn run(&self, workload: &Workload, bar: &ProgressBar) -> Result<Measured> {
        for request in workload.requests.iter().cycle().take(self.num_warmups as usize) {
            let asked = self.client.ask(workload.prompt(request), request.output_tokens).await;
            asked.map_err(|why| Error::internal(format!("a request of the warm-up failed: {why}")))?;
        }
        let mut run = Run { measured: Measured::default(), tasks: JoinSet::new(), bar };
        let mut interrupted = std::pin::pin!(tokio::signal::ctrl_c());
        let started = Instant::now();
        {
            let mut whole = std::pin::pin!(self.send_all(workload, started, &mut run));
            tokio::select! {
                () = &mut whole => {}
                _ = &mut interrupted => {}
            }
        }
        run.measured.interrupted = !run.tasks.is_empty();
        run.tasks.shutdown().await;
        run.measured.duration = started.elapsed();
        Ok(run.measured)
    }

    async fn send_all(&self, workload: &Workload, started: Instant, run: &mut Run<'_>) {
        for request in &workload.requests {
            run.gather_until(started + request.at).await;
            let place = self.place(run).await;
            let under_way = self.max_concurrency - self.places.available_permits();
            run.measured.most_at_once = run.measured.most_at_once.max(under_way);
            let (client, prompt) = (self.client.clone(), workload.prompt(request));
            let (sent_tokens, max_tokens) = (prompt.len() as u64, request.output_tokens);
            run.tasks.spawn(async move {
                let answer = client.ask(prompt, max_tokens).await;
                drop(place);
                answer.map(|answer| (answer, sent_tokens))
            });
        }
        while let Some(ended) = run.tasks.join_next().await {
            run.take(ended);
        }
    }

    /// A place among the requests under way; answers are gathered meanwhile.
    async fn place(&self, run: &mut Run<'_>) -> Option<OwnedSemaphorePermit> {
        if let Ok(place) = self.places.clone().try_acquire_owned() {
            return Some(place);
        }
        run.measured.delayed += 1;
        loop {
            tokio::select! {
                // An error would mean that the semaphore was closed, which nobody does.
                place = self.places.clone().acquire_owned() => return place.ok(),
                Some(ended) = run.tasks.join_next() => run.take(ended),
            }
        }
    }
}

type Ended = Result<(Answer, u64), String>;

/// What is under way, and what came of the rest.
struct Run<'a> {
    measured: Measured,
    tasks: JoinSet<Ended>,
    bar: &'a ProgressBar,
}

impl Run<'_> {
    /// Takes in what ends until `due`.
    async fn gather_until(&mut self, due: Instant) {
        let mut due = std::pin::pin!(sleep_until(due.into()));
        loop {
            tokio::select! {
                biased;
                () = &mut due => return,
                Some(ended) = self.tasks.join_next() => self.take(ended),
            }
        }
    }

    fn take(&mut self, ended: Result<Ended, JoinError>) {
        self.bar.inc(1);
        match ended.unwrap_or_else(|panic| Err(format!("the request's task failed: {panic}"))) {
            Ok(answer) => self.measured.answers.push(answer),
            Err(why) => {
                let complaints = &mut self.measured.complaints;
                let known = complaints.len() < MAX_COMPLAINTS || complaints.contains_key(&why);
                *complaints.entry(if known { why } else { "other reasons".to_owned() }).or_default() += 1;
                self.bar.set_message(format!("{} failed", complaints.values().sum::<u64>()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn complaints_of_a_server_that_always_finds_new_ones_are_bounded() {
        let bar = ProgressBar::hidden();
        let mut run = Run { measured: Measured::default(), tasks: JoinSet::new(), bar: &bar };
        for k in 0..1000 {
            run.take(Ok(Err(format!("complaint {k}"))));
        }
        run.take(Ok(Err("complaint 3".to_owned())));
        let complaints = &run.measured.complaints;
        assert_eq!((complaints.len(), complaints["complaint 3"]), (MAX_COMPLAINTS + 1, 2));
        assert_eq!(complaints.values().sum::<u64>(), 1001);
    }
}
