//! A task that lets those who have something for it go first.
//!
//! A step of the engine wakes a task a stream, and each of them hands its connection a few bytes. The first one wakes the
//! connection's task, and the runtime runs next what was woken last: every token would be a write of its own, which costs
//! more than all else that is done for it. So a connection that is woken goes to the end of the line once, behind the streams
//! that the same step woke, and what they had goes out in one piece.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

/// A future that is polled each second time only: the first time its task goes to the end of the runtime's line.
pub(super) struct Patient<F> {
    future: F,
    has_waited: bool,
}

impl<F> Patient<F> {
    pub(super) fn new(future: F) -> Self {
        Self { future, has_waited: false }
    }
}

impl<F: Future + Unpin> Future for Patient<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        self.has_waited = !self.has_waited;
        if self.has_waited {
            // A task that wakes itself while it runs stands behind all others.
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        Pin::new(&mut self.future).poll(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::poll_fn,
        sync::{Arc, Mutex},
    };

    use tokio::sync::{Notify, mpsc};

    use super::*;

    /// What a writer finds each time that it is run, while eight tasks that were woken together hand it one thing each.
    async fn found(is_patient: bool) -> Vec<usize> {
        let start = Arc::new(Notify::new());
        let (hand, mut handed) = mpsc::unbounded_channel();
        let found = Arc::new(Mutex::new(Vec::new()));
        let finds = found.clone();
        let mut things = Vec::new();
        let write = poll_fn(move |cx| {
            loop {
                match handed.poll_recv_many(cx, &mut things, 100) {
                    Poll::Ready(0) => return Poll::Ready(()),
                    Poll::Ready(n) => finds.lock().unwrap().push(n),
                    Poll::Pending => return Poll::Pending,
                }
            }
        });
        let writer = match is_patient {
            true => tokio::spawn(Patient::new(write)),
            false => tokio::spawn(write),
        };
        let wakes = start.clone();
        for k in 0..8 {
            let (start, hand) = (start.clone(), hand.clone());
            tokio::spawn(async move {
                start.notified().await;
                hand.send(k).unwrap();
            });
        }
        drop(hand);
        // All of them have been run, and wait.
        tokio::task::yield_now().await;
        tokio::task::yield_now().await;
        wakes.notify_waiters();
        writer.await.unwrap();
        Arc::try_unwrap(found).unwrap().into_inner().unwrap()
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn what_several_tasks_have_is_taken_in_one_piece() {
        assert_eq!(tokio::spawn(found(true)).await.unwrap(), [8]);
        let one_by_one = tokio::spawn(found(false)).await.unwrap();
        assert!(one_by_one.len() > 4, "without patience it would be as well: {one_by_one:?}");
    }
}
