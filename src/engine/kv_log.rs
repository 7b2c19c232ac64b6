//! The log of what the prefix cache holds, as routers read it: numbered batches, the newest of them kept for readers
//! that missed some, and the cache as it stands for readers that missed more.
//!
//! The fan-out task writes, subscribers read at their own pace, and neither waits for the other: a reader holds a
//! number, no queue. The log outlives the engine's restarts. Batches are numbered from the time at which the process
//! began, in microseconds, so that a number from an earlier process is never taken for one of this.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use super::block_manager::{BlockEvent, BlockHash};
use crate::{
    error::{Code, Error, Result},
    ids::TokenId,
};

/// Batches and events that are kept for readers that come back; either bound counts.
const MAX_BATCHES: usize = 4096;
const MAX_EVENTS: usize = 1 << 16;
/// Events of one batch: each may carry a block of up to a thousand tokens, and a batch is one message of four megabytes
/// at the most.
const BATCH_EVENTS: usize = 1024;
/// Readers at once. A worker has one router, or a few.
const MAX_SUBSCRIBERS: usize = 64;

/// What one step of the engine changed.
#[derive(Debug, PartialEq)]
pub struct KvBatch {
    /// One more than that of the batch before.
    pub sequence: u64,
    /// Since the Unix epoch.
    pub at: Duration,
    /// In order.
    pub events: Vec<BlockEvent>,
}

/// What a subscriber gets next.
#[derive(Debug, PartialEq)]
pub enum KvRead {
    /// The batch after the last one.
    Batch(Arc<KvBatch>),
    /// What came after the reader's last batch is no longer there: the cache as it stands.
    Snapshot {
        /// The newest batch that is part of it; the next read goes on behind.
        through: u64,
        /// A `Stored` for each block, those that others follow first.
        blocks: Vec<BlockEvent>,
    },
}

/// A block that can be found.
struct Live {
    parent: Option<BlockHash>,
    tokens: Arc<[TokenId]>,
    /// Counts blocks as they are stored.
    order: u64,
}

struct State {
    /// The number of the very first batch, and of the next.
    first: u64,
    next: u64,
    history: VecDeque<Arc<KvBatch>>,
    num_events: usize,
    live: HashMap<BlockHash, Live>,
    stored: u64,
}

/// The log of one engine.
pub(super) struct KvLog {
    state: Mutex<State>,
    /// The number of the next batch.
    next: watch::Sender<u64>,
    places: Arc<Semaphore>,
}

impl Default for KvLog {
    fn default() -> Self {
        let micros = now().as_micros();
        Self::from(u64::try_from(micros).unwrap_or(u64::MAX / 2))
    }
}

fn now() -> Duration {
    // A clock before 1970 costs the numbers their meaning, nothing else.
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

impl KvLog {
    /// An empty log whose first batch will have the number `first`.
    fn from(first: u64) -> Self {
        let state =
            State { first, next: first, history: VecDeque::new(), num_events: 0, live: HashMap::new(), stored: 0 };
        let places = Arc::new(Semaphore::new(MAX_SUBSCRIBERS));
        Self { state: Mutex::new(state), next: watch::Sender::new(first), places }
    }

    /// Adds events, as one batch or, where they are many, as several.
    pub(super) fn append(&self, events: Vec<BlockEvent>) {
        let mut events = events.into_iter();
        loop {
            let batch: Vec<_> = events.by_ref().take(BATCH_EVENTS).collect();
            if batch.is_empty() {
                return;
            }
            let next = self.locked().append(batch);
            self.next.send_replace(next);
        }
    }

    /// Notes that the cache is empty, unless it was.
    pub(super) fn clear(&self) {
        if !self.locked().live.is_empty() {
            self.append(vec![BlockEvent::Cleared]);
        }
    }

    /// A reader of what comes after batch `after`; of everything, or of the cache as it stands, where that is none.
    ///
    /// # Errors
    /// `ResourceExhausted` where there are too many readers.
    pub(super) fn subscribe(self: &Arc<Self>, after: Option<u64>) -> Result<KvSubscription> {
        let place = self.places.clone().try_acquire_owned().map_err(|_| {
            let why = format!("{MAX_SUBSCRIBERS} subscribers follow the cache already");
            Error::new(Code::ResourceExhausted, why)
        })?;
        let after = after.or_else(|| {
            let state = self.locked();
            (state.oldest() == state.first).then_some(state.first.wrapping_sub(1))
        });
        Ok(KvSubscription { log: self.clone(), after, next: self.next.subscribe(), _place: place })
    }

    fn locked(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn oldest(&self) -> u64 {
        self.next - self.history.len() as u64
    }

    fn append(&mut self, events: Vec<BlockEvent>) -> u64 {
        for event in &events {
            self.follow(event);
        }
        self.num_events += events.len();
        self.history.push_back(Arc::new(KvBatch { sequence: self.next, at: now(), events }));
        self.next += 1;
        while self.history.len() > MAX_BATCHES || self.num_events > MAX_EVENTS {
            let Some(oldest) = self.history.pop_front() else { break };
            self.num_events -= oldest.events.len();
        }
        self.next
    }

    fn follow(&mut self, event: &BlockEvent) {
        match event {
            BlockEvent::Stored { hash, parent, tokens } => {
                self.stored += 1;
                self.live.insert(*hash, Live { parent: *parent, tokens: tokens.clone(), order: self.stored });
            }
            BlockEvent::Removed { hash } => {
                self.live.remove(hash);
            }
            BlockEvent::Cleared => self.live.clear(),
        }
    }

    /// What follows batch `after`; none where that has yet to come.
    fn read(&self, after: Option<u64>) -> Option<KvRead> {
        let wanted = after.map(|after| after.wrapping_add(1)).filter(|n| (self.oldest()..=self.next).contains(n));
        let Some(wanted) = wanted else { return Some(self.snapshot()) };
        let at = usize::try_from(wanted - self.oldest()).ok()?;
        self.history.get(at).cloned().map(KvRead::Batch)
    }

    fn snapshot(&self) -> KvRead {
        let mut live: Vec<_> = self.live.iter().collect();
        live.sort_unstable_by_key(|(_, block)| block.order);
        let stored = |(hash, block): (&BlockHash, &Live)| BlockEvent::Stored {
            hash: *hash,
            parent: block.parent,
            tokens: block.tokens.clone(),
        };
        KvRead::Snapshot { through: self.next.wrapping_sub(1), blocks: live.into_iter().map(stored).collect() }
    }
}

/// A reader's place in the log.
pub struct KvSubscription {
    log: Arc<KvLog>,
    /// The last batch that the reader has; none where it must begin anew.
    after: Option<u64>,
    next: watch::Receiver<u64>,
    _place: OwnedSemaphorePermit,
}

impl KvSubscription {
    /// What comes next, once it is there.
    pub async fn read(&mut self) -> KvRead {
        loop {
            self.next.mark_unchanged();
            let read = self.log.locked().read(self.after);
            if let Some(read) = read {
                self.after = Some(match &read {
                    KvRead::Batch(batch) => batch.sequence,
                    KvRead::Snapshot { through, .. } => *through,
                });
                return read;
            }
            // The log is ours, so its sender lives.
            let _changed = self.next.changed().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    fn stored(hash: u64) -> BlockEvent {
        BlockEvent::Stored { hash: hash.into(), parent: None, tokens: [TokenId(1)].into() }
    }

    fn log(batches: u64) -> Arc<KvLog> {
        let log = Arc::new(KvLog::from(100));
        (0..batches).for_each(|n| log.append(vec![stored(n)]));
        log
    }

    /// What is there to read: numbers of batches, or those of a snapshot with its number of blocks.
    fn told(subscription: &mut KvSubscription) -> Vec<(u64, Option<usize>)> {
        let reads = std::iter::from_fn(|| subscription.read().now_or_never());
        reads
            .map(|read| match read {
                KvRead::Batch(batch) => (batch.sequence, None),
                KvRead::Snapshot { through, blocks } => (through, Some(blocks.len())),
            })
            .collect()
    }

    #[test]
    fn a_reader_gets_everything_then_waits_for_what_is_new() {
        let log = log(3);
        let mut reader = log.subscribe(None).unwrap();
        assert_eq!(told(&mut reader), [(100, None), (101, None), (102, None)]);
        log.append(vec![stored(9)]);
        assert_eq!(told(&mut reader), [(103, None)]);
    }

    #[test]
    fn a_reader_that_comes_back_goes_on_where_it_was() {
        let log = log(5);
        assert_eq!(told(&mut log.subscribe(Some(102)).unwrap()), [(103, None), (104, None)]);
        assert_eq!(told(&mut log.subscribe(Some(104)).unwrap()), []);
    }

    #[test]
    fn a_reader_that_fell_behind_or_knows_another_process_gets_the_cache_as_it_stands() {
        let log = log(2 * MAX_BATCHES as u64);
        log.append(vec![BlockEvent::Removed { hash: 7 }]);
        let through = 100 + 2 * MAX_BATCHES as u64;
        let mut reader = log.subscribe(Some(100)).unwrap();
        for after in [None, Some(99), Some(100), Some(through + 1), Some(u64::MAX)] {
            let expected = [(through, Some(2 * MAX_BATCHES - 1))];
            assert_eq!(told(&mut log.subscribe(after).unwrap()), expected, "after {after:?}");
        }
        assert_eq!(told(&mut reader), [(through, Some(2 * MAX_BATCHES - 1))]);
        log.append(vec![stored(9)]);
        assert_eq!(told(&mut reader), [(through + 1, None)], "and goes on from there");
    }

    #[test]
    fn the_history_is_bounded_by_events_too() {
        let log = log(0);
        for _ in 0..8 {
            log.append((0..MAX_EVENTS as u64 / 4).map(stored).collect());
        }
        let state = log.locked();
        assert_eq!((state.num_events, state.history.len()), (MAX_EVENTS, MAX_EVENTS / BATCH_EVENTS));
    }

    #[test]
    fn a_cache_that_was_lost_is_told_of_once() {
        let log = log(1);
        log.clear();
        log.clear();
        assert_eq!(log.locked().next, 102);
    }

    #[test]
    fn readers_are_counted() {
        let log = log(0);
        let readers: Vec<_> = (0..MAX_SUBSCRIBERS).map(|_| log.subscribe(None).unwrap()).collect();
        assert_eq!(log.subscribe(None).err().unwrap().code, Code::ResourceExhausted);
        drop(readers);
        assert!(log.subscribe(None).is_ok());
    }
}
