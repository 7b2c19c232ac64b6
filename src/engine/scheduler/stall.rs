//! Readers that do not keep up: their sequences leave the batch, come back, or end.

use std::time::{Duration, Instant};

use super::{End, Event, Scheduler};
use crate::{
    engine::{
        faults::{Fault, planted},
        sequence::{Key, Status},
    },
    error::{Code, Error},
};

/// How long a reader that is to be cut off may be behind: long enough for one that keeps up to be woken.
const CUT_OFF_AFTER: Duration = Duration::from_millis(100);

impl Scheduler {
    /// When [`schedule`](Self::schedule) must be called even if nothing else happens: the earliest stall timeout.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        let since = |&key: &Key| match self.sequences[key].status {
            Status::Stalled { since, .. } => since.checked_add(self.patience(key)),
            _ => None,
        };
        self.stalled.iter().filter_map(since).min()
    }

    /// Lets stalled sequences back in line whose readers have taken half of what was sent: sooner, and a sequence would
    /// come and go with every token. Ends those whose readers take nothing.
    pub(super) fn look_after_stalled(&mut self, now: Instant, events: &mut Vec<Event>) {
        for i in (0..self.stalled.len()).rev() {
            let key = self.stalled[i];
            let patience = self.patience(key);
            let sequence = &mut self.sequences[key];
            let needed = sequence.room_needed(self.max_tokens_per_step);
            let Status::Stalled { since, room } = &mut sequence.status else { continue };
            let room_now = sequence.reader.room();
            if sequence.reader.may_resume(needed) {
                self.set_status(key, Status::Waiting);
            } else if room_now > *room && !sequence.is_cut_off {
                (*since, *room) = (now, room_now);
            } else if now.saturating_duration_since(*since) >= patience {
                let message = match sequence.is_cut_off {
                    true => "the reader did not keep up, and the stream was to end then".to_owned(),
                    false => format!("the reader took nothing for {} s", patience.as_secs_f32()),
                };
                self.end(key, End::Failed(Error::new(Code::Aborted, message)), events);
            }
        }
    }

    /// How long a reader may take nothing; one that is to be cut off, less than makes half its room free.
    pub(super) fn patience(&self, key: Key) -> Duration {
        if self.sequences[key].is_cut_off { CUT_OFF_AFTER } else { self.stall_timeout }
    }

    /// Takes a sequence out of the batch, or of the line, if its reader has no room for what it may sample.
    pub(super) fn stalls(&mut self, key: Key, now: Instant) -> bool {
        let sequence = &self.sequences[key];
        let room = sequence.reader.room();
        let stalls = room < sequence.room_needed(self.max_tokens_per_step) && !planted(Fault::StalledScheduled);
        if stalls {
            self.set_status(key, Status::Stalled { since: now, room });
        }
        stalls
    }
}
