//! Which list a sequence stands in, as its status says, and how it leaves for good.

use super::{End, Event, Scheduler};
use crate::engine::{
    faults::{Fault, planted},
    sequence::{Key, Sequence, Status},
};

impl Scheduler {
    pub(super) fn enter(&mut self, sequence: Sequence) {
        let order = sequence.order();
        let key = self.sequences.insert(sequence);
        self.waiting.insert(order, key);
    }

    pub(super) fn set_status(&mut self, key: Key, status: Status) {
        self.leave_list(key);
        let sequence = &mut self.sequences[key];
        sequence.status = status;
        sequence.ready = false;
        self.join_list(key);
    }

    /// Lists a sequence that is in no list where its status and its order put it.
    pub(super) fn join_list(&mut self, key: Key) {
        let sequence = &self.sequences[key];
        let order = sequence.order();
        self.refused = None;
        match sequence.status {
            Status::Waiting => {
                self.waiting.insert(order, key);
            }
            Status::Running => {
                let at = self.running.partition_point(|&(other, _)| other < order);
                self.running.insert(at, (order, key));
            }
            Status::Stalled { .. } => {
                self.stalled.push(key);
            }
        }
    }

    pub(super) fn leave_list(&mut self, key: Key) {
        let sequence = &self.sequences[key];
        let order = sequence.order();
        match sequence.status {
            Status::Waiting => {
                self.waiting.remove(&order);
            }
            Status::Running => {
                if let Ok(at) = self.running.binary_search_by_key(&order, |&(order, _)| order) {
                    self.running.remove(at);
                }
            }
            Status::Stalled { .. } => self.stalled.retain(|&other| other != key),
        }
    }

    pub(super) fn remove(&mut self, key: Key) {
        self.release_siblings(key);
        self.leave_list(key);
        let Some(mut sequence) = self.sequences.remove(key) else { return };
        if !planted(Fault::BlocksLeaked) {
            self.keep_for_lease(&mut sequence);
            self.blocks.release(&mut sequence.table);
        }
        self.refused = None;
        self.num_outstanding -= usize::from(sequence.outstanding.is_some());
        if sequence.cached_tokens.is_some() {
            self.retired.push(sequence.id);
        }
    }

    pub(super) fn end(&mut self, key: Key, end: End, events: &mut Vec<Event>) {
        let sequence = &self.sequences[key];
        events.push(Event::Ended { id: sequence.id, end, usage: sequence.usage() });
        self.remove(key);
    }
}
